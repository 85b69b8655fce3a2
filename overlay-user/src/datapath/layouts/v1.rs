//! Map layout 1: 32 reasons for each hook, and names that have changed since.
//!
//! Peers, VTEPs, endpoints, stack flows and their marks, XDP targets and the counters of peers are what they are today, some
//! under another name. The counters by hook and reason are an array of 6 rows and 32 columns.
use std::path::Path;

use aya::maps::{MapData, PerCpuArray};
use overlay_common::Count;

use super::reader::{Inherited, Reader, failed, open};
use crate::datapath::DatapathError;

const HOOKS: u32 = 6;
const REASONS: u32 = 32;

pub(super) const READER: Reader = Reader {
    abi: 1,
    shared: &[
        ("peers", "peers"),
        ("vteps", "vteps"),
        ("endpoints", "endpoints"),
        ("flows", "stack_flows"),
        ("peer_counters", "peer_counters"),
    ],
    shared_if_there: &[
        ("noted", "flow_marks"),
        ("noted_half", "flow_marks_half"),
        ("receivers", "xdp_targets"),
    ],
    sized: ["peers", "flows"],
    renamed_links: &[("note", "track")],
    peers: None,
    endpoints: None,
    stack_flows: None,
    counters: Some(counters),
};

fn counters(folder: &Path) -> Result<Vec<Inherited>, DatapathError> {
    let path = folder.join("counters");
    let wrong = |error: &dyn std::error::Error| failed("read the older map", &path, error);
    let map: PerCpuArray<MapData, Count> =
        open(&path)?.try_into().map_err(|error| wrong(&error as &dyn std::error::Error))?;
    let mut found = Vec::new();
    for hook in 0..HOOKS {
        for reason in 0..REASONS {
            let counts = map.get(&(hook * REASONS + reason), 0).map_err(|error| wrong(&error))?;
            found.push(Inherited { hook, reason, counts: counts.iter().copied().collect() });
        }
    }
    Ok(found)
}
