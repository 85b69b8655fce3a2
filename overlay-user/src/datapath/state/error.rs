//! The errors of the folders in which an agent keeps what outlives it.
use std::{fmt, path::Path};

use anyhow::{Error, anyhow};

/// `verb` could not be done to what is at `path`, since the system says so.
pub(super) fn failed(verb: &str, path: &Path, said: impl fmt::Display) -> Error {
    anyhow!("{verb} {}: {said}; --state-dir and --bpf-root name other folders", path.display())
}
