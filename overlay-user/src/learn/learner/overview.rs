//! Puts together what the learner knows about the host, for `overlay status`.
use std::mem;

use super::Learner;
use crate::learn::view::{Bridge, Conflict, View};

impl Learner {
    /// The overview, if it may have changed since the last call.
    pub fn take_view(&mut self) -> Option<View> {
        mem::take(&mut self.is_view_stale).then(|| self.view())
    }

    /// The overview that `overlay status` shows.
    pub fn view(&self) -> View {
        let name = |index: u32| {
            let known = self.interface_name(index).map(str::to_owned);
            known.unwrap_or_else(|| index.to_string())
        };
        let bridges = self.segments().map(|link| Bridge {
            name: link.name.clone(),
            ifindex: link.index,
            gateway: self.local.iter().find(|(index, _)| *index == link.index).map(|(_, address)| *address),
            mtu: link.mtu,
            same_host: self.same_host(link),
            ports: self
                .ports
                .keys()
                .filter(|port| self.links.get(port).is_some_and(|port| port.master == Some(link.index)))
                .map(|port| name(*port))
                .collect(),
        });
        let refused = self.claims.iter().filter(|(_, claim)| claim.counted);
        let conflicts = refused.map(|(address, claim)| Conflict {
            address: *address,
            holder: self.endpoints.get(address).map_or_else(String::new, |endpoint| name(endpoint.port)),
            claimant: name(claim.port),
            mac: claim.mac,
        });
        View {
            bridges: bridges.collect(),
            conflicts: conflicts.collect(),
            conflicts_total: self.conflicts_total,
            moves_total: self.moves_total,
        }
    }
}
