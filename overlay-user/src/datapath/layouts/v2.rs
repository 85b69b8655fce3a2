//! Map layout 2, for agents that come after it.
use std::{net::Ipv4Addr, path::Path};

use aya::maps::{HashMap, MapData};
use overlay_common::{Addr4, Flow, FlowKey};

use super::reader::{Reader, failed, open};
use crate::{
    datapath::DatapathError,
    model::{
        entries::{Endpoint, ForeignTc, Peer},
        mac::Mac,
    },
};

pub(super) const READER: Reader = Reader {
    abi: 2,
    shared: &[("vteps", "vteps"), ("counters", "counters"), ("peer_counters", "peer_counters")],
    shared_if_there: &[],
    sized: ["peers", "stack_flows"],
    renamed_links: &[],
    peers: Some(peers),
    endpoints: Some(endpoints),
    stack_flows: Some(stack_flows),
    counters: None,
};

/// Key: base address of the subnet. Value: underlay address (4 bytes), VtepMAC (6), zero (2), slot (4).
fn peers(folder: &Path) -> Result<Vec<(Ipv4Addr, Peer, u32)>, DatapathError> {
    let entries = old_hash::<4, 16>(folder, "peers")?;
    let peer = |(base, value): ([u8; 4], [u8; 16])| {
        let public_ip = Ipv4Addr::from(part(&value, 0)).into();
        let vtep_mac = Some(Mac(part(&value, 4))).filter(|mac| mac.0 != [0; 6]);
        (base.into(), Peer { public_ip, vtep_mac, ipv6: None }, word(&value, 12))
    };
    Ok(entries.into_iter().map(peer).collect())
}

/// Key: address. Value: interface index (4 bytes), the container's MAC (6), the gateway's MAC (6), flags (4): bit 0 is
/// "pinned".
fn endpoints(folder: &Path) -> Result<Vec<(Ipv4Addr, Endpoint)>, DatapathError> {
    let entries = old_hash::<4, 20>(folder, "endpoints")?;
    let endpoint = |(address, value): ([u8; 4], [u8; 20])| {
        let endpoint = Endpoint {
            port: word(&value, 0),
            mac: Mac(part(&value, 4)),
            gateway_mac: Mac(part(&value, 10)),
            pinned: word(&value, 16) & 1 != 0,
            // The learner looks as soon as it has started.
            foreign_tc: ForeignTc::default(),
            bridge: None,
        };
        (address.into(), endpoint)
    };
    Ok(entries.into_iter().map(endpoint).collect())
}

/// Key: two addresses (8 bytes), their ports (4), protocol (1), zero (3). Value: CLOCK_MONOTONIC nanoseconds (8), state
/// (4), zero (4). Key and state bits are the present layout's.
fn stack_flows(folder: &Path) -> Result<Vec<(FlowKey, Flow)>, DatapathError> {
    let entries = old_hash::<16, 16>(folder, "stack_flows")?;
    let flow = |(key, value): ([u8; 16], [u8; 16])| {
        let key = FlowKey {
            addresses: [Addr4::new(part(&key, 0)), Addr4::new(part(&key, 4))],
            ports: [part(&key, 8), part(&key, 10)],
            protocol: key[12],
            reserved: [0; 3],
        };
        let seen_ns = u64::from_ne_bytes(part(&value, 0));
        (key, Flow { seen_ns, state: word(&value, 8), reserved: Default::default() })
    };
    Ok(entries.into_iter().map(flow).collect())
}

/// `N` bytes from `at` on, which are inside.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(part(bytes, at))
}

/// Keys and values of a map, as bytes.
type Entries<const K: usize, const V: usize> = Vec<([u8; K], [u8; V])>;

/// A hash map, as bytes.
fn old_hash<const K: usize, const V: usize>(
    folder: &Path,
    pin: &str,
) -> Result<Entries<K, V>, DatapathError> {
    let path = folder.join(pin);
    let wrong = |error: &dyn std::error::Error| failed("read the older map", &path, error);
    let map: HashMap<MapData, [u8; K], [u8; V]> =
        open(&path)?.try_into().map_err(|error| wrong(&error as &dyn std::error::Error))?;
    let mut entries = Vec::new();
    for entry in map.iter() {
        entries.push(entry.map_err(|error| wrong(&error))?);
    }
    Ok(entries)
}
