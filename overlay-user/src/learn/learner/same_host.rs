//! Between which ports of a bridge the programs hand frames on themselves: where neither the bridge nor the host would do more to
//! them than forward them.
use std::net::IpAddr;

use overlay_common::MAX_ENDPOINT_BRIDGE;

use super::Learner;
use crate::{
    host::netlink::{Bridging, Link, LinkKind},
    learn::view::SameHost,
    model::{
        entries::{Endpoint, ForeignTc, PortKind},
        mac::Mac,
    },
};

impl Learner {
    /// Takes in what of the host sees the frames that bridges forward, in words: bridge netfilter, or a rule. Returns whether it is
    /// news.
    pub fn bridged_frames_are_seen_by(&mut self, what: Option<String>) -> bool {
        let what = Some(what);
        if self.seen_by == what {
            return false;
        }
        self.seen_by = what;
        self.settle();
        true
    }

    /// Corrects the endpoints whose bridges, or ports, or forwarding tables have changed. What an earlier agent found stays until
    /// somebody has looked.
    pub(super) fn follow_bridges(&mut self) {
        if self.seen_by.is_none() {
            return;
        }
        let stale: Vec<(IpAddr, Endpoint)> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| self.foreign_tc.contains_key(&endpoint.port))
            .map(|(address, endpoint)| (*address, *endpoint, self.hands_on_by(endpoint.port, endpoint.mac)))
            .filter(|(_, endpoint, bridge)| endpoint.bridge != *bridge)
            .map(|(address, endpoint, bridge)| (address, Endpoint { bridge, ..endpoint }))
            .collect();
        for (address, endpoint) in stale {
            self.put(address, endpoint);
        }
    }

    /// Index of the bridge whose forwarding the programs do for a container with this MAC address behind this port. `None` leaves
    /// all of it to the bridge, or means that there is none.
    pub(super) fn hands_on_by(&self, port: u32, mac: Mac) -> Option<u32> {
        let port = self.links.get(&port)?;
        let bridge = self.links.get(&port.master?)?;
        let is_told_elsewhere = || {
            let told = self.fdb.get(&(bridge.index, mac));
            told.is_some_and(|told| *told != port.index)
        };
        let hands_on = self.kept_by_bridge(bridge).is_none()
            && self.kept_by_port(port).is_none()
            && self.ports.get(&port.index) == Some(&PortKind::Veth)
            && !is_told_elsewhere();
        Some(bridge.index).filter(|index| hands_on && *index <= MAX_ENDPOINT_BRIDGE)
    }

    /// What status says of this at a bridge.
    pub(super) fn same_host(&self, bridge: &Link) -> SameHost {
        let ports = self.links.values().filter(|link| link.master == Some(bridge.index));
        let ports = ports.filter(|link| self.ports.contains_key(&link.index));
        let kept = ports.filter_map(|port| Some((port.name.clone(), self.kept_by_port(port)?)));
        SameHost { kept_by_bridge: self.kept_by_bridge(bridge), kept_by_ports: kept.collect() }
    }

    /// Why all of a bridge's frames are left to it.
    fn kept_by_bridge(&self, bridge: &Link) -> Option<String> {
        if bridge.kind != LinkKind::Bridge {
            return Some("there is no bridge".to_owned());
        }
        let unknown = || Some("nobody has looked yet what the host does to bridged frames".to_owned());
        beyond_forwarding(bridge).or_else(|| self.seen_by.clone().unwrap_or_else(unknown))
    }

    /// Why a port's frames are left to the bridge.
    fn kept_by_port(&self, port: &Link) -> Option<String> {
        let foreign = match self.foreign_tc.get(&port.index) {
            None => Some("nobody has looked yet what others have there at TC".to_owned()),
            Some(at) if *at != ForeignTc::default() => {
                Some("others have a queueing discipline, a filter or a program there".to_owned())
            }
            Some(_) => None,
        };
        beyond_forwarding(port).or(foreign)
    }
}

/// The settings of a bridge or of a port by which the bridge does more, or less, than forward.
fn beyond_forwarding(link: &Link) -> Option<String> {
    match &link.bridging {
        Some(Bridging(settings)) if settings.is_empty() => None,
        Some(Bridging(settings)) => Some(settings.join(", ")),
        None => Some("the kernel does not tell its settings".to_owned()),
    }
}
