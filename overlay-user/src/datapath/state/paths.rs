//! The folders of one network on this host.
use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use nix::mount::{MsFlags, mount};
use overlay_common::ABI;

use super::error::failed;
use crate::datapath::bpffs::{self, is_bpffs};

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
            if !is_hosts_mount_namespace() {
                bail!(
                    "there is no bpf filesystem at {DEFAULT_BPF_ROOT}, and this process is in a mount namespace of its own (a \
                     container, a unit with mounts of its own, or `ip netns exec`): one that it mounted would end with \
                     that namespace, and with it the programs that must go on without an agent. Mount the host's there: \
                     `mount --bind /sys/fs/bpf` before the namespace is made, or `-v /sys/fs/bpf:/sys/fs/bpf` for a \
                     container"
                );
            }
            let mounted = mount(Some("bpf"), DEFAULT_BPF_ROOT, Some("bpf"), MsFlags::empty(), None::<&str>);
            match mounted {
                Ok(()) => log::info!("there was no bpf filesystem at {DEFAULT_BPF_ROOT}: mounted one"),
                Err(error) => log::warn!("mount bpffs on {DEFAULT_BPF_ROOT}: {error}"),
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

    /// The number of the bpf file system below which this network is pinned.
    pub fn bpffs(&self) -> Option<u64> {
        bpffs::device(&self.bpf_root)
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

    /// The file of the mass-delete guard, which [`crate::agent::origin`] keeps, too.
    pub fn removals_path(&self) -> PathBuf {
        self.state.join("removals")
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

/// Whether this process is in the mount namespace of the host's first process, where a mount lasts until the host ends. From
/// inside of another process namespace, whose first process is another one, nothing is seen of the host's.
fn is_hosts_mount_namespace() -> bool {
    /// The number that the kernel gives to the first process namespace of all (`PROC_PID_INIT_INO`).
    const FIRST: u64 = 0xeffffffc;
    let number = |path: &str| fs::metadata(path).ok().map(|found| found.ino());
    number("/proc/self/ns/pid") == Some(FIRST)
        && number("/proc/self/ns/mnt").is_some()
        && number("/proc/self/ns/mnt") == number("/proc/1/ns/mnt")
}
