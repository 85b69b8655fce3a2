//! What `overlay status` shows of learning.
use std::{mem, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::Learner;
use crate::model::mac::Mac;

/// Two ports claim one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The address.
    pub address: Ipv4Addr,
    /// Name of the port that has it.
    pub holder: String,
    /// Name of the port that claims it.
    pub claimant: String,
    /// The MAC address of the claim.
    pub mac: Mac,
}

/// A bridge, or a point-to-point veth, whose containers are learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Interface name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// Its address in the own subnet, which containers use as gateway.
    pub gateway: Option<Ipv4Addr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Names of the ports that are attached.
    pub ports: Vec<String>,
}

/// What `overlay status` shows of learning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Bridges and point-to-point veths.
    pub bridges: Vec<Bridge>,
    /// Claims that were refused and still stand.
    pub conflicts: Vec<Conflict>,
    /// How many claims were refused since the agent started; of one address, one between two rounds of questions.
    pub conflicts_total: u64,
    /// How many endpoints moved to another port after a proof.
    pub moves_total: u64,
}

impl Learner {
    /// What status shows, if it may be another than at the last call.
    pub fn take_view(&mut self) -> Option<View> {
        mem::take(&mut self.is_view_stale).then(|| self.view())
    }

    /// What status shows.
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
