//! Whether a signal is ending this process. If so, nothing new may be built while everything is being removed.
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Remembers that a signal has come.
pub(crate) fn remember() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Whether a signal has come, and everything is being torn down.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Fails once a signal has come, so that nothing is built while everything is being removed.
pub(crate) fn check_interrupted() -> Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    Ok(())
}
