//! Whether Ctrl-C or another signal asks this process to end, so that whoever started something can end it in order.
use std::{
    process::exit,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

static CAME: AtomicBool = AtomicBool::new(false);

/// From now on these signals end nothing by themselves; a second one does.
///
/// The signals are handled, and not blocked: a program that we start would inherit the block, so that tests could no longer end
/// what they start by a signal. A handler does not survive the start of a program, which gets the signals as ever.
pub(crate) fn watch() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("handle signals")?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if CAME.swap(true, Ordering::SeqCst) {
                exit(128 + signal);
            }
            eprintln!("signal {signal}: ending what runs (once more: at once)");
        }
    });
    Ok(())
}

/// Whether one has come.
pub(crate) fn came() -> bool {
    CAME.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_program_that_is_started_gets_the_signals() {
        watch().unwrap();
        // The shell would outlive a blocked or an ignored signal, and end well.
        for signal in ["INT", "TERM", "HUP"] {
            let ended = Command::new("sh").args(["-c", &format!("kill -{signal} $$")]).status().unwrap();
            assert!(!ended.success(), "SIG{signal}");
        }
    }
}
