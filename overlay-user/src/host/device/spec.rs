//! What the tunnel device must be like, and what it is found to be like.
use ipnet::IpNet;

use crate::model::{backend::Backend, mac::Mac};

/// What the tunnel device must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Interface name, `overlay0` unless the operator says otherwise.
    pub name: String,
    /// Which kind of device.
    pub kind: DeviceKind,
    /// MTU of the device in bytes, see [`Backend::device_mtu`].
    pub mtu: u32,
    /// The subnet that this host leased. Its base address becomes the device's address: that is flannel's rule, in its
    /// pkg/backend/vxlan.
    pub subnet: IpNet,
    /// The whole overlay, which is routed through the device.
    pub network: IpNet,
}

/// Which kind of device the tunnel's packets need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A VXLAN device in collect-metadata mode.
    Vxlan {
        /// UDP port, in the machine's order.
        port: u16,
        /// VXLAN network identifier.
        vni: u32,
        /// The wanted MAC address. With `None`, an existing device keeps its address, and a new device gets a random one.
        mac: Option<Mac>,
    },
    /// A persistent TUN: it stays when the agent ends.
    Tun,
}

impl DeviceKind {
    /// The kind that a backend needs.
    pub fn of(backend: Backend, vtep_mac: Option<Mac>) -> Self {
        match backend {
            Backend::Vxlan { port, vni, .. } => Self::Vxlan { port, vni, mac: vtep_mac },
            Backend::Udp { .. } | Backend::HostGw => Self::Tun,
        }
    }

    /// The wanted MAC address.
    pub fn mac(self) -> Option<Mac> {
        match self {
            Self::Vxlan { mac, .. } => mac,
            Self::Tun => None,
        }
    }
}

/// The device as it is once it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub ifindex: u32,
    /// The MAC address, to be published in the lease as `VtepMAC`. A TUN has none.
    pub mac: Option<Mac>,
    /// Whether the kernel itself drops packets of other VNIs, as it can since Linux 5.18.
    pub vnifilter: bool,
}

/// A device that exists, and that may still be down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Interface index.
    pub ifindex: u32,
    /// Whether it was made just now, and is down.
    pub made: bool,
}
