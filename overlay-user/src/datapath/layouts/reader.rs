//! How a layout that is no longer the present one is read: what each file beside this one provides.
use std::{net::Ipv4Addr, path::Path};

use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use overlay_common::{Count, Flow, FlowKey};

use crate::{
    datapath::DatapathError,
    model::entries::{Endpoint, Peer},
};

/// How to read a layout that is no longer the present one. What is shared need not be read, and has no function.
pub(super) struct Reader {
    pub(super) abi: u32,
    /// Maps that are the same in the present layout: the name of the pin there, and the name here. They are shared, so that
    /// nothing is lost of what the older programs still write to them while ours take over.
    pub(super) shared: &'static [(&'static str, &'static str)],
    /// More of them, which not every agent with this layout has made.
    pub(super) shared_if_there: &'static [(&'static str, &'static str)],
    /// Pins of the tables of peers and of stack flows, whose sizes are kept.
    pub(super) sized: [&'static str; 2],
    /// Kinds of links that have another name here: the name there, and the name here.
    pub(super) renamed_links: &'static [(&'static str, &'static str)],
    /// Reads the peers: base address of the subnet, peer, slot of its counters.
    pub(super) peers: Option<Read<(Ipv4Addr, Peer, u32)>>,
    /// Reads the endpoints.
    pub(super) endpoints: Option<Read<(Ipv4Addr, Endpoint)>>,
    /// Reads the stack flows. The older programs write them.
    pub(super) stack_flows: Option<Read<(FlowKey, Flow)>>,
    /// Reads the counters. The older programs write them.
    pub(super) counters: Option<Read<Inherited>>,
}

/// Reads one map in this folder.
pub(super) type Read<T> = fn(&Path) -> Result<Vec<T>, DatapathError>;

/// A counter of an older layout. Hooks and reasons keep their numbers in every layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inherited {
    /// Number of the hook.
    pub(super) hook: u32,
    /// Number of the reason.
    pub(super) reason: u32,
    /// What each CPU has counted.
    pub(super) counts: Vec<Count>,
}

/// Keys and values of a map, as bytes.
pub(super) type Entries<const K: usize, const V: usize> = Vec<([u8; K], [u8; V])>;

/// A hash map of an older layout, as bytes: its types are no longer in the code, and sizes are checked.
#[cfg_attr(not(feature = "next-layout"), expect(dead_code, reason = "layout 1 has no map that is copied so"))]
pub(super) fn old_hash<const K: usize, const V: usize>(
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

/// Counters that an older layout has in an array of `hooks` rows and `reasons` columns.
pub(super) fn old_counters(
    folder: &Path,
    pin: &str,
    hooks: u32,
    reasons: u32,
) -> Result<Vec<Inherited>, DatapathError> {
    let path = folder.join(pin);
    let wrong = |error: &dyn std::error::Error| failed("read the older map", &path, error);
    let map: PerCpuArray<MapData, Count> =
        open(&path)?.try_into().map_err(|error| wrong(&error as &dyn std::error::Error))?;
    let mut found = Vec::new();
    for hook in 0..hooks {
        for reason in 0..reasons {
            let counts = map.get(&(hook * reasons + reason), 0).map_err(|error| wrong(&error))?;
            found.push(Inherited { hook, reason, counts: counts.iter().copied().collect() });
        }
    }
    Ok(found)
}

fn open(path: &Path) -> Result<Map, DatapathError> {
    MapData::from_pin(path)
        .and_then(Map::from_map_data)
        .map_err(|error| failed("read the older map", path, &error))
}

pub(super) fn failed(verb: &str, path: &Path, error: &dyn std::error::Error) -> DatapathError {
    DatapathError::failed(format!("{verb} {}", path.display()), error)
}
