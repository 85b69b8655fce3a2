//! Passes on the programs' log lines. The programs log numbers, since they have no space for text, and this puts them into
//! words.
use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record, warn};
use overlay_common::{Hook, Reason};
use tokio::time::sleep;

/// How often lines are read. They tell of rare events, which the counters show at once.
const LOOK: Duration = Duration::from_millis(500);

/// The log of the programs that are loaded. Each loaded object has a log of its own.
#[derive(Clone, Default)]
pub struct ProgramsLog(Arc<Mutex<Option<EbpfLogger<Words>>>>);

impl ProgramsLog {
    /// From now on, reads the log of these programs, after what is left in the log of the last ones.
    pub(super) fn read_from(&self, ebpf: &mut Ebpf) {
        self.flush();
        let logger = EbpfLogger::init_with_logger(ebpf, Words);
        // The counters say the same, so a log that cannot be read is no failure.
        let logger = logger.inspect_err(|error| warn!("the programs' log cannot be read: {error}")).ok();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = logger;
    }

    /// Reads lines until it is dropped. The programs write at most one line per reason, CPU and second.
    pub async fn follow(self) -> Infallible {
        loop {
            self.flush();
            sleep(LOOK).await;
        }
    }

    fn flush(&self) {
        if let Some(logger) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            logger.flush();
        }
    }
}

/// Passes lines on to the process's logger, with hook and reason in words.
struct Words;

impl Log for Words {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        log::logger().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        match translate(&text) {
            Some((hook, reason)) => log::warn!(
                "{}: {} (a packet was dropped; `overlay status` counts them all, lines come at most once a second)",
                hook.as_str(),
                reason.as_str()
            ),
            None => log::warn!("{text}"),
        }
    }

    fn flush(&self) {
        log::logger().flush();
    }
}

fn translate(text: &str) -> Option<(Hook, Reason)> {
    let (hook, reason) = text.strip_prefix("drop ")?.split_once(' ')?;
    let (hook, reason): (u32, u32) = (hook.parse().ok()?, reason.parse().ok()?);
    let hook = Hook::ALL.iter().find(|known| **known as u32 == hook)?;
    let reason = Reason::ALL.iter().find(|known| **known as u32 == reason)?;
    Some((*hook, *reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_words_and_the_rest_stays() {
        let text = format!("drop {} {}", Hook::Decap as u32, Reason::UnknownPeer as u32);
        assert_eq!(translate(&text), Some((Hook::Decap, Reason::UnknownPeer)));
        for other in ["drop 1", "drop 99 1", "drop 1 99", "the table is full", ""] {
            assert_eq!(translate(other), None, "{other}");
        }
    }
}
