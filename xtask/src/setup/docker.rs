//! A real Docker for the lab's hosts, unpacked below target/docker. Installed, it would start a daemon of the machine's
//! own, and alter its packet filter.
use std::{env, ffi::OsString, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Progress, apt};
use crate::project;

/// For people whose machine set-up cannot change.
pub(super) const BY_HAND: &str = "\n  docker: nothing to install; on Debian 12 `cargo xtask setup` downloads and unpacks it (it needs apt-get)";

/// The daemon and all it starts, an init for it, and what the lab's image is made of.
const PACKAGES: &[&str] = &["docker.io", "containerd", "runc", "tini", "busybox-static"];

/// Where they are.
#[derive(Clone, Debug)]
pub struct Tools(PathBuf);

fn folder() -> PathBuf {
    project::target().join("docker")
}

fn mark() -> PathBuf {
    folder().join("ready")
}

/// Sees to it that Docker is there.
pub(super) fn provide(progress: &Progress) -> Result<()> {
    if mark().exists() {
        return Ok(());
    }
    progress.say("Docker is missing: the lab's hosts run real daemons");
    apt::unpack(PACKAGES, &folder(), progress)?;
    fs::write(mark(), "").with_context(|| format!("write {}", mark().display()))
}

impl Tools {
    /// What `cargo xtask setup` unpacked.
    pub fn find() -> Result<Self> {
        if !mark().exists() {
            bail!("there is no Docker below {}: `cargo xtask setup` unpacks it", folder().display());
        }
        Ok(Self(folder()))
    }

    /// `PATH` for its programs, and for those they start: iptables among others.
    pub fn path(&self) -> Result<OsString> {
        let own = ["usr/sbin", "usr/bin"].map(|part| self.0.join(part));
        let system = env::var_os("PATH").unwrap_or_default();
        let system: Vec<_> = env::split_paths(&system).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
        env::join_paths(own.into_iter().chain(system)).context("a folder's name with a colon in it")
    }

    /// `LD_LIBRARY_PATH`: libraries that the system lacked were unpacked, too.
    pub fn libraries(&self) -> Result<OsString> {
        let folders = ["usr/lib", "lib"].map(|part| self.0.join(part).join("x86_64-linux-gnu"));
        env::join_paths(folders).context("a folder's name with a colon in it")
    }

    /// busybox, linked statically.
    pub fn busybox(&self) -> PathBuf {
        self.0.join("bin/busybox")
    }
}
