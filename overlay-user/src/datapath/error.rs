//! Why the data path could not do something, and what the kernel said.
use std::io;

use aya::maps::MapError;
use nix::errno::Errno;

/// What the loop branches on.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The interface went away between decision and change: a link event will follow.
    #[error("interface {0} is gone")]
    Gone(u32),
    /// The kernel refuses.
    #[error("{action}: {detail}")]
    Failed {
        /// Verb and object, lower case: `attach overlay_encap to veth12`.
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
            // Some errors repeat their cause's text in their own.
            if !detail.contains(&text) {
                detail = format!("{detail}: {text}");
            }
            cause = error.source();
        }
        Self::Failed { action: action.into(), detail }
    }

    /// A table that takes no more entries, and what to do about it.
    pub(super) fn full(table: &str, capacity: u32) -> Self {
        let remedy = match table {
            "peers" => "`overlay down`, then start the agent with a larger --max-peers",
            _ => "it has room for every address of the subnet, up to 65,536: use a smaller subnet",
        };
        Self::missing(format!("the table of {table} is full ({capacity} entries)"), remedy)
    }

    /// Something that should be there and is not.
    pub fn missing(action: impl Into<String>, what: &str) -> Self {
        Self::Failed { action: action.into(), detail: what.into() }
    }
}

/// The number of the system call that failed, however deep it stands among the causes.
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

/// The outcome of a removal from a map. An entry that is not there any more is as good as removed.
pub(super) fn removed(outcome: Result<(), MapError>) -> Result<(), MapError> {
    match outcome {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if errno(&error) == Some(Errno::ENOENT) => Ok(()),
        other => other,
    }
}
