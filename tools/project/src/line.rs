//! Straight lines of least squares, for whatever is measured several times.

/// A straight line through points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Its value at zero.
    pub base: f64,
    /// By how much it rises for each one more.
    pub slope: f64,
    /// The standard error of the slope. Fewer than three points do not tell it.
    pub error: Option<f64>,
}

impl Line {
    /// The line whose squared distances to the points are least. There is none through points of one place.
    pub fn through(points: &[(f64, f64)]) -> Option<Self> {
        let count = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
        let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        if points.len() < 2 || spread == 0.0 {
            return None;
        }
        let slope = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
        let freedom = points.len() - 2;
        let error = (freedom > 0).then(|| {
            let off = |(x, y): &(f64, f64)| (y - mean_y - slope * (x - mean_x)).powi(2);
            let variance = points.iter().map(off).sum::<f64>() / freedom as f64;
            (variance / spread).sqrt()
        });
        Some(Self { base: mean_y - slope * mean_x, slope, error })
    }
}
