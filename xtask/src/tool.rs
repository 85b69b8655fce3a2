//! Commands that a tool carries out: what the tool needs is set up, the tool is built, and it takes this process's
//! place.
use std::{ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use overlay_project::project;

use crate::setup::{For, provide};

/// A program below `tools/`.
#[derive(Debug)]
pub(crate) struct Tool {
    /// Name of the package and of the program.
    name: &'static str,
    /// What building the tool needs.
    build: For,
    /// Whether what it does itself is measured, unless it is asked for `--quick`.
    is_measured: bool,
}

pub(crate) const LAB: Tool = Tool { name: "overlay-lab", build: For::Tool, is_measured: false };
pub(crate) const FUZZ: Tool = Tool { name: "overlay-fuzz", build: For::Tool, is_measured: false };
pub(crate) const BENCH: Tool = Tool { name: "overlay-bench", build: For::BenchTool, is_measured: false };
/// It links the agent, and needs what that needs.
pub(crate) const SCALE: Tool = Tool { name: "overlay-scale", build: For::Run, is_measured: true };

impl Tool {
    /// Builds the tool, and returns its path.
    pub(crate) fn build(&self) -> Result<PathBuf> {
        // cargo's own messages show the progress.
        project::build(self.name)
    }

    /// Has the tool carry out `command` with these arguments in place of this process, so that signals reach it and its
    /// exit code is ours. It returns only if that fails. For `--help`, nothing is set up but what building the tool
    /// needs.
    pub(crate) fn take_over(&self, command: &str, arguments: &[OsString], what: For) -> Result<()> {
        let has = |word: &str| arguments.iter().any(|argument| argument == word);
        let help = has("--help") || has("-h");
        provide(&[if help { self.build } else { what }])?;
        let measures = what != For::Draw && !help && !has("--quick");
        let program = if self.is_measured && measures {
            project::build_optimised(self.name, self.name)?
        } else {
            self.build()?
        };
        let error = Command::new(&program).arg(command).args(arguments).exec();
        Err(error).with_context(|| format!("start {}", program.display()))
    }
}
