//! What is said when the system refuses something in the folders of what outlives an agent.
use std::{fmt, path::Path};

use anyhow::{Error, anyhow};

/// `verb` could not be done to what is at `path`, since the system says so.
pub(super) fn failed(verb: &str, path: &Path, said: impl fmt::Display) -> Error {
    anyhow!("{verb} {}: {said}; --state-dir and --bpf-root name other folders", path.display())
}
