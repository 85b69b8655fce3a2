//! What set-up asks this machine: which commands there are, and whether it may install some.
use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::Result;
use nix::unistd::Uid;
use overlay_project::command;

/// Where `name` is, in PATH or where root's commands live.
pub(crate) fn find_command(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

pub(super) fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Runs a long command quietly; its output appears only in the error.
pub(super) fn quietly(command: &mut Command) -> Result<()> {
    command::output(command.stdin(Stdio::null())).map(drop)
}
