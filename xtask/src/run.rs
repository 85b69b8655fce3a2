//! `cargo xtask run`: builds the agent and starts it on this machine.
use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};
use clap::Args;
use overlay_project::project;

use crate::setup::{For, provide};

#[derive(Args)]
pub(crate) struct RunOptions {
    /// Arguments of `overlay agent`, after `--`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &RunOptions) -> Result<()> {
    provide(&[For::Run])?;
    let overlay = project::build_overlay()?;
    // The agent takes this process's place, so that signals reach it.
    let error = Command::new(&overlay).arg("agent").args(&options.arguments).exec();
    Err(error).with_context(|| format!("start {}", overlay.display()))
}
