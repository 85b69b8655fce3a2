//! Errors about the folders in which an agent keeps what outlives it.
use std::{fmt, path::Path};

use anyhow::{Error, anyhow};

/// The error when `verb` failed for the file at `path`.
pub(super) fn failed(verb: &str, path: &Path, said: impl fmt::Display) -> Error {
    anyhow!("{verb} {}: {said}; --state-dir and --bpf-root name other folders", path.display())
}
