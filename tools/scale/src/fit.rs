//! Straight lines through what was measured with several numbers of hosts, and what they say for numbers that were not measured.
use overlay_project::line;
use serde::{Deserialize, Serialize};

/// Student's t for a two-sided interval of 95 %, for one degree of freedom and more. For still more it is hardly smaller.
const T: [f64; 10] = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23];

/// A straight line through points.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Its value at zero.
    pub base: f64,
    /// By how much it rises for each one more.
    pub slope: f64,
    /// The standard error of the slope. Fewer than three points do not tell it.
    pub error: Option<f64>,
    /// Whether the slope can be told from zero, with a probability of 95 %.
    pub is_clear: bool,
}

impl Line {
    /// The line whose squared distances to the points are least. There is none through points of one place.
    pub(crate) fn through(points: &[(f64, f64)]) -> Option<Self> {
        let line::Line { base, slope, error } = line::Line::through(points)?;
        let is_clear =
            error.is_some_and(|error| slope.abs() > T[(points.len() - 3).min(T.len() - 1)] * error);
        Some(Self { base, slope, error, is_clear })
    }

    /// A line that does not rise.
    pub(crate) fn level(base: f64) -> Self {
        Self { base, slope: 0.0, error: None, is_clear: false }
    }

    pub(crate) fn at(&self, place: f64) -> f64 {
        self.base + self.slope * place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_through_its_points_or_between_them() {
        let line = Line::through(&[(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]).unwrap();
        assert!((line.base - 3.0).abs() < 1e-9 && (line.slope - 2.0).abs() < 1e-9, "{line:?}");
        assert!((line.at(10.0) - 23.0).abs() < 1e-9 && line.is_clear, "{line:?}");
        let line = Line::through(&[(0.0, 1.0), (0.0, 3.0), (2.0, 4.0)]).unwrap();
        assert!((line.base - 2.0).abs() < 1e-9 && (line.slope - 1.0).abs() < 1e-9, "{line:?}");
        assert_eq!(Line::through(&[(1.0, 5.0)]), None);
        assert_eq!(Line::through(&[(1.0, 5.0), (1.0, 6.0)]), None);
    }

    #[test]
    fn a_slope_within_the_noise_cannot_be_told_from_zero() {
        // The distances to the line are -1, 2 and -1; one degree of freedom; the places' spread is 2.
        let line = Line::through(&[(0.0, 0.0), (1.0, 4.0), (2.0, 2.0)]).unwrap();
        assert!(
            (line.slope - 1.0).abs() < 1e-9 && (line.error.unwrap() - 3_f64.sqrt()).abs() < 1e-9,
            "{line:?}"
        );
        assert!(!line.is_clear);
        let line = Line::through(&[(0.0, 0.0), (1.0, 101.0), (2.0, 200.0), (3.0, 299.0)]).unwrap();
        assert!(line.is_clear, "{line:?}");
        // Two points say nothing of the noise.
        let line = Line::through(&[(0.0, 0.0), (1.0, 100.0)]).unwrap();
        assert_eq!((line.error, line.is_clear), (None, false));
    }
}
