//! Why the data path could not do something, and what the kernel said.
use std::io;

use aya::maps::MapError;
use nix::errno::Errno;

/// Why a change could not be made. The loop reacts to each of these in its own way.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The interface went away between decision and change. An event about the link will follow.
    #[error("interface {0} is gone")]
    Gone(u32),
    /// The interface is so new that others may still want the place that the programs need there. It is to be tried again soon.
    #[error("interface {0} is new: its packets take the stack for a moment")]
    Early(u32),
    /// The kernel refused the change.
    #[error("{action}: {detail}")]
    Failed {
        /// What was tried, as verb and object in lower case: `attach overlay_encap to veth12`.
        action: String,
        /// What the kernel said.
        detail: String,
    },
}

impl DatapathError {
    /// An error with all its causes in one line.
    pub fn failed(action: impl Into<String>, error: &dyn std::error::Error) -> Self {
        let mut detail = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors repeat the text of their cause in their own text.
            if !detail.contains(&text) {
                detail = format!("{detail}: {text}");
            }
            cause = error.source();
        }
        Self::Failed { action: action.into(), detail }
    }

    /// The error for a table that is full, with what to do about it.
    pub(super) fn full(table: &str, capacity: u32) -> Self {
        let remedy = match table {
            "peers" => "`overlay down`, then start the agent with a larger --max-peers",
            _ => "it has room for every address of the subnet, up to 65,536: use a smaller subnet",
        };
        Self::missing(format!("the table of {table} is full ({capacity} entries)"), remedy)
    }

    /// The error for something that is missing.
    pub fn missing(action: impl Into<String>, what: &str) -> Self {
        Self::Failed { action: action.into(), detail: what.into() }
    }
}

/// Loads a program, again and again while the kernel's verifier says EAGAIN: it stops when a signal for this thread waits
/// (`do_check` in kernel/bpf/verifier.c), and the signal has been seen to by the time the call has failed.
pub(super) fn load_again<E: std::error::Error + 'static>(
    mut load: impl FnMut() -> Result<(), E>,
) -> Result<(), E> {
    /// As often as libbpf tries (`PROG_LOAD_ATTEMPTS`).
    const ATTEMPTS: u32 = 5;
    let mut loaded = load();
    for _ in 1..ATTEMPTS {
        match &loaded {
            Err(error) if errno(error) == Some(Errno::EAGAIN) => loaded = load(),
            _ => break,
        }
    }
    loaded
}

/// The error number of the system call that failed, however deep it is among the causes.
pub(super) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(Errno::from_raw(number));
        }
        source = error.source();
    }
    None
}

/// The result of a removal from a map. An entry that does not exist any more counts as removed.
pub(super) fn removed(outcome: Result<(), MapError>) -> Result<(), MapError> {
    match outcome {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if errno(&error) == Some(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_during_verification_is_no_refusal() {
        for (said, calls, is_loaded) in
            [(Errno::EAGAIN, 3, true), (Errno::EAGAIN, 9, false), (Errno::EACCES, 3, false)]
        {
            let mut left = calls;
            let loaded = load_again(|| {
                left -= 1;
                if left == 0 { Ok(()) } else { Err(io::Error::from(said)) }
            });
            assert_eq!(loaded.is_ok(), is_loaded, "{said}, {calls} calls");
        }
    }
}
