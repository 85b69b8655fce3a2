//! The pinned tables, read and written, and the names of their pins (the indexes' are in `index.rs`, the XDP targets' in
//! `xdp.rs`). Works with no agent running.
use std::{os::fd::AsFd as _, path::Path};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, MapInfo, MapType, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use overlay_common::{
    ABI, Addr4, Count, ENDPOINT_FOREIGN_EGRESS, ENDPOINT_FOREIGN_INGRESS, ENDPOINT_PINNED, EndpointEntry,
    Flow, FlowKey, Hook, PeerCount, PeerEntry, Reason, Settings, Verdict, Vtep, endpoint_bridge,
    endpoint_bridge_flags,
    reason::{HOOKS, REASONS},
};
use serde::Serialize;

use super::{DatapathError, index::Indexed, ipv6::Tables6, stack_flows::StackFlows};
use crate::model::{
    addr::{OtherFamily, ipv4},
    entries::{Endpoint, ForeignTc, Peer},
    fast_path::FastPath,
    mac::Mac,
};

/// Names of the maps in the programs, and of their pins.
pub const MAPS: [(&str, &str); 10] = [
    ("PEERS", "peers"),
    ("VTEPS", "vteps"),
    ("ENDPOINTS", "endpoints"),
    ("STACK_FLOWS", "stack_flows"),
    ("FLOW_MARKS", "flow_marks"),
    ("FLOW_MARKS_HALF", "flow_marks_half"),
    ("PROMOTION_EPOCH", "promotion_epoch"),
    ("FAST_PATH", "fast_path"),
    ("COUNTERS", "counters"),
    ("PEER_COUNTERS", "peer_counters"),
];

/// The maps of one network on this host.
pub struct Tables {
    /// Peers by base address of their subnet.
    pub peers: Indexed<PeerEntry>,
    /// Peers by underlay address.
    pub vteps: HashMap<MapData, Addr4, Vtep>,
    /// Containers by address.
    pub endpoints: Indexed<EndpointEntry>,
    /// Connections that the stack has seen.
    pub stack_flows: StackFlows,
    /// The same of IPv6, if the programs are this process's own.
    pub ipv6: Option<Tables6>,
    fast_path: Array<MapData, u32>,
    counters: PerCpuArray<MapData, Count>,
    peer_counters: PerCpuArray<MapData, PeerCount>,
}

/// A counter that is not zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counter {
    /// The hook: `encap`, `decap`, `send`, `receive`, `track`, `xdp`.
    pub hook: &'static str,
    /// The reason.
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
        // Both families share the promotion epoch.
        let epoch = again(ebpf, "PROMOTION_EPOCH")?;
        let mut tables = Self::build(|name, _| taken(ebpf, name))?;
        tables.peers.take_index(ebpf, settings)?;
        tables.endpoints.take_index(ebpf, settings)?;
        tables.ipv6 = Some(Tables6::build(|name, _| taken(ebpf, name), epoch)?);
        Ok(tables)
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
        let [peers, vteps, endpoints, flows, marks, half, epoch, fast_path, counters, peer_counters] = MAPS;
        Ok(Self {
            peers: Indexed::read_only(map(peers.0, peers.1)?.try_into().map_err(wrong)?),
            vteps: map(vteps.0, vteps.1)?.try_into().map_err(wrong)?,
            endpoints: Indexed::read_only(map(endpoints.0, endpoints.1)?.try_into().map_err(wrong)?),
            stack_flows: StackFlows {
                flows: map(flows.0, flows.1)?.try_into().map_err(wrong)?,
                marks: map(marks.0, marks.1)?.try_into().map_err(wrong)?,
                half: map(half.0, half.1)?.try_into().map_err(wrong)?,
                epoch: map(epoch.0, epoch.1)?.try_into().map_err(wrong)?,
            },
            ipv6: None,
            fast_path: map(fast_path.0, fast_path.1)?.try_into().map_err(wrong)?,
            counters: map(counters.0, counters.1)?.try_into().map_err(wrong)?,
            peer_counters: map(peer_counters.0, peer_counters.1)?.try_into().map_err(wrong)?,
        })
    }

    /// Which packets the programs carry past the stack.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn fast_path(&self) -> Result<FastPath, DatapathError> {
        let number = self.fast_path.get(&0, 0);
        number
            .map(FastPath::numbered)
            .map_err(|error| DatapathError::failed("read the map fast_path", &error))
    }

    /// Tells the programs which packets to carry past the stack. It holds from the next packet on.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_fast_path(&mut self, fast_path: FastPath) -> Result<(), DatapathError> {
        let written = self.fast_path.set(0, fast_path.number(), 0);
        written.map_err(|error| DatapathError::failed("write the map fast_path", &error))
    }

    /// Makes the indexes say what the tables of peers and endpoints say, and returns how many entries it corrected.
    pub(super) fn mend_indexes(&mut self) -> Result<usize, DatapathError> {
        Ok(self.peers.mend()? + self.endpoints.mend()?)
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

    /// One counter, of all CPUs together, with what was counted under an older layout.
    pub fn counter(&self, hook: Hook, reason: Reason) -> Result<Count, DatapathError> {
        [hook.counter(reason), hook.inherited_counter(reason)].into_iter().try_fold(
            Count::default(),
            |sum, index| {
                let values = self.counters.get(&index, 0).map_err(|error| {
                    let action = format!("read counter {}/{}", hook.as_str(), reason.as_str());
                    DatapathError::failed(action, &error)
                })?;
                Ok(values.iter().fold(sum, add))
            },
        )
    }

    /// Sets what each CPU has counted under an older layout, by the numbers of hook and reason.
    pub(super) fn inherit(
        &mut self,
        hook: u32,
        reason: u32,
        counts: Vec<Count>,
    ) -> Result<(), DatapathError> {
        let failed = |error: &dyn std::error::Error| DatapathError::failed("inherit a counter", error);
        let counts = PerCpuValues::try_from(counts).map_err(|error| failed(&error))?;
        let index = HOOKS * REASONS + hook * REASONS + reason;
        self.counters.set(index, counts, 0).map_err(|error| failed(&error))
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

    /// Sets the counters at `slot` to zero, for the next peer that gets the slot.
    pub fn clear_traffic(&mut self, slot: u32) -> Result<(), DatapathError> {
        let zeros = vec![
            PeerCount::default();
            nr_cpus().map_err(|(_, error)| DatapathError::failed("count the CPUs", &error))?
        ];
        PerCpuValues::try_from(zeros)
            .map_err(|error| DatapathError::failed("clear a peer's counters", &error))
            .and_then(|zeros| {
                self.peer_counters.set(slot, zeros, 0).map_err(|error| {
                    DatapathError::failed(format!("clear the counters of peer slot {slot}"), &error)
                })
            })
    }
}

fn taken(ebpf: &mut Ebpf, name: &str) -> Result<Map, DatapathError> {
    let map = ebpf.take_map(name);
    map.ok_or_else(|| DatapathError::missing(format!("find map {name}"), "not in the object"))
}

/// The map of this name, by a descriptor of its own.
fn again(ebpf: &Ebpf, name: &str) -> Result<Array<MapData, u32>, DatapathError> {
    let failed = |error: &dyn std::error::Error| DatapathError::failed(format!("use map {name}"), error);
    let Some(Map::Array(map)) = ebpf.map(name) else {
        return Err(DatapathError::missing(format!("find map {name}"), "not in the object"));
    };
    let fd = map.fd().as_fd().try_clone_to_owned().map_err(|error| failed(&error))?;
    let map = MapData::from_fd(fd).map_err(|error| failed(&error))?;
    Map::from_map_data(map).and_then(Array::try_from).map_err(|error| failed(&error))
}

/// A peer as `PEERS` holds it, with its counters at `slot`.
pub(super) fn peer_entry(peer: &Peer, slot: u32) -> Result<PeerEntry, OtherFamily> {
    let (outer, vtep_mac) = (ipv4(peer.public_ip)?.into(), peer.vtep_mac.unwrap_or(NO_MAC).0);
    Ok(PeerEntry::new(outer, vtep_mac, 0, slot))
}

/// What `PEERS` holds for a peer whose packets need no inner MAC address. No device has this address.
const NO_MAC: Mac = Mac([0; 6]);

/// A peer of `PEERS` in the agent's words.
pub fn peer_of(entry: &PeerEntry) -> Peer {
    let vtep_mac = Some(Mac(entry.vtep_mac)).filter(|mac| *mac != NO_MAC);
    Peer { public_ip: entry.outer.into(), vtep_mac, ipv6: None }
}

/// An endpoint as `ENDPOINTS` holds it.
pub(super) fn endpoint_entry(endpoint: &Endpoint) -> EndpointEntry {
    EndpointEntry {
        ifindex: endpoint.port,
        mac: endpoint.mac.0,
        gateway_mac: endpoint.gateway_mac.0,
        flags: [
            (endpoint.pinned, ENDPOINT_PINNED),
            (endpoint.foreign_tc.egress, ENDPOINT_FOREIGN_EGRESS),
            (endpoint.foreign_tc.ingress, ENDPOINT_FOREIGN_INGRESS),
        ]
        .into_iter()
        .filter(|(is_set, _)| *is_set)
        .fold(endpoint_bridge_flags(endpoint.bridge.unwrap_or(0)), |flags, (_, flag)| flags | flag),
    }
}

/// An endpoint of `ENDPOINTS` in the agent's words.
pub fn endpoint_of(entry: &EndpointEntry) -> Endpoint {
    let has = |flag| entry.flags & flag != 0;
    Endpoint {
        port: entry.ifindex,
        mac: Mac(entry.mac),
        gateway_mac: Mac(entry.gateway_mac),
        pinned: has(ENDPOINT_PINNED),
        foreign_tc: ForeignTc {
            egress: has(ENDPOINT_FOREIGN_EGRESS),
            ingress: has(ENDPOINT_FOREIGN_INGRESS),
        },
        bridge: Some(endpoint_bridge(entry.flags)).filter(|bridge| *bridge != 0),
    }
}

/// Makes sure that whatever is pinned in `folder` under the name of one of our maps is such a map. The loader takes whatever it
/// finds there.
///
/// # Errors
/// Names the first pin that is something else.
pub fn check(folder: &Path) -> Result<(), DatapathError> {
    let shape = |pin: &str| {
        let (kind, key, value) = match pin {
            "peers" => (MapType::Hash, size_of::<Addr4>(), size_of::<PeerEntry>()),
            "vteps" => (MapType::Hash, size_of::<Addr4>(), size_of::<Vtep>()),
            "endpoints" => (MapType::Hash, size_of::<Addr4>(), size_of::<EndpointEntry>()),
            "stack_flows" => (MapType::Hash, size_of::<FlowKey>(), size_of::<Flow>()),
            "flow_marks" | "flow_marks_half" | "promotion_epoch" | "fast_path" => {
                (MapType::Array, size_of::<u32>(), size_of::<u32>())
            }
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
