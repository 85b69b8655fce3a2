//! What is on screen meanwhile: where it is, and how much time is left, by what the samples so far have taken.
use std::time::{Duration, Instant};

/// Of a known number of samples.
pub(super) struct Progress {
    started: Instant,
    samples: usize,
    done: usize,
}

impl Progress {
    /// Begins.
    pub(super) fn new(samples: usize) -> Self {
        Self { started: Instant::now(), samples, done: 0 }
    }

    /// `what` comes next, that many samples.
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
