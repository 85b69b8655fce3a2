//! The record: a file that tells which host and network pins belong to.
use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Result;
use ipnet::IpNet;
use overlay_common::ABI;
use serde::{Deserialize, Serialize};

use super::{error::failed, paths::Paths};
use crate::model::fast_path::AskedFastPath;

/// Which host and network pins belong to. Only an agent of the same host and network adopts them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Inode of the network namespace. Interface indexes are meaningless in another one.
    pub netns: u64,
    /// Id of the boot. Pins do not survive a reboot.
    pub boot_id: String,
    /// The address that identifies the host in the store.
    pub public_ip: IpAddr,
    /// The subnet that the host leased.
    pub subnet: IpNet,
    /// Version of the map layouts.
    pub abi: u32,
    /// Whether the programs may carry packets themselves: false under `--fast-path off`. It may change from one agent to the next
    /// on the same host. Agents of earlier versions read this field alone.
    #[serde(default = "yes")]
    pub(crate) fast_path: bool,
    /// What `--fast-path` asked for. Agents of earlier versions do not write it; then the field above says on or off.
    #[serde(default)]
    pub(crate) asked_fast_path: Option<AskedFastPath>,
    /// How packets travel between hosts, by flannel's name of the backend. The agent that started last wrote it.
    #[serde(default = "vxlan", rename = "mode")]
    pub backend: String,
    /// Name of the tunnel device. `overlay down` removes it, and no other network may have it.
    #[serde(default)]
    pub device: Option<String>,
    /// Path of subnet.env, which no other network may write.
    #[serde(default)]
    pub subnet_file: Option<PathBuf>,
    /// Name of the underlay interface that the agent chose.
    #[serde(default)]
    pub underlay: Option<String>,
    /// The address that the agent's packets come from.
    #[serde(default)]
    pub underlay_address: Option<IpAddr>,
    /// The IPv6 subnet that the host leased, in a network of both families. The host gets it again if it can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_subnet: Option<IpNet>,
    /// The number of the bpf file system that holds the pins. Another one may be mounted over it later. Agents of earlier
    /// versions do not write it.
    #[serde(default)]
    pub bpffs: Option<u64>,
}

fn vxlan() -> String {
    "vxlan".to_owned()
}

fn yes() -> bool {
    true
}

impl Record {
    /// The record of this host, for the network namespace of the calling thread.
    pub fn current(public_ip: IpAddr, subnet: IpNet) -> Result<Self> {
        let namespace = Path::new("/proc/thread-self/ns/net");
        let boot = Path::new("/proc/sys/kernel/random/boot_id");
        let netns = fs::metadata(namespace).map_err(|error| failed("read", namespace, error))?;
        let boot_id = fs::read_to_string(boot).map_err(|error| failed("read", boot, error))?;
        let boot_id = boot_id.trim().to_owned();
        Ok(Self {
            netns: netns.ino(),
            boot_id,
            public_ip,
            subnet,
            abi: ABI,
            fast_path: true,
            asked_fast_path: None,
            backend: vxlan(),
            device: None,
            subnet_file: None,
            underlay: None,
            underlay_address: None,
            ipv6_subnet: None,
            bpffs: None,
        })
    }

    /// The same for an agent with this choice of packets.
    pub fn with_fast_path(self, asked: AskedFastPath) -> Self {
        Self { fast_path: asked != AskedFastPath::Off, asked_fast_path: Some(asked), ..self }
    }

    /// Which packets the programs were asked to carry past the stack.
    pub fn fast_path(&self) -> AskedFastPath {
        let earlier = if self.fast_path { AskedFastPath::On } else { AskedFastPath::Off };
        self.asked_fast_path.unwrap_or(earlier)
    }

    /// The inode of the calling thread's network namespace.
    pub fn is_in_this_namespace(&self) -> bool {
        Self::current(self.public_ip, self.subnet).is_ok_and(|here| here.netns == self.netns)
    }

    /// Whether it was written since this host has booted.
    pub(super) fn is_of_this_boot(&self) -> bool {
        Self::current(self.public_ip, self.subnet).is_ok_and(|here| here.boot_id == self.boot_id)
    }

    /// Whether both are of the same host in the same boot. The agents' versions and options may differ.
    pub(super) fn is_same_host(&self, other: &Self) -> bool {
        let host = |record: &Self| (record.netns, record.boot_id.clone(), record.public_ip, record.subnet);
        host(self) == host(other)
    }

    /// Whether it was written in this boot and in the calling thread's network namespace.
    pub(super) fn is_of_here(&self) -> Result<bool> {
        Ok(self.is_same_host(&Self::current(self.public_ip, self.subnet)?))
    }

    pub(super) fn owner(&self) -> String {
        format!("{} with subnet {} in network namespace {}", self.public_ip, self.subnet, self.netns)
    }
}

impl Paths {
    /// The record, if there is one. It is an error if it cannot be read, because a wrong guess could adopt another host's
    /// pins.
    pub fn record(&self) -> Result<Option<Record>> {
        let path = self.record_path();
        match fs::read(&path) {
            Ok(text) => {
                let record = serde_json::from_slice(&text);
                record.map(Some).map_err(|error| failed("read", &path, error))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path, error)),
        }
    }

    /// Writes the record.
    pub fn write(&self, record: &Record) -> Result<()> {
        let path = self.record_path();
        let text = serde_json::to_vec_pretty(record).map_err(|error| failed("write", &path, error))?;
        self.replace(&path, &text)
    }
}
