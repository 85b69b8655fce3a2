//! Packets per second by the number of peers: hosts of our own whose maps are filled by hand, every peer's turn coming in
//! every round of the frames.
use std::{net::Ipv4Addr, path::Path};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    frame::IPV4,
    network::Network,
    packets::{Load, Part, Until, Varied, send},
    program::ask,
};

/// Hosts with so many peers, all but one of which are only in the maps.
pub(super) struct Crowd {
    /// How many.
    pub(super) peers: u32,
    network: Network,
}

/// SubnetLen 26 of a /9 has room for 131,072 subnets. Real leases keep to the first two.
const CONFIG: &str = r#"{"Network":"10.128.0.0/9","SubnetLen":26,"SubnetMin":"10.128.0.64","SubnetMax":"10.128.0.128","Backend":{"Type":"vxlan"}}"#;
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// The first peer's subnet, and addresses in each.
const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 129, 0, 0);
const STEP: u32 = 64;
/// The first peer's underlay address. All are behind the other host.
const OUTER: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
/// The same maps for any number of peers: only what is in them differs.
const MAX_PEERS: &str = "110000";
/// The most that fit.
const MOST: u32 = 109_000;

impl Crowd {
    /// Starts them, and fills the maps.
    pub(super) fn build(overlay: &Path, program: &Path, wire_like: bool, peers: u32) -> Result<Self> {
        ensure!((1..=MOST).contains(&peers), "{peers} peers: 1 to {MOST} can be had");
        let mut network =
            Network::with_config(overlay, program, wire_like, CONFIG, &["--max-peers", MAX_PEERS])?;
        // An agent would take away what stands in no store.
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

    /// Packets per second of 64 bytes, to or from one peer after the other.
    pub(super) fn rate(&self, program: &Path, part: Part, until: Until) -> Result<f64> {
        let container = u32::from(SUBNET) + 2;
        let to_each = [Varied { header: IPV4, field: 16, base: container, step: STEP }];
        let from_each = [
            Varied { header: IPV4, field: 12, base: OUTER.into(), step: 1 },
            // Behind the outer headers: 50 bytes.
            Varied { header: IPV4 + 50, field: 12, base: container, step: STEP },
        ];
        let varied: &[_] = if part == Part::In { &from_each } else { &to_each };
        let load = Load { size: 64, flows: 1, peers: Some((self.peers, varied)), until, statistics: false };
        Ok(send(&self.network, program, part, load)?.rate())
    }

    /// What they stand on.
    pub(super) fn network(&self) -> &Network {
        &self.network
    }
}
