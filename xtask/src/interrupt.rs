//! Whether Ctrl-C or another signal asks this process to end, so that whoever started something can end it in order.
use std::{
    process::exit,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};

static CAME: AtomicBool = AtomicBool::new(false);

/// From now on these signals end nothing by themselves; a second one does. To be called before any thread is started:
/// those that follow inherit that they do not get the signals. Programs that are started get them as ever.
pub(crate) fn watch() -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("block signals")?;
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if CAME.swap(true, Ordering::SeqCst) {
                exit(128 + signal as i32);
            }
            eprintln!("{signal}: ending what runs (once more: at once)");
        }
    });
    Ok(())
}

/// Whether one has come.
pub(crate) fn came() -> bool {
    CAME.load(Ordering::SeqCst)
}
