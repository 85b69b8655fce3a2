//! Packets per second by the number of peers: hosts of our own whose maps are filled by hand, and frames in which the
//! peers take turns.
use std::{net::Ipv4Addr, path::Path};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    frame::IPV4,
    network::Network,
    packets::{Load, Part, Until, Varied, send},
    program::ask,
};

/// Hosts with many peers, all but one of which exist only in the maps.
pub(super) struct Crowd {
    /// How many peers there are.
    pub(super) peers: u32,
    network: Network,
}

/// With SubnetLen 26, a /9 has space for 131,072 subnets. Real leases keep to the first two.
const CONFIG: &str = r#"{"Network":"10.128.0.0/9","SubnetLen":26,"SubnetMin":"10.128.0.64","SubnetMax":"10.128.0.128","Backend":{"Type":"vxlan"}}"#;
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// The subnet of the first peer, and the number of addresses in each subnet.
const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 129, 0, 0);
const STEP: u32 = 64;
/// The underlay address of the first peer. All are routed to the other host.
const OUTER: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
/// The maps have the same size for any number of peers, so that only their content differs.
const MAX_PEERS: &str = "110000";
/// The largest number of peers that fits.
const MOST: u32 = 109_000;

impl Crowd {
    /// Builds the hosts and fills their maps.
    pub(super) fn build(overlay: &Path, program: &Path, wire_like: bool, peers: u32) -> Result<Self> {
        ensure!((1..=MOST).contains(&peers), "{peers} peers: 1 to {MOST} can be had");
        let mut network =
            Network::with_config(overlay, program, wire_like, CONFIG, &["--max-peers", MAX_PEERS])?;
        // A running agent would remove peers that are in no store.
        network.kill_agents()?;
        let hosts: Vec<_> = network.lab().hosts().to_vec();
        for (here, there) in [(0, 1), (1, 0)] {
            let route = format!("route add 172.16.0.0/12 via {}", hosts[there].address());
            hosts[here].namespace().ip(&route)?;
        }
        for pins in network.pins() {
            let specification = json!({ "peers": {
                "pins": pins, "network": NETWORK, "count": peers, "subnet": SUBNET, "step": STEP, "outer": OUTER,
                "vtep_mac": [2, 0, 0, 0, 0, 1],
            }});
            let answer: Value = ask(program, network.lab().switch(), &specification)?;
            ensure!(answer["peers"] == peers, "not all peers were written: {answer}");
        }
        Ok(Self { peers, network })
    }

    /// Packets of 64 bytes per second, to or from one peer after the other.
    pub(super) fn rate(&self, program: &Path, part: Part, until: Until) -> Result<f64> {
        let container = u32::from(SUBNET) + 2;
        let to_each = [Varied { header: IPV4, field: 16, base: container, step: STEP }];
        let from_each = [
            Varied { header: IPV4, field: 12, base: OUTER.into(), step: 1 },
            // The address is in the inner packet, behind 50 bytes of outer headers.
            Varied { header: IPV4 + 50, field: 12, base: container, step: STEP },
        ];
        let varied: &[_] = if part == Part::In { &from_each } else { &to_each };
        let load = Load { size: 64, flows: 1, peers: Some((self.peers, varied)), until, statistics: false };
        Ok(send(&self.network, program, part, load)?.rate())
    }

    /// The network that the hosts are in.
    pub(super) fn network(&self) -> &Network {
        &self.network
    }
}
