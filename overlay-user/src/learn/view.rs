//! What `overlay status` shows about learning.
use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::model::mac::Mac;

/// Two ports claim one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The address.
    pub address: IpAddr,
    /// Name of the port that has it.
    pub holder: String,
    /// Name of the port that claims it.
    pub claimant: String,
    /// The MAC address of the claim.
    pub mac: Mac,
}

/// A bridge or a point-to-point veth whose containers are learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Interface name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// Its address in this host's subnet, which containers use as gateway.
    pub gateway: Option<IpAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Names of the ports that have programs.
    pub ports: Vec<String>,
    /// What carries frames from one of its containers to another.
    #[serde(default)]
    pub same_host: SameHost,
}

/// Which frames between containers behind one bridge are left to that bridge, and why. The programs hand on all others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SameHost {
    /// Why all of them are. `None` if they are not.
    pub kept_by_bridge: Option<String>,
    /// Ports whose frames are, by their names, and why.
    pub kept_by_ports: BTreeMap<String, String>,
}

/// What `overlay status` shows about learning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The bridges and point-to-point veths whose containers are learned.
    pub bridges: Vec<Bridge>,
    /// Claims that were refused and are still made.
    pub conflicts: Vec<Conflict>,
    /// How many claims were refused since the agent started. Between two rounds of questions, only one is counted for each
    /// address.
    pub conflicts_total: u64,
    /// How many endpoints moved to another port, because their holder was silent or its port was down.
    pub moves_total: u64,
}
