//! Thousands of peers, written directly into a network's pinned maps.
use std::{net::Ipv4Addr, path::PathBuf};

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData},
};
use overlay_common::{Addr4, PeerEntry, Vtep};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
pub(crate) struct Specification {
    /// Where the network's maps are pinned.
    pins: PathBuf,
    /// Base address of the whole overlay.
    network: Ipv4Addr,
    /// How many peers.
    count: u32,
    /// Subnet of the first peer.
    subnet: Ipv4Addr,
    /// How many addresses each subnet has.
    step: u32,
    /// Underlay address of the first peer; those of the others follow it.
    outer: Ipv4Addr,
    vtep_mac: [u8; 6],
}

#[derive(Serialize)]
pub(crate) struct Filled {
    peers: u32,
}

pub(crate) fn fill(specification: &Specification) -> Result<Filled> {
    let Specification { pins, network, count, subnet, step, outer, vtep_mac } = specification;
    let mut peers = open::<PeerEntry>(&pins.join("peers"))?;
    let mut vteps = open::<Vtep>(&pins.join("vteps"))?;
    let path = pins.join("peer_index");
    let mut by_number: Array<_, PeerEntry> =
        Map::Array(MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?)
            .try_into()
            .with_context(|| format!("{} is another kind of map", path.display()))?;
    for index in 0..*count {
        let base = u32::from(*subnet) + index * step;
        let key = Addr4::new(base.to_be_bytes());
        let outer = Addr4::new((u32::from(*outer) + index).to_be_bytes());
        // Slot 0 is the real peer's. Each peer has a slot of its own, as under an agent, because the cache lines of the
        // counters are part of the cost.
        let slot = index + 1;
        let peer = PeerEntry { outer, vtep_mac: *vtep_mac, slot, ..PeerEntry::default() };
        peers.insert(key, peer, 0).with_context(|| format!("write peer {index} of {count}"))?;
        by_number
            .set((base - u32::from(*network)) / step, peer, 0)
            .with_context(|| format!("write peer {index} of {count} into the programs' index"))?;
        vteps.insert(outer, Vtep { slot }, 0).with_context(|| format!("write vtep {index} of {count}"))?;
    }
    Ok(Filled { peers: *count })
}

fn open<V: Pod>(path: &std::path::Path) -> Result<HashMap<MapData, Addr4, V>> {
    let data = MapData::from_pin(path).with_context(|| format!("open {}", path.display()))?;
    Map::HashMap(data).try_into().with_context(|| format!("{} is another kind of map", path.display()))
}
