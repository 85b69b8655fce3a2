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

/// The place where bpffs is mounted by convention. The agent mounts it itself only there.
pub const DEFAULT_BPF_ROOT: &str = "/sys/fs/bpf";

/// Name of the folder beside `v<ABI>` in which maps are filled before a network uses them.
pub(super) const FILLING: &str = "filling";

pub(super) const RECORD: &str = "record.json";

/// The folders of one network on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Name of the network, as `--network` gives it.
    pub network: String,
    /// The folder below which everything is pinned. It must be on bpffs.
    pub bpf_root: PathBuf,
    /// `<bpf root>/overlay/v<ABI>/<network>/`, which has the pinned maps and links.
    pub pins: PathBuf,
    /// `<bpf root>/overlay/filling/<network>/`, which has maps while they are filled from those of an older layout.
    pub filling: PathBuf,
    /// `<state dir>/<network>/`, which has the lock and the record.
    pub state: PathBuf,
}

impl Paths {
    /// The folders of `network`. None of them is created by this.
    pub fn new(bpf_root: &Path, state_dir: &Path, network: &str) -> Self {
        Self {
            network: network.to_owned(),
            bpf_root: bpf_root.to_owned(),
            pins: bpf_root.join("overlay").join(format!("v{ABI}")).join(network),
            filling: bpf_root.join("overlay").join(FILLING).join(network),
            state: state_dir.join(network),
        }
    }

    /// Makes sure that bpffs is mounted (and mounts it at its usual place if it is not), and creates the folders.
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

    /// The file of [`crate::agent::origin`].
    pub fn origin_path(&self) -> PathBuf {
        self.state.join("origin")
    }

    /// The file of [`crate::flannel::record`].
    pub fn flannel_path(&self) -> PathBuf {
        self.state.join("flannel.json")
    }

    /// Writes a file and renames it into place. So nobody reads half of it, and the old text stays if the disk is full.
    pub(crate) fn replace(&self, path: &Path, text: &[u8]) -> Result<()> {
        let partial = path.with_extension("new");
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, path))
            .map_err(|error| failed("write", path, error))
    }
}

fn is_bpffs(path: &Path) -> bool {
    // If the folder does not exist yet, it will be on the same file system as its parent.
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    existing.is_some_and(|path| statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC))
}
