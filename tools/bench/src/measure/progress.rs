//! What is shown while the benchmark runs: the present step, and the time that is left according to the samples so far.
use std::time::{Duration, Instant};

/// The progress through a known number of samples.
pub(super) struct Progress {
    started: Instant,
    samples: usize,
    done: usize,
}

impl Progress {
    /// Starts counting.
    pub(super) fn new(samples: usize) -> Self {
        Self { started: Instant::now(), samples, done: 0 }
    }

    /// Says that `what` comes next, and takes that many samples.
    pub(super) fn next(&mut self, what: &str, samples: usize) {
        let left = left(self.started.elapsed(), self.done, self.samples);
        let left = left.map_or(String::new(), |left| format!(", {} s left", left.as_secs()));
        eprintln!("[{:3} %{left}] {what}", self.done * 100 / self.samples.max(1));
        self.done += samples;
    }
}

fn left(elapsed: Duration, done: usize, all: usize) -> Option<Duration> {
    let each = elapsed.checked_div(done.try_into().ok()?)?;
    Some(each * u32::try_from(all.saturating_sub(done)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_takes_as_long_as_what_was() {
        assert_eq!(left(Duration::from_secs(10), 2, 6), Some(Duration::from_secs(20)));
        assert_eq!(left(Duration::ZERO, 0, 6), None);
        assert_eq!(left(Duration::from_secs(6), 6, 6), Some(Duration::ZERO));
    }
}
