//! Pauses between tries, drawn at random: whoever lost the same thing at the same moment must not ask for it again together.
use std::time::Duration;

/// A pause after so many failures in a row before the last one: any time up to [`limit`].
pub fn drawn(first: Duration, failures: u32, longest: Duration) -> Duration {
    limit(first, failures, longest).mul_f64(rand::random())
}

/// The limit of a pause: `first` at first, doubled with each failure in a row, and never more than `longest`.
pub fn limit(first: Duration, failures: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_doubles_up_to_the_longest_and_pauses_are_drawn_below_it() {
        let (first, longest) = (Duration::from_millis(500), Duration::from_secs(5));
        for (failures, millis) in [(0, 500), (1, 1000), (2, 2000), (3, 4000), (4, 5000), (u32::MAX, 5000)] {
            let limit = limit(first, failures, longest);
            assert_eq!(limit, Duration::from_millis(millis));
            let drawn: Vec<_> = (0..1000).map(|_| drawn(first, failures, longest)).collect();
            assert!(drawn.iter().all(|pause| *pause <= limit));
            assert!(drawn.iter().any(|pause| *pause < limit / 8), "from zero on");
            assert!(drawn.iter().any(|pause| *pause > limit / 8 * 7), "up to the limit");
        }
    }
}
