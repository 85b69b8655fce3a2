//! The backends that both sides have, and what differs between them.
use std::net::Ipv4Addr;

use overlay_lab::{Backend, Options};

use super::cluster::flannel_lease;

/// The backends that both sides have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Vxlan,
    Udp,
    HostGw,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Vxlan, Self::Udp, Self::HostGw];

    /// The backend that a config of these tests names.
    pub fn of(config: &str) -> Self {
        match config.to_lowercase() {
            config if config.contains(r#""type":"vxlan""#) => Self::Vxlan,
            config if config.contains(r#""type":"host-gw""#) => Self::HostGw,
            _ => Self::Udp,
        }
    }

    pub fn config(self) -> &'static str {
        match self {
            Self::Vxlan => Backend::Vxlan.config(),
            Self::Udp => Backend::Udp.config(),
            Self::HostGw => Backend::HostGw.config(),
        }
    }

    /// An underlay that the backend works on. A veth passes segments and checksums on unfinished to the kernel that
    /// receives them, but flannel's relay receives them in user space, where they would be incomplete. Before a real
    /// NIC they are finished.
    pub fn underlay(self) -> Options {
        Options { wire_like: self == Self::Udp, ..Options::default() }
    }

    /// The MTU that an underlay of 1500 bytes leaves to containers.
    pub fn mtu(self) -> u32 {
        match self {
            Self::Vxlan => 1450,
            Self::Udp => 1472,
            Self::HostGw => 1500,
        }
    }

    /// The device that has this MTU on a host of ours.
    pub fn our_device(self) -> &'static str {
        match self {
            Self::Vxlan | Self::Udp => "overlay0",
            Self::HostGw => "eth0",
        }
    }

    /// The device that has this MTU on a host of flannel's.
    pub fn flannels_device(self) -> &'static str {
        match self {
            Self::Vxlan => "flannel.1",
            Self::Udp => "flannel0",
            Self::HostGw => "eth0",
        }
    }

    /// A lease as flannel writes it. Only VXLAN's has a MAC address.
    pub fn lease(self, public_ip: Ipv4Addr, mac: &str) -> String {
        match self {
            Self::Vxlan => flannel_lease(public_ip, mac),
            Self::Udp => format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null}}"#),
            Self::HostGw => {
                format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"host-gw"}}"#)
            }
        }
    }
}
