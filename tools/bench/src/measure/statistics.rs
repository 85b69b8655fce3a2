//! Medians, quartiles and ratios of samples that were taken in turns.
use serde::{Deserialize, Serialize};

/// A summary of samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Summary {
    /// The smallest sample.
    pub(super) least: f64,
    /// A quarter of the samples is not larger.
    pub(super) lower_quartile: f64,
    /// Half of the samples is not larger.
    pub(super) median: f64,
    /// Three quarters of the samples are not larger.
    pub(super) upper_quartile: f64,
    /// The largest sample.
    pub(super) most: f64,
}

impl Summary {
    /// The summary of samples, none of which may be NaN, or nothing if there are none.
    pub(super) fn of(samples: &[f64]) -> Option<Self> {
        if samples.is_empty() || samples.iter().any(|sample| sample.is_nan()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share| quantile(&sorted, share);
        Some(Self {
            least: at(0.0),
            lower_quartile: at(0.25),
            median: at(0.5),
            upper_quartile: at(0.75),
            most: at(1.0),
        })
    }

    /// The summary of the ratios round by round. What slows a whole round is in both samples and cancels out. There is
    /// nothing if the two were not sampled equally often, or if a divisor is zero.
    pub(super) fn of_ratios(samples: &[f64], basis: &[f64]) -> Option<Self> {
        if samples.len() != basis.len() || basis.contains(&0.0) {
            return None;
        }
        Self::of(&samples.iter().zip(basis).map(|(sample, basis)| sample / basis).collect::<Vec<_>>())
    }

    /// How far the quartiles are from 1. For two measurements of the same thing, this is the noise.
    pub(super) fn distance_from_one(&self) -> f64 {
        (self.lower_quartile - 1.0).abs().max((self.upper_quartile - 1.0).abs())
    }

    /// Whether the samples of one overlap with those of the other.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.least <= other.most && other.least <= self.most
    }
}

/// The probability that two sets of samples of the same thing do not overlap. All orders in which the samples may come
/// are equally probable, and in two of them all samples of one set are below those of the other.
pub(super) fn chance_to_separate(one: u32, other: u32) -> f64 {
    let orders: f64 = (1..=one).map(|index| f64::from(other + index) / f64::from(index)).product();
    (2.0 / orders).min(1.0)
}

/// A quantile, interpolated between the two nearest samples (Hyndman and Fan, 1996, definition 7).
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() - 1) as f64 * share;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The sample that is not exceeded by `percent` of 100. It is one that was measured, which matters for the tails of
/// latencies.
pub(super) fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last * percent).div_ceil(100)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_interpolated() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((summary.lower_quartile, summary.median, summary.upper_quartile), (1.75, 2.5, 3.25));
        let summary = Summary::of(&[5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!((summary.lower_quartile, summary.median, summary.upper_quartile), (2.0, 3.0, 4.0));
        let one = Summary::of(&[7.0]).unwrap();
        assert_eq!((one.lower_quartile, one.median, one.upper_quartile), (7.0, 7.0, 7.0));
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The second round was slow for both. The medians alone would give 22/10.
        let ratios = Summary::of_ratios(&[20.0, 5.0, 22.0], &[10.0, 2.5, 11.0]).unwrap();
        assert_eq!((ratios.lower_quartile, ratios.median, ratios.upper_quartile), (2.0, 2.0, 2.0));
        assert_eq!(Summary::of_ratios(&[1.0], &[1.0, 2.0]), None);
        assert_eq!(Summary::of_ratios(&[1.0], &[0.0]), None);
    }

    #[test]
    fn noise_is_the_farther_quartile() {
        let summary = Summary::of(&[0.92, 0.96, 1.0, 1.02, 1.5]).unwrap();
        assert!((summary.distance_from_one() - 0.04).abs() < 1e-9);
    }

    #[test]
    fn samples_overlap_or_do_not() {
        let of = |samples: &[f64]| Summary::of(samples).unwrap();
        assert!(of(&[1.0, 2.0]).overlaps(&of(&[2.0, 3.0])));
        assert!(of(&[1.0, 4.0]).overlaps(&of(&[2.0, 3.0])));
        assert!(!of(&[1.0, 2.0]).overlaps(&of(&[2.1, 3.0])));
        assert!(!of(&[2.1, 3.0]).overlaps(&of(&[1.0, 2.0])));
    }

    #[test]
    fn few_samples_separate_by_chance() {
        // 6 over 3 is 20, and 10 over 5 is 252.
        assert!((chance_to_separate(3, 3) - 0.1).abs() < 1e-9);
        assert!((chance_to_separate(5, 5) - 2.0 / 252.0).abs() < 1e-9);
        assert!((chance_to_separate(1, 1) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn percentiles_were_measured() {
        let hundred: Vec<_> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 50), Some(51.0));
        assert_eq!(percentile(&hundred, 99), Some(100.0));
        assert_eq!(percentile(&[3.0], 99), Some(3.0));
        assert_eq!(percentile(&[], 50), None);
    }
}
