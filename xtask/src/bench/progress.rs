//! What is on screen meanwhile: where it is, and how much time is left, by what the steps so far have taken.
use std::time::{Duration, Instant};

/// Of a known number of steps.
pub(super) struct Progress {
    started: Instant,
    steps: usize,
    done: usize,
}

impl Progress {
    /// Begins.
    pub(super) fn new(steps: usize) -> Self {
        Self { started: Instant::now(), steps, done: 0 }
    }

    /// One more step is done; `what` comes next.
    pub(super) fn step(&mut self, what: &str) {
        let left = left(self.started.elapsed(), self.done, self.steps);
        let left = left.map_or(String::new(), |left| format!(", {} s left", left.as_secs()));
        self.done += 1;
        eprintln!("[{}/{}{left}] {what}", self.done, self.steps);
    }
}

fn left(elapsed: Duration, done: usize, steps: usize) -> Option<Duration> {
    let each = elapsed.checked_div(done.try_into().ok()?)?;
    Some(each * u32::try_from(steps.saturating_sub(done)).ok()?)
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
