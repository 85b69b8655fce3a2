//! The folders of one network on this host.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use overlay_common::ABI;

use super::error::failed;

/// Where bpffs is mounted by convention; the only place we mount it ourselves.
pub const DEFAULT_BPF_ROOT: &str = "/sys/fs/bpf";

/// Folder beside `v<ABI>` in which maps are filled before they are anybody's.
pub(super) const FILLING: &str = "filling";

pub(super) const RECORD: &str = "record.json";

/// The folders of one network on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Name of the network, as `--network` gives it.
    pub network: String,
    /// Below which everything is pinned; must be on bpffs.
    pub bpf_root: PathBuf,
    /// `<bpf root>/overlay/v<ABI>/<network>/`: maps and links.
    pub pins: PathBuf,
    /// `<bpf root>/overlay/filling/<network>/`: maps that are filled from an older layout's.
    pub filling: PathBuf,
    /// `<state dir>/<network>/`: lock and record.
    pub state: PathBuf,
}

impl Paths {
    /// The folders of `network`; nothing is created.
    pub fn new(bpf_root: &Path, state_dir: &Path, network: &str) -> Self {
        Self {
            network: network.to_owned(),
            bpf_root: bpf_root.to_owned(),
            pins: bpf_root.join("overlay").join(format!("v{ABI}")).join(network),
            filling: bpf_root.join("overlay").join(FILLING).join(network),
            state: state_dir.join(network),
        }
    }

    /// Makes sure that bpffs is there (mounting it at its usual place if need be), and creates the folders.
    pub fn create(&self) -> Result<()> {
        if !is_bpffs(&self.bpf_root) && self.bpf_root == Path::new(DEFAULT_BPF_ROOT) {
            let mounted = mount(Some("bpf"), DEFAULT_BPF_ROOT, Some("bpf"), MsFlags::empty(), None::<&str>);
            if let Err(error) = mounted {
                log::warn!("mount bpffs on {DEFAULT_BPF_ROOT}: {error}");
            }
        }
        if !is_bpffs(&self.bpf_root) {
            bail!(
                "{} is not on a bpf filesystem: run `mount -t bpf bpf /sys/fs/bpf`, or give a --bpf-root that is on one",
                self.bpf_root.display()
            );
        }
        for folder in [&self.pins, &self.state] {
            fs::create_dir_all(folder).map_err(|error| failed("create", folder, error))?;
        }
        Ok(())
    }

    pub(super) fn lock_path(&self) -> PathBuf {
        self.state.join("lock")
    }

    pub(super) fn record_path(&self) -> PathBuf {
        self.state.join(RECORD)
    }

    /// Where [`crate::agent::origin`] is noted.
    pub fn origin_path(&self) -> PathBuf {
        self.state.join("origin")
    }

    /// Where [`crate::flannel::record`] is noted.
    pub fn flannel_path(&self) -> PathBuf {
        self.state.join("flannel.json")
    }

    /// By rename: nobody reads half of it, and a full disk leaves the old text.
    pub(crate) fn replace(&self, path: &Path, text: &[u8]) -> Result<()> {
        let partial = path.with_extension("new");
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, path))
            .map_err(|error| failed("write", path, error))
    }
}

fn is_bpffs(path: &Path) -> bool {
    // A root that does not exist yet will be made where its parent is.
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    existing.is_some_and(|path| statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC))
}
