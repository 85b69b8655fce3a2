//! When the queues of this machine's CPUs overflowed, so that they are blamed only for what was lost at that time.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;
use overlay_lab::{join, queue_overflows};

/// How often the counter is read.
const TICK: Duration = Duration::from_millis(200);
/// How far a loss may be from the moment in which an overflow was seen. A packet is lost within milliseconds, but on a busy machine the
/// thread that looks, and the one that notes when it sent, may wait for a CPU.
const NEAR: Duration = Duration::from_secs(3);

/// Frames that found their queue full since the look before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Overflow {
    /// When this was seen.
    pub(super) seen: Instant,
    /// How many.
    pub(super) frames: u64,
}

/// Looks until it is finished.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Overflow>>>,
}

impl Watch {
    pub(super) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut overflows, mut before) = (Vec::new(), queue_overflows()?);
            loop {
                // What came before the end is looked at once more.
                let is_last = stopped.load(Ordering::Relaxed);
                let now = queue_overflows()?;
                if now > before {
                    overflows.push(Overflow { seen: Instant::now(), frames: now - before });
                }
                before = now;
                if is_last {
                    return Ok(overflows);
                }
                thread::sleep(TICK);
            }
        });
        Self { stop, thread }
    }

    /// Ends the looking, and returns what was seen, in the order of time.
    pub(super) fn finish(self) -> Result<Vec<Overflow>> {
        self.stop.store(true, Ordering::Relaxed);
        join(self.thread)
    }
}

/// How many of these losses no overflow near them explains. Each frame of an overflow explains one loss.
pub(super) fn unexplained(losses: &[Instant], overflows: &[Overflow]) -> usize {
    let mut losses = losses.to_vec();
    // Both are in the order of time, so a loss that takes the first overflow near it leaves the later ones to later losses.
    losses.sort();
    let mut overflows = overflows.to_vec();
    let mut missing = losses.len();
    for loss in losses {
        let is_near = |overflow: &&mut Overflow| {
            let earlier = loss.saturating_duration_since(overflow.seen);
            let later = overflow.seen.saturating_duration_since(loss);
            overflow.frames > 0 && earlier.max(later) <= NEAR
        };
        if let Some(overflow) = overflows.iter_mut().find(is_near) {
            overflow.frames -= 1;
            missing -= 1;
        }
    }
    missing
}

#[test]
fn an_overflow_explains_what_was_lost_near_it_and_no_more_than_its_frames() {
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let overflow = |seconds, frames| Overflow { seen: at(seconds), frames };
    let overflows = [overflow(10, 1), overflow(14, 2), overflow(60, 100)];
    assert_eq!(unexplained(&[], &overflows), 0);
    assert_eq!(unexplained(&[at(12), at(8), at(15)], &overflows), 0);
    assert_eq!(unexplained(&[at(12), at(12), at(12), at(12)], &overflows), 1);
    // A hundred frames a minute later explain nothing.
    assert_eq!(unexplained(&[at(20), at(40)], &overflows), 2);
    assert_eq!(unexplained(&[at(57), at(63), at(64)], &overflows), 1);
    assert_eq!(unexplained(&[at(1)], &[]), 1);
}
