//! The pinned maps, read and written: the only file that knows the names of their pins. Works with no agent running.
use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, MapInfo, MapType, PerCpuArray},
    util::nr_cpus,
};
use overlay_common::{
    ABI, Addr4, Count, ENDPOINT_PINNED, Endpoint, Flow, FlowKey, Hook, Peer, PeerCount, Reason, Settings,
    Verdict, Vtep,
};
use serde::Serialize;

use super::{self as domain, DatapathError, index::Index, notes::Notes};
use crate::mac::Mac;

/// Names of the maps in the programs, and of their pins.
pub const MAPS: [(&str, &str); 8] = [
    ("PEERS", "peers"),
    ("VTEPS", "vteps"),
    ("ENDPOINTS", "endpoints"),
    ("FLOWS", "flows"),
    ("NOTED", "noted"),
    ("NOTED_HALF", "noted_half"),
    ("COUNTERS", "counters"),
    ("PEER_COUNTERS", "peer_counters"),
];

/// The maps of one network on this host.
pub struct Tables {
    /// Peers by base address of their subnet.
    peers: HashMap<MapData, Addr4, Peer>,
    /// Peers by underlay address.
    pub vteps: HashMap<MapData, Addr4, Vtep>,
    /// Containers by address.
    endpoints: HashMap<MapData, Addr4, Endpoint>,
    /// The same to the programs, where they are this process's own: who only opens the pins does not write peers or endpoints.
    index: Option<Index>,
    /// Connections of the stack.
    pub flows: Notes,
    counters: PerCpuArray<MapData, Count>,
    peer_counters: PerCpuArray<MapData, PeerCount>,
}

/// A counter that is not zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counter {
    /// Where: `encap`, `decap`, `send`, `receive`, `note`.
    pub hook: &'static str,
    /// Why.
    pub reason: &'static str,
    /// What became of them: `carried`, `stack`, `drop`, `answered`, `event`.
    pub verdict: &'static str,
    /// Packets, of all CPUs together; a GSO frame counts its segments.
    pub packets: u64,
    /// Bytes of inner IP packets.
    pub bytes: u64,
}

/// What the fast path carried to and from one peer, of all CPUs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeerTraffic {
    /// Packets encapsulated towards it.
    pub sent_packets: u64,
    /// Bytes of inner IP packets encapsulated towards it.
    pub sent_bytes: u64,
    /// Packets decapsulated from it.
    pub received_packets: u64,
    /// Bytes of inner IP packets decapsulated from it.
    pub received_bytes: u64,
}

impl Tables {
    /// The maps of freshly loaded programs.
    pub(super) fn take(ebpf: &mut Ebpf, settings: &Settings) -> Result<Self, DatapathError> {
        let tables = Self::build(|name, _| {
            ebpf.take_map(name)
                .ok_or_else(|| DatapathError::missing(format!("find map {name}"), "not in the object"))
        })?;
        Ok(Self { index: Some(Index::take(ebpf, settings)?), ..tables })
    }

    /// The maps pinned in `folder`.
    ///
    /// # Errors
    /// When a pin is missing: no agent has run for this network since the machine started, or `overlay down` was called.
    pub fn open(folder: &Path) -> Result<Self, DatapathError> {
        Self::build(|_, pin| {
            let path = folder.join(pin);
            MapData::from_pin(&path)
                .and_then(Map::from_map_data)
                .map_err(|error| DatapathError::failed(format!("open pinned map {}", path.display()), &error))
        })
    }

    fn build(
        mut map: impl FnMut(&'static str, &'static str) -> Result<Map, DatapathError>,
    ) -> Result<Self, DatapathError> {
        let wrong = |error: MapError| DatapathError::failed("use the maps", &error);
        let [peers, vteps, endpoints, flows, noted, noted_half, counters, peer_counters] = MAPS;
        Ok(Self {
            peers: map(peers.0, peers.1)?.try_into().map_err(wrong)?,
            vteps: map(vteps.0, vteps.1)?.try_into().map_err(wrong)?,
            endpoints: map(endpoints.0, endpoints.1)?.try_into().map_err(wrong)?,
            flows: Notes {
                flows: map(flows.0, flows.1)?.try_into().map_err(wrong)?,
                marks: map(noted.0, noted.1)?.try_into().map_err(wrong)?,
                half: map(noted_half.0, noted_half.1)?.try_into().map_err(wrong)?,
            },
            counters: map(counters.0, counters.1)?.try_into().map_err(wrong)?,
            peer_counters: map(peer_counters.0, peer_counters.1)?.try_into().map_err(wrong)?,
            index: None,
        })
    }

    /// The peer that holds the subnet with this base address.
    pub fn peer(&self, base: Addr4) -> Option<Peer> {
        self.peers.get(&base, 0).ok()
    }

    /// Adds or replaces a peer.
    pub fn put_peer(&mut self, base: Addr4, peer: Peer) -> Result<(), MapError> {
        self.peers.insert(base, peer, 0)?;
        self.index.as_mut().map_or(Ok(()), |index| index.put_peer(base, peer))
    }

    /// Removes a peer.
    pub(super) fn remove_peer(&mut self, base: Addr4) -> Result<(), MapError> {
        self.index.as_mut().map_or(Ok(()), |index| index.remove_peer(base))?;
        self.peers.remove(&base)
    }

    /// Adds or replaces an endpoint.
    pub fn put_endpoint(&mut self, address: Addr4, endpoint: Endpoint) -> Result<(), MapError> {
        self.endpoints.insert(address, endpoint, 0)?;
        self.index.as_mut().map_or(Ok(()), |index| index.put_endpoint(address, endpoint))
    }

    /// Removes an endpoint.
    pub(super) fn remove_endpoint(&mut self, address: Addr4) -> Result<(), MapError> {
        self.index.as_mut().map_or(Ok(()), |index| index.remove_endpoint(address))?;
        self.endpoints.remove(&address)
    }

    /// Has the programs find all that the tables hold.
    pub(super) fn fill_index(&mut self) -> Result<(), DatapathError> {
        let (peers, endpoints) = (self.peer_entries()?, self.endpoint_entries()?);
        let Some(index) = &mut self.index else { return Ok(()) };
        let failed = |error: MapError| DatapathError::failed("fill the programs' index", &error);
        for (base, peer) in peers {
            index.put_peer(Addr4::new(base.octets()), peer).map_err(failed)?;
        }
        for (address, endpoint) in endpoints {
            index.put_endpoint(Addr4::new(address.octets()), endpoint).map_err(failed)?;
        }
        Ok(())
    }

    /// Whether the programs find this peer too.
    pub(super) fn is_peer_found(&self, base: Ipv4Addr, peer: &Peer) -> bool {
        self.index.as_ref().is_none_or(|index| index.has_peer(Addr4::new(base.octets()), peer))
    }

    /// Whether they find this endpoint.
    pub(super) fn is_endpoint_found(&self, address: Ipv4Addr, endpoint: &Endpoint) -> bool {
        self.index.as_ref().is_none_or(|index| index.has_endpoint(Addr4::new(address.octets()), endpoint))
    }

    /// All counters that are not zero.
    pub fn counters(&self) -> Result<Vec<Counter>, DatapathError> {
        let mut found = Vec::new();
        for hook in Hook::ALL {
            for reason in Reason::ALL {
                let count = self.counter(*hook, *reason)?;
                if count.packets > 0 {
                    found.push(Counter {
                        hook: hook.as_str(),
                        reason: reason.as_str(),
                        verdict: verdict(*hook, *reason),
                        packets: count.packets,
                        bytes: count.bytes,
                    });
                }
            }
        }
        Ok(found)
    }

    /// One counter, of all CPUs together.
    pub fn counter(&self, hook: Hook, reason: Reason) -> Result<Count, DatapathError> {
        let values = self.counters.get(&hook.counter(reason), 0).map_err(|error| {
            DatapathError::failed(format!("read counter {}/{}", hook.as_str(), reason.as_str()), &error)
        })?;
        Ok(values.iter().fold(Count::default(), add))
    }

    /// What the fast path carried to and from the peer with counters at `slot`.
    pub fn traffic(&self, slot: u32) -> Result<PeerTraffic, DatapathError> {
        let values = self.peer_counters.get(&slot, 0).map_err(|error| {
            DatapathError::failed(format!("read the counters of peer slot {slot}"), &error)
        })?;
        let sum = values.iter().fold(PeerCount::default(), |sum, one| PeerCount {
            sent: add(sum.sent, &one.sent),
            received: add(sum.received, &one.received),
        });
        Ok(PeerTraffic {
            sent_packets: sum.sent.packets,
            sent_bytes: sum.sent.bytes,
            received_packets: sum.received.packets,
            received_bytes: sum.received.bytes,
        })
    }

    /// Sets the counters at `slot` to zero, for the next peer that gets it.
    pub fn clear_traffic(&mut self, slot: u32) -> Result<(), DatapathError> {
        let zeros = vec![
            PeerCount::default();
            nr_cpus().map_err(|(_, error)| DatapathError::failed("count the CPUs", &error))?
        ];
        aya::maps::PerCpuValues::try_from(zeros)
            .map_err(|error| DatapathError::failed("clear a peer's counters", &error))
            .and_then(|zeros| {
                self.peer_counters.set(slot, zeros, 0).map_err(|error| {
                    DatapathError::failed(format!("clear the counters of peer slot {slot}"), &error)
                })
            })
    }

    /// Every peer by the base address of its subnet.
    pub fn peer_entries(&self) -> Result<BTreeMap<Ipv4Addr, Peer>, DatapathError> {
        entries(self.peers.iter(), "peers")
    }

    /// Every endpoint by address.
    pub fn endpoint_entries(&self) -> Result<BTreeMap<Ipv4Addr, Endpoint>, DatapathError> {
        entries(self.endpoints.iter(), "endpoints")
    }
}

/// A peer as `PEERS` holds it, with its counters at `slot`.
pub(super) fn peer_entry(peer: &domain::Peer, slot: u32) -> Peer {
    let vtep_mac = peer.vtep_mac.unwrap_or(NO_MAC).0;
    Peer { outer: peer.public_ip.octets(), vtep_mac, reserved: Default::default(), slot }
}

/// What `PEERS` holds for a peer whose packets need no inner MAC address: no device has it.
const NO_MAC: Mac = Mac([0; 6]);

/// A peer of `PEERS` in the agent's words.
pub fn peer_of(entry: &Peer) -> domain::Peer {
    let vtep_mac = Some(Mac(entry.vtep_mac)).filter(|mac| *mac != NO_MAC);
    domain::Peer { public_ip: entry.outer.into(), vtep_mac }
}

/// An endpoint as `ENDPOINTS` holds it.
pub(super) fn endpoint_entry(endpoint: &domain::Endpoint) -> Endpoint {
    Endpoint {
        ifindex: endpoint.port,
        mac: endpoint.mac.0,
        gateway_mac: endpoint.gateway_mac.0,
        flags: if endpoint.pinned { ENDPOINT_PINNED } else { 0 },
    }
}

/// Makes sure that what is pinned in `folder` under the names of our maps are such maps: the loader takes whatever it
/// finds there.
///
/// # Errors
/// Names the first pin that is something else.
pub fn check(folder: &Path) -> Result<(), DatapathError> {
    let shape = |pin: &str| {
        let (kind, key, value) = match pin {
            "peers" => (MapType::Hash, size_of::<Addr4>(), size_of::<Peer>()),
            "vteps" => (MapType::Hash, size_of::<Addr4>(), size_of::<Vtep>()),
            "endpoints" => (MapType::Hash, size_of::<Addr4>(), size_of::<Endpoint>()),
            "flows" => (MapType::Hash, size_of::<FlowKey>(), size_of::<Flow>()),
            "noted" | "noted_half" => (MapType::Array, size_of::<u32>(), size_of::<u32>()),
            "counters" => (MapType::PerCpuArray, size_of::<u32>(), size_of::<Count>()),
            "peer_counters" => (MapType::PerCpuArray, size_of::<u32>(), size_of::<PeerCount>()),
            _ => return None,
        };
        Some((kind, key as u32, value as u32))
    };
    for (_, pin) in MAPS {
        let path = folder.join(pin);
        let (Some(shape), true) = (shape(pin), path.exists()) else { continue };
        let action = || format!("adopt {}", path.display());
        let info = MapInfo::from_pin(&path).map_err(|error| DatapathError::failed(action(), &error))?;
        if info.map_type().ok() != Some(shape.0) || (info.key_size(), info.value_size()) != (shape.1, shape.2)
        {
            let what = format!(
                "it is not the map `{pin}` of layout {ABI}: somebody else pinned it there; `overlay down` removes it"
            );
            return Err(DatapathError::missing(action(), &what));
        }
    }
    Ok(())
}

fn entries<V>(
    entries: impl Iterator<Item = Result<(Addr4, V), MapError>>,
    table: &str,
) -> Result<BTreeMap<Ipv4Addr, V>, DatapathError> {
    entries
        .map(|entry| entry.map(|(key, value)| (Ipv4Addr::from(key.octets), value)))
        .collect::<Result<_, _>>()
        .map_err(|error| DatapathError::failed(format!("read the table of {table}"), &error))
}

fn add(sum: Count, one: &Count) -> Count {
    Count { packets: sum.packets + one.packets, bytes: sum.bytes + one.bytes }
}

fn verdict(hook: Hook, reason: Reason) -> &'static str {
    match reason.verdict_at(hook) {
        Verdict::Carried => "carried",
        Verdict::Stack => "stack",
        Verdict::Drop => "drop",
        Verdict::Answered => "answered",
        Verdict::Event => "event",
    }
}
