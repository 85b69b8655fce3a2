//! How a layout that is no longer the present one is read: what each file beside this one provides.
use std::{net::Ipv4Addr, path::Path};

use aya::maps::{Map, MapData};
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

/// The map that is pinned there. Its types are no longer in the code: whoever reads it says of how many bytes they are, which is
/// checked.
pub(super) fn open(path: &Path) -> Result<Map, DatapathError> {
    MapData::from_pin(path)
        .and_then(Map::from_map_data)
        .map_err(|error| failed("read the older map", path, &error))
}

pub(super) fn failed(verb: &str, path: &Path, error: &dyn std::error::Error) -> DatapathError {
    DatapathError::failed(format!("{verb} {}", path.display()), error)
}
