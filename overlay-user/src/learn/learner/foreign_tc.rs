//! What others have at the containers' ports at TC, as far as it decides on the path of packets.
use std::net::IpAddr;

use super::Learner;
use crate::model::entries::{Endpoint, ForeignTc, PortKind};

impl Learner {
    /// The containers' ports, by interface index.
    pub fn veths(&self) -> Vec<u32> {
        let veths = self.ports.iter().filter(|(_, kind)| **kind == PortKind::Veth);
        veths.map(|(port, _)| *port).collect()
    }

    /// The containers' ports that nobody has looked at yet.
    pub fn unseen(&self) -> Vec<u32> {
        self.veths().into_iter().filter(|port| !self.foreign_tc.contains_key(port)).collect()
    }

    /// Takes in what was found at a port, and returns whether it is news.
    pub fn looked(&mut self, port: u32, found: ForeignTc) -> bool {
        // The port may have gone since it was looked at.
        if !self.links.contains_key(&port) {
            return false;
        }
        let before = self.foreign_tc.insert(port, found);
        if before != Some(found) {
            self.settle();
        }
        before.unwrap_or_default() != found
    }

    /// Corrects the endpoints behind the ports that were looked at. What an earlier agent found stays until then.
    pub(super) fn follow_foreign_tc(&mut self) {
        let stale: Vec<(IpAddr, Endpoint)> = self
            .endpoints
            .iter()
            .filter_map(|(address, endpoint)| {
                let foreign_tc = *self.foreign_tc.get(&endpoint.port)?;
                (endpoint.foreign_tc != foreign_tc)
                    .then_some((*address, Endpoint { foreign_tc, ..*endpoint }))
            })
            .collect();
        for (address, endpoint) in stale {
            self.put(address, endpoint);
        }
    }
}
