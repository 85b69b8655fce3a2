//! What the tunnel device must be like, and what it is found to be like.
use ipnet::IpNet;

use crate::{
    host::netlink::{LAST_METRIC, Route, TABLE_MAIN},
    model::{backend::Backend, mac::Mac},
};

/// What the tunnel device must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Interface name, `overlay0` unless the operator says otherwise.
    pub name: String,
    /// Which kind of device.
    pub kind: DeviceKind,
    /// MTU of the device in bytes, see [`Backend::overlay_mtu`].
    pub mtu: u32,
    /// The subnet that this host leased. Its base address becomes the device's address: that is flannel's rule, in its
    /// pkg/backend/vxlan.
    pub subnet: IpNet,
    /// The whole overlay.
    pub network: IpNet,
    /// What of it is routed through the device: the leasable range, and leases outside of it. The rest is the host's.
    pub prefixes: Vec<IpNet>,
}

impl DeviceSpec {
    /// The routes that lead through the device, whose interface index is `link`.
    pub fn routes(&self, link: u32) -> impl Iterator<Item = Route> {
        self.prefixes.iter().map(move |&destination| self.route(link, destination))
    }

    fn route(&self, link: u32, destination: IpNet) -> Route {
        let source = Some(self.subnet.network());
        // A prefix of the range may be this host's own subnet, to which the containers' bridge has a route of its own. Ours catches
        // what is sent there while there is no bridge, and stands behind every other.
        let metric = if destination == self.subnet { LAST_METRIC } else { 0 };
        Route { destination, link: Some(link), gateway: None, source, metric, table: TABLE_MAIN }
    }

    /// Whether a route is one that an agent made, but not one of these: Network's, from before its range was a part of it, or
    /// that of a lease that is gone.
    pub(super) fn is_stale(&self, route: &Route, link: u32) -> bool {
        let destination = route.destination;
        self.network.contains(&destination)
            && !self.prefixes.contains(&destination)
            && *route == self.route(link, destination)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_to_the_own_subnet_stands_behind_the_bridges() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let spec = DeviceSpec {
            name: "overlay0".into(),
            kind: DeviceKind::Tun,
            mtu: 1472,
            subnet: net("10.244.2.0/24"),
            network: net("10.244.0.0/16"),
            prefixes: vec![net("10.244.0.0/23"), net("10.244.2.0/24")],
        };
        let metrics: Vec<_> = spec.routes(7).map(|route| (route.destination, route.metric)).collect();
        assert_eq!(metrics, [(net("10.244.0.0/23"), 0), (net("10.244.2.0/24"), u32::MAX)]);
    }
}
