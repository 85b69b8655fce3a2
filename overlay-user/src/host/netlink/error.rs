//! What the kernel said to a request that failed.
use std::io;

use nix::errno::Errno;

/// The kernel's answer to a request that failed.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {detail}")]
pub struct NetlinkError {
    /// What was tried, as verb and object in lower case: `list links`.
    pub action: String,
    /// What the kernel said.
    pub detail: String,
    /// The kernel's error number, or `UnknownErrno` if it answered something else.
    pub errno: Errno,
}

impl NetlinkError {
    pub(super) fn new(action: impl Into<String>, error: rtnetlink::Error) -> Self {
        let (detail, errno) = match error {
            rtnetlink::Error::NetlinkError(message) => {
                (message.to_io().to_string(), Errno::from_raw(message.raw_code().abs()))
            }
            other => (other.to_string(), Errno::UnknownErrno),
        };
        Self { action: action.into(), detail, errno }
    }

    /// The error for a request that makes no sense, such as a route whose addresses are of two families.
    pub(super) fn invalid(action: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self { action: action.into(), detail: why.to_string(), errno: Errno::EINVAL }
    }

    /// The error for a stream of events that ended.
    pub fn events(error: &io::Error) -> Self {
        Self::io("read the kernel's events", error)
    }

    pub(super) fn io(action: impl Into<String>, error: &io::Error) -> Self {
        Self {
            action: action.into(),
            detail: error
                .raw_os_error()
                .map_or_else(|| error.to_string(), |code| Errno::from_raw(code).desc().into()),
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        }
    }
}
