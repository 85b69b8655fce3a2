//! What outlives an agent on this host: where it is pinned, who may touch it, and to whom it belongs.
mod layouts;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    net::Ipv4Addr,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use ipnet::Ipv4Net;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use overlay_common::ABI;
use serde::{Deserialize, Serialize};

use crate::model::network::NetworkConfig;

/// Where bpffs is mounted by convention; the only place we mount it ourselves.
pub const DEFAULT_BPF_ROOT: &str = "/sys/fs/bpf";

const RECORD: &str = "record.json";

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

/// To whom pins belong. They are only adopted by the very same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Inode of the network namespace: interface indexes are meaningless in another.
    pub netns: u64,
    /// Changes with every boot, and pins do not survive one.
    pub boot_id: String,
    /// The host's identity in the store.
    pub public_ip: Ipv4Addr,
    /// The subnet the host leased.
    pub subnet: Ipv4Net,
    /// Version of the map layouts.
    pub abi: u32,
    /// The programs carry packets themselves; without `--fast-path off`, that is. Another choice is no other host.
    #[serde(default = "yes")]
    pub fast_path: bool,
    /// How packets travel between hosts, as the agent that started last was told: flannel's name of the backend.
    #[serde(default = "vxlan")]
    pub mode: String,
    /// Name of the tunnel device: which to remove, and which no other network may have.
    #[serde(default)]
    pub device: Option<String>,
    /// The file that tells this host's subnet, which no other network may write.
    #[serde(default)]
    pub subnet_file: Option<PathBuf>,
}

fn vxlan() -> String {
    "vxlan".to_owned()
}

fn yes() -> bool {
    true
}

/// What an agent that starts finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// Nothing of ours, or leftovers from before a boot, now removed.
    Fresh,
    /// Pins of this very host: adopt them.
    Adopt,
}

/// Why state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The root is not on bpffs.
    #[error(
        "{0} is not on a bpf filesystem: run `mount -t bpf bpf /sys/fs/bpf`, or give a --bpf-root that is on one"
    )]
    NotBpffs(PathBuf),
    /// Another agent runs.
    #[error(
        "another agent (pid {pid}) runs network {network} here: it holds {lock}. Stop it first (`kill {pid}`), or give this one its own --network or --state-dir"
    )]
    Locked {
        /// The network's name.
        network: String,
        /// Process id of the other agent, `?` if it did not say.
        pid: String,
        /// Path of the lock.
        lock: String,
    },
    /// The pins are another host's.
    #[error(
        "the pins in {pins} belong to {owner}, not to {claimant}: give this host its own --bpf-root and --state-dir, or remove them with `overlay down --network {network}` (same --bpf-root and --state-dir)"
    )]
    Foreign {
        /// The folder.
        pins: PathBuf,
        /// Whose they are.
        owner: String,
        /// Who asks.
        claimant: String,
        /// The network's name.
        network: String,
    },
    /// Another network of this host has it.
    #[error(
        "{what} is network {other}'s on this host: give network {network} its own {option}, or end the other with \
         `overlay down --network {other}`"
    )]
    Shared {
        /// The device or the file.
        what: String,
        /// The other network's name.
        other: String,
        /// The network's name.
        network: String,
        /// What names another one.
        option: &'static str,
    },
    /// The config has no place any more for what runs here.
    #[error(
        "the network's config has no subnet {subnet} any more, with which network {network} runs on this host: traffic goes \
         on. Put the config back, or let the host move: `overlay down --network {network}`, then start the agent again"
    )]
    Moved {
        /// The subnet of the host's pins and containers.
        subnet: Ipv4Net,
        /// The network's name.
        network: String,
    },
    /// Pins of another version's agent, or of somebody else.
    #[error("{}", layouts::unknown(pins, network))]
    UnknownLayout {
        /// Their folder.
        pins: PathBuf,
        /// The network's name.
        network: String,
    },
    /// The system refuses.
    #[error("{action}: {detail}; --state-dir and --bpf-root name other folders")]
    Io {
        /// Verb and object, lower case.
        action: String,
        /// What it said.
        detail: io::Error,
    },
}

impl StateError {
    fn io(verb: &str, path: &Path, detail: impl Into<io::Error>) -> Self {
        Self::Io { action: format!("{verb} {}", path.display()), detail: detail.into() }
    }
}

impl Paths {
    /// The folders of `network`; nothing is created.
    pub fn new(bpf_root: &Path, state_dir: &Path, network: &str) -> Self {
        Self {
            network: network.to_owned(),
            bpf_root: bpf_root.to_owned(),
            pins: bpf_root.join("overlay").join(format!("v{ABI}")).join(network),
            filling: bpf_root.join("overlay").join(layouts::FILLING).join(network),
            state: state_dir.join(network),
        }
    }

    /// Makes sure that bpffs is there (mounting it at its usual place if need be), and creates the folders.
    pub fn create(&self) -> Result<(), StateError> {
        if !is_bpffs(&self.bpf_root) && self.bpf_root == Path::new(DEFAULT_BPF_ROOT) {
            let mounted = mount(Some("bpf"), DEFAULT_BPF_ROOT, Some("bpf"), MsFlags::empty(), None::<&str>);
            if let Err(error) = mounted {
                log::warn!("mount bpffs on {DEFAULT_BPF_ROOT}: {error}");
            }
        }
        if !is_bpffs(&self.bpf_root) {
            return Err(StateError::NotBpffs(self.bpf_root.clone()));
        }
        for folder in [&self.pins, &self.state] {
            fs::create_dir_all(folder).map_err(|error| StateError::io("create", folder, error))?;
        }
        Ok(())
    }

    /// Takes the network for this process until the lock is dropped. The folders must exist.
    pub fn lock(&self) -> Result<Lock, StateError> {
        let path = self.lock_path();
        let failed = |error| StateError::io("lock", &path, error);
        loop {
            // Root's alone: whoever can open it can hold the lock, and keep agents from starting.
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(failed)?;
            file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut lock) => {
                    // Whoever held it before may have removed the file (see `remove`), and another may have made it anew.
                    let locked = lock.metadata().map_err(failed)?.ino();
                    if fs::metadata(&path).is_ok_and(|now| now.ino() == locked) {
                        lock.set_len(0).map_err(failed)?;
                        lock.rewind().map_err(failed)?;
                        writeln!(*lock, "{}", std::process::id()).map_err(failed)?;
                        return Ok(Lock { _file: lock });
                    }
                }
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    return Err(StateError::Locked {
                        network: self.network.clone(),
                        pid: holder(&mut file),
                        lock: path.display().to_string(),
                    });
                }
                Err((_, error)) => return Err(failed(error.into())),
            }
        }
    }

    /// Decides whether the pins here are ours, and writes the record if there was none. Call it with the lock held and
    /// before anything is pinned, so that there are never pins without a record.
    pub fn adopt(&self, current: &Record) -> Result<Adoption, StateError> {
        let foreign = |owner| self.foreign(owner, current);
        match self.record()? {
            Some(found) if found.is_same_host(current) => {
                self.write(current)?;
                return Ok(Adoption::Adopt);
            }
            // Interface indexes and namespace inodes of an earlier boot mean nothing now.
            Some(found) if found.boot_id != current.boot_id => self.clear()?,
            Some(found) => return Err(foreign(found.owner())),
            None if layouts::has_pins(&self.pins) || !self.older()?.is_empty() => {
                return Err(foreign(format!("a host whose record is not in {}", self.state.display())));
            }
            None => {}
        }
        self.write(current)?;
        Ok(Adoption::Fresh)
    }

    /// Refuses pins that are another host's whatever subnet the store will give this one: before a lease is taken for
    /// nothing, which would be this host's from then on.
    pub fn refuse_foreign(&self, public_ip: Ipv4Addr) -> Result<(), StateError> {
        let Some(found) = self.record()? else {
            return Ok(());
        };
        let current = Record::current(public_ip, found.subnet)?;
        if found.is_same_host(&current) || found.boot_id != current.boot_id {
            return Ok(());
        }
        Err(self.foreign(found.owner(), &current))
    }

    /// Refuses a device that another network of this host has, in this boot and network namespace: two agents would undo each
    /// other's work for ever.
    pub fn refuse_shared_device(&self, device: &str) -> Result<(), StateError> {
        self.refuse_shared(format!("interface {device}"), "--device", |other| {
            other.device.as_deref() == Some(device)
        })
    }

    /// The same for the file that tells the subnet.
    pub fn refuse_shared_file(&self, subnet_file: &Path) -> Result<(), StateError> {
        self.refuse_shared(subnet_file.display().to_string(), "--subnet-file", |other| {
            other.subnet_file.as_deref() == Some(subnet_file)
        })
    }

    fn refuse_shared(
        &self,
        what: String,
        option: &'static str,
        has_it: impl Fn(&Record) -> bool,
    ) -> Result<(), StateError> {
        match self.others()?.into_iter().find(|(_, record)| has_it(record)) {
            Some((other, _)) => {
                Err(StateError::Shared { what, other, network: self.network.clone(), option })
            }
            None => Ok(()),
        }
    }

    /// Refuses a config that what runs here has no place in, before the lease is given back which its containers live on.
    pub fn refuse_moved(&self, public_ip: Ipv4Addr, config: &NetworkConfig) -> Result<(), StateError> {
        let Some(found) = self.record()? else { return Ok(()) };
        let is_here = found.is_same_host(&Record::current(public_ip, found.subnet)?);
        if is_here && !config.fits(found.subnet) {
            return Err(StateError::Moved { subnet: found.subnet, network: self.network.clone() });
        }
        Ok(())
    }

    /// Records of this host's other networks, by name: of this boot, this network namespace, and the same state folder.
    fn others(&self) -> Result<Vec<(String, Record)>, StateError> {
        let folder = self.state.parent().unwrap_or(&self.state);
        let failed = |error| StateError::io("list", folder, error);
        let here = Record::current(Ipv4Addr::UNSPECIFIED, Ipv4Net::default())?;
        let mut others = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let state = entry.map_err(failed)?.path();
            let name = state.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let text = fs::read(state.join(RECORD)).unwrap_or_default();
            // One that cannot be read is its own network's trouble.
            if let Ok(record) = serde_json::from_slice::<Record>(&text)
                && name != self.network
                && (record.netns, &record.boot_id) == (here.netns, &here.boot_id)
            {
                others.push((name, record));
            }
        }
        Ok(others)
    }

    fn foreign(&self, owner: String, current: &Record) -> StateError {
        let (pins, network) = (self.pins.clone(), self.network.clone());
        StateError::Foreign { pins, owner, claimant: current.owner(), network }
    }

    /// The record, if there is one. One that cannot be read is an error: guessing could adopt another's pins.
    pub fn record(&self) -> Result<Option<Record>, StateError> {
        let path = self.record_path();
        match fs::read(&path) {
            Ok(text) => {
                let record = serde_json::from_slice(&text);
                record.map(Some).map_err(|error| StateError::io("read", &path, error))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StateError::io("read", &path, error)),
        }
    }

    /// Removes every trace of the network, the lock file with it. Nothing there is no error.
    pub fn remove(&self, lock: Lock) -> Result<(), StateError> {
        self.forget_other_layouts()?;
        self.forget()?;
        let removed = fs::remove_file(self.lock_path());
        removed.map_err(|error| StateError::io("remove", &self.lock_path(), error))?;
        drop(lock);
        // Shared with other networks; what is not empty stays.
        let shared = self.pins.ancestors().skip(1).take(2);
        for folder in shared.chain([self.state.as_path()]) {
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }

    /// Removes pins and what is noted about them, and leaves the folders for a new start.
    pub fn clear(&self) -> Result<(), StateError> {
        self.forget()?;
        fs::create_dir_all(&self.pins).map_err(|error| StateError::io("create", &self.pins, error))
    }

    /// Removes pins and what is noted about them.
    fn forget(&self) -> Result<(), StateError> {
        let (record, origin) = (self.record_path(), self.origin_path());
        for (path, removed) in [
            (&self.pins, fs::remove_dir_all(&self.pins)),
            (&record, fs::remove_file(&record)),
            (&origin, fs::remove_file(&origin)),
        ] {
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StateError::io("remove", path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn lock_path(&self) -> PathBuf {
        self.state.join("lock")
    }

    fn record_path(&self) -> PathBuf {
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

    fn write(&self, record: &Record) -> Result<(), StateError> {
        let path = self.record_path();
        let text =
            serde_json::to_vec_pretty(record).map_err(|error| StateError::io("write", &path, error))?;
        self.replace(&path, &text)
    }

    /// By rename: nobody reads half of it, and a full disk leaves the old text.
    pub(crate) fn replace(&self, path: &Path, text: &[u8]) -> Result<(), StateError> {
        let partial = path.with_extension("new");
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, path))
            .map_err(|error| StateError::io("write", path, error))
    }
}

impl Record {
    /// The record of this host, in the network namespace of the calling thread.
    pub fn current(public_ip: Ipv4Addr, subnet: Ipv4Net) -> Result<Self, StateError> {
        let namespace = Path::new("/proc/thread-self/ns/net");
        let boot = Path::new("/proc/sys/kernel/random/boot_id");
        let netns = fs::metadata(namespace).map_err(|error| StateError::io("read", namespace, error))?;
        let boot_id = fs::read_to_string(boot).map_err(|error| StateError::io("read", boot, error))?;
        let boot_id = boot_id.trim().to_owned();
        Ok(Self {
            netns: netns.ino(),
            boot_id,
            public_ip,
            subnet,
            abi: ABI,
            fast_path: true,
            mode: vxlan(),
            device: None,
            subnet_file: None,
        })
    }

    /// Of the calling thread's network namespace.
    pub fn is_in_this_namespace(&self) -> bool {
        Self::current(self.public_ip, self.subnet).is_ok_and(|here| here.netns == self.netns)
    }

    /// Of the same host in the same boot, whatever version the agent was and however it was started.
    fn is_same_host(&self, other: &Self) -> bool {
        let host = |record: &Self| (record.netns, record.boot_id.clone(), record.public_ip, record.subnet);
        host(self) == host(other)
    }

    fn owner(&self) -> String {
        format!("{} with subnet {} in network namespace {}", self.public_ip, self.subnet, self.netns)
    }
}

/// Held by the one agent of a network on this host; the kernel releases it when the process ends in whatever way.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// Who says in the lock that it holds it, `?` if nobody does. Whoever took it just now says so a moment later; until
/// then the one before stands there.
fn holder(lock: &mut File) -> String {
    let mut pid = String::new();
    for _ in 0..10 {
        pid.clear();
        // The holder is named for the operator's sake; that it cannot be read changes nothing.
        let _ = lock.rewind().and_then(|()| lock.read_to_string(&mut pid));
        if !pid.trim().is_empty() && Path::new("/proc").join(pid.trim()).exists() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    if pid.trim().is_empty() { "?".to_owned() } else { pid.trim().to_owned() }
}

fn is_bpffs(path: &Path) -> bool {
    // A root that does not exist yet will be made where its parent is.
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    existing.is_some_and(|path| statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC))
}
