//! A bare Debian, made by debootstrap once and copied for every run: apt and what it needs, no package lists, no archives,
//! as in the images that containers start from.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use overlay_project::command;

use super::leftovers::remove_tree;
use crate::setup::{apt, progress::Progress};

/// The release that the README names.
pub(super) const SUITE: &str = "bookworm";

/// Makes it below `folder`, unless it is there, and returns its folder.
pub(super) fn provide(folder: &Path, progress: &Progress) -> Result<PathBuf> {
    let base = folder.join(format!("base-{SUITE}"));
    if base.exists() {
        return Ok(base);
    }
    let mirror = apt::mirror().context("apt names no mirror of Debian: run `apt-get update`")?;
    progress.say(&format!("making a bare {SUITE} with debootstrap, from {mirror}"));
    let half = folder.join("base-half-made");
    remove_tree(&half)?;
    fs::create_dir(&half)?;
    bootstrap(&half, &mirror)?;
    for lists in ["var/lib/apt/lists", "var/cache/apt/archives"] {
        let lists = half.join(lists);
        fs::remove_dir_all(&lists).with_context(|| format!("remove {}", lists.display()))?;
        fs::create_dir_all(lists.join("partial"))?;
    }
    fs::rename(&half, &base).with_context(|| format!("put {}", base.display()))?;
    Ok(base)
}

/// In a mount namespace of its own, as debootstrap mounts what it would leave there if it were interrupted.
fn bootstrap(root: &Path, mirror: &str) -> Result<()> {
    // A name without the spaces that our own folder may have.
    let place = tempfile::tempdir().context("create a folder")?;
    let script = "mount --bind \"$1\" \"$2\" && exec debootstrap --variant=minbase \"$3\" \"$2\" \"$4\"";
    let mut debootstrap = Command::new("unshare");
    debootstrap.args(["--mount", "sh", "-c", script, "sh"]).arg(root).arg(place.path()).args([SUITE, mirror]);
    // debootstrap knows of proxies by variables alone.
    for scheme in ["http", "https"] {
        let variable = format!("{scheme}_proxy");
        let proxy = apt::setting(&format!("Acquire::{scheme}::Proxy"))?;
        if let Some(proxy) = proxy.filter(|_| std::env::var_os(&variable).is_none()) {
            debootstrap.env(variable, proxy);
        }
    }
    command::output(&mut debootstrap).map(drop)
}
