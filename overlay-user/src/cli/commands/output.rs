//! What commands print, and how they end.
use std::{
    fmt::Display,
    io::{self, Write as _},
};

use anyhow::{Context as _, Result};

/// How a command ended when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Exit code 0.
    Done,
    /// Exit code 3: `overlay check` found something that will not work.
    Problems,
}

/// Prints one line or several. Whoever reads them may have seen enough and closed the pipe (`| head`). The rest then needs no
/// reader, and this is no failure.
pub(super) fn say(text: impl Display) -> Result<()> {
    let text = text.to_string();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(io::stdout(), "{text}{end}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}
