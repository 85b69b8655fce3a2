//! Percentiles of measured times.
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Percentiles of a number of measured times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// How many times were measured.
    pub count: usize,
    /// Half of them were at most this long, in milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 were at most this long, in milliseconds.
    pub p99_ms: f64,
    /// The longest, in milliseconds.
    pub max_ms: f64,
}

impl Percentiles {
    /// The percentiles of `times`, which must not be empty.
    pub fn of(mut times: Vec<Duration>) -> Result<Self> {
        times.sort_unstable();
        let longest = *times.last().context("nothing was measured")?;
        Ok(Self {
            count: times.len(),
            p50_ms: milliseconds(nearest_rank(&times, 50)),
            p99_ms: milliseconds(nearest_rank(&times, 99)),
            max_ms: milliseconds(longest),
        })
    }
}

/// The smallest of the sorted `times` that is not exceeded by at least `percent` of 100 of them.
fn nearest_rank(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() * percent).div_ceil(100).max(1) - 1]
}

/// The time in milliseconds.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(milliseconds: impl Iterator<Item = u64>) -> Percentiles {
        Percentiles::of(milliseconds.map(Duration::from_millis).collect()).unwrap()
    }

    #[test]
    fn percentiles_are_of_nearest_rank_whatever_the_order() {
        let hundred = of((1..=100).rev());
        assert_eq!((hundred.p50_ms, hundred.p99_ms, hundred.max_ms), (50.0, 99.0, 100.0));
        let three = of([3, 1, 2].into_iter());
        assert_eq!((three.count, three.p50_ms, three.p99_ms), (3, 2.0, 3.0));
        let one = of([7].into_iter());
        assert_eq!((one.p50_ms, one.p99_ms, one.max_ms), (7.0, 7.0, 7.0));
    }

    #[test]
    fn nothing_measured_is_no_figure() {
        assert!(Percentiles::of(Vec::new()).is_err());
    }
}
