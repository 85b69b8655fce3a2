//! What an agent wants of the host's packet filter.
use std::time::Duration;

use ipnet::IpNet;

use crate::model::network::AddressPlan;

/// The rules that an agent wants in the packet filter.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Name of the network on this host (`--network`). It is part of our table's name and of our rules' comments.
    pub name: String,
    /// The overlay's addresses.
    pub plan: AddressPlan,
    /// The tunnel device.
    pub device: String,
    /// This host's subnet.
    pub subnet: IpNet,
    /// Whether to masquerade what leaves the overlay (`--ip-masq`).
    pub masquerade: bool,
    /// Whether to accept the overlay's packets in FORWARD (`--forward-rules`).
    pub forward: bool,
    /// Whether masquerading draws source ports at random (`--ip-masq-fully-random-disable`).
    pub random_ports: bool,
    /// The longest pause between two looks at the rules (`--iptables-resync`).
    pub period: Duration,
}
