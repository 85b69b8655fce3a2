//! Whether a signal ends this process: then nothing may be built on what is being taken away.
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A signal has come.
pub(crate) fn note() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Whether a signal has come, and everything is being torn down.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Fails once a signal has come: what is being torn down must not be built on.
pub(crate) fn check_interrupted() -> Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    Ok(())
}
