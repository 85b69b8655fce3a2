//! How a layout that is no longer the present one is read: what each file beside this one provides.
use std::{net::Ipv4Addr, path::Path};

use aya::maps::{HashMap, MapData};
use overlay_common::{Flow, FlowKey};

use crate::{
    datapath::DatapathError,
    model::entries::{Endpoint, Peer},
};

/// How to read a layout that is no longer the present one.
pub(super) struct Reader {
    pub(super) abi: u32,
    /// Pins of maps that are the same in the present layout. They are shared, so what the older programs still write to
    /// them while ours take over is not lost: counters that need not be copied are exact.
    pub(super) unchanged: &'static [&'static str],
    /// Reads the others.
    pub(super) read: fn(&Path) -> Result<Contents, DatapathError>,
    /// Reads the notes of connections alone. Empty if they are shared.
    pub(super) notes: fn(&Path) -> Result<Notes, DatapathError>,
}

/// What maps of an older layout hold that the present ones must hold too.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Base address of the subnet, peer, slot of its counters.
    pub(super) peers: Vec<(Ipv4Addr, Peer, u32)>,
    pub(super) endpoints: Vec<(Ipv4Addr, Endpoint)>,
    pub(super) notes: Notes,
}

/// Connections of the stack.
pub(super) type Notes = Vec<(FlowKey, Flow)>;

/// Keys and values of a map, as bytes.
pub(super) type Entries<const K: usize, const V: usize> = Vec<([u8; K], [u8; V])>;

/// A hash map of an older layout, as bytes: its types are no longer in the code, and sizes are checked.
#[cfg_attr(not(feature = "next-layout"), expect(dead_code, reason = "there is no older layout yet"))]
pub(super) fn old_map<const K: usize, const V: usize>(
    folder: &Path,
    pin: &str,
) -> Result<Entries<K, V>, DatapathError> {
    let path = folder.join(pin);
    let wrong = |error: &dyn std::error::Error| failed("read the older map", &path, error);
    let map = MapData::from_pin(&path).map_err(|error| wrong(&error))?;
    let map = aya::maps::Map::from_map_data(map).map_err(|error| wrong(&error))?;
    let map: HashMap<MapData, [u8; K], [u8; V]> = map.try_into().map_err(|error| wrong(&error))?;
    let mut entries = Vec::new();
    for entry in map.iter() {
        entries.push(entry.map_err(|error| wrong(&error))?);
    }
    Ok(entries)
}

pub(super) fn failed(verb: &str, path: &Path, error: &dyn std::error::Error) -> DatapathError {
    DatapathError::failed(format!("{verb} {}", path.display()), error)
}
