//! What `overlay check` is to check a host for.
use std::{net::IpAddr, path::PathBuf};

use ipnet::IpNet;

use crate::model::{backend::Backend, fast_path::AskedFastPath};

/// What the host is to be checked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    /// Name of the underlay interface, where it is known.
    pub underlay: Option<String>,
    /// Name of the tunnel device.
    pub device: String,
    /// How packets travel, as far as it is known. Where neither a record nor the tunnel device tells, flannel's defaults are
    /// taken.
    pub backend: Backend,
    /// The own subnet, where there is one.
    pub subnet: Option<IpNet>,
    /// The own address on the underlay interface, where it is known.
    pub address: Option<IpAddr>,
    /// Which packets the programs are asked to carry past the stack: as the record says, or else what is asked by default.
    pub fast_path: AskedFastPath,
    /// Network, where it is known.
    pub network: Option<IpNet>,
    /// The folder below which everything is pinned.
    pub bpf_root: PathBuf,
    /// The folder where this network's pins are, or would be.
    pub pins: PathBuf,
}

/// What the tests of several findings begin with.
#[cfg(test)]
pub(super) mod examples {
    use super::*;
    use crate::host::netlink::{Link, LinkKind};

    pub(in super::super) fn spec() -> CheckSpec {
        CheckSpec {
            underlay: Some("eth0".into()),
            device: "overlay0".into(),
            backend: Backend::DEFAULT,
            subnet: None,
            address: None,
            fast_path: AskedFastPath::Auto,
            network: None,
            bpf_root: "/sys/fs/bpf".into(),
            pins: "/nowhere".into(),
        }
    }

    pub(in super::super) fn link(name: &str, kind: LinkKind, mtu: u32) -> Link {
        Link { mtu, ..Link::example(1, name, kind) }
    }
}
