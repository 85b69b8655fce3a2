//! Moments that are drawn nearly as those of a Poisson process, which events of hosts and people are who know nothing of each other:
//! only the longest pauses are cut short.
use std::time::Duration;

use overlay_lab::random::Random;

/// The time until the next event, if they come this far apart on average. It is exponentially distributed, but never more than four
/// times the mean, so that short runs see each kind of event.
pub(super) fn pause(mean: Duration, random: &mut Random) -> Duration {
    mean.mul_f64((-(1.0 - random.share()).ln()).min(4.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_have_the_mean_that_was_asked_for_and_no_end_beyond_four_of_it() {
        let mut random = Random::new(7);
        let pauses: Vec<_> =
            (0..5000).map(|_| pause(Duration::from_secs(1), &mut random).as_secs_f64()).collect();
        let mean = pauses.iter().sum::<f64>() / 5000.0;
        // Cutting at four takes 2 % off.
        assert!((0.93..1.03).contains(&mean), "{mean}");
        assert!(pauses.iter().all(|pause| *pause <= 4.0));
    }
}
