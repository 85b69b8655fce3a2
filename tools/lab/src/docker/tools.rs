//! The programs of Docker, as set-up unpacked them.
use std::{env, ffi::OsString, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::project::docker::{folder, mark};

/// The folder that holds Docker's programs.
#[derive(Clone, Debug)]
pub struct Tools(PathBuf);

impl Tools {
    /// Finds the programs that `cargo xtask setup` has unpacked.
    pub fn find() -> Result<Self> {
        if !mark().exists() {
            bail!("there is no Docker below {}: `cargo xtask setup` unpacks it", folder().display());
        }
        Ok(Self(folder()))
    }

    /// A `PATH` with these programs, and with the folders of those that they start, such as iptables.
    pub fn path(&self) -> Result<OsString> {
        let own = ["usr/sbin", "usr/bin"].map(|part| self.0.join(part));
        let system = env::var_os("PATH").unwrap_or_default();
        let system: Vec<_> = env::split_paths(&system).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
        env::join_paths(own.into_iter().chain(system)).context("a folder's name with a colon in it")
    }

    /// busybox, linked statically.
    pub fn busybox(&self) -> PathBuf {
        self.0.join("bin/busybox")
    }
}
