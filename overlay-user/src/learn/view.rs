//! What `overlay status` shows of learning.
use std::net::IpAddr;

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

/// A bridge, or a point-to-point veth, whose containers are learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Interface name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// Its address in the own subnet, which containers use as gateway.
    pub gateway: Option<IpAddr>,
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
