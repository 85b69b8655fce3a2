//! A real Docker for the lab's hosts, unpacked below target/docker. Installed, it would start a daemon of the machine's
//! own, and alter its packet filter.
use std::fs;

use anyhow::{Context as _, Result};
use overlay_project::project::docker::{folder, mark};

use super::{Progress, apt};

/// For people whose machine set-up cannot change.
pub(super) const BY_HAND: &str = "\n  docker: nothing to install; on Debian 12 `cargo xtask setup` downloads and unpacks it (it needs apt-get)";

/// The daemon and all it starts, an init for it, and what the lab's image is made of.
const PACKAGES: &[&str] = &["docker.io", "containerd", "runc", "tini", "busybox-static"];

/// Sees to it that Docker is there.
pub(super) fn provide(progress: &Progress) -> Result<()> {
    if mark().exists() {
        return Ok(());
    }
    progress.say("Docker is missing: the lab's hosts run real daemons");
    apt::unpack(PACKAGES, &folder(), progress)?;
    fs::write(mark(), "").with_context(|| format!("write {}", mark().display()))
}
