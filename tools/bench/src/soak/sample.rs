//! What is there at one moment, of one host: its agent's memory and descriptors, its maps' entries, what the kernel has of its
//! programs, and the connections that it tracks.
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    hash::Hash,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapInfo},
    programs::{ProgramInfo, loaded_links, loaded_programs},
};
use overlay_common::{ABI, Addr4, EndpointEntry, Flow, FlowKey, PeerEntry, Vtep};
use overlay_lab::Host;
use serde::Serialize;

use crate::agent::{Memory, memlock};

/// Measures by name.
pub(super) type Values = BTreeMap<&'static str, f64>;

/// What was there at one moment.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    /// Seconds since everything was up.
    pub(super) seconds: f64,
    /// Which host.
    pub(super) host: String,
    /// What was there.
    pub(super) values: Values,
}

/// The measures of an agent's process begin so.
pub(super) const AGENT: &str = "agent: ";

/// Everything about a host whose agent runs. `known` has the ids of its maps of counters so far, and gets the present one.
pub(super) fn values(host: &Host, agent: u32, known: &mut BTreeSet<u32>) -> Result<Values> {
    let mut values = Values::new();
    process(agent, &mut values).context("look at the agent's process")?;
    let pins = pins(host);
    entries(&pins, &mut values).with_context(|| format!("read the maps in {}", pins.display()))?;
    known.insert(counters(host)?);
    kernel(known, &mut values).context("ask the kernel for programs")?;
    let tracked = host.namespace().enter(|| {
        // Of the namespace that asks.
        Ok(fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?)
    });
    values.insert("conntrack entries", tracked?.trim().parse()?);
    Ok(values)
}

fn pins(host: &Host) -> PathBuf {
    host.bpf_root().join("overlay").join(format!("v{ABI}")).join("default")
}

/// Id of a host's map of counters. The kernel gives ids in turn, so that none comes again in the time of a soak.
pub(super) fn counters(host: &Host) -> Result<u32> {
    let pin = pins(host).join("counters");
    Ok(MapInfo::from_pin(&pin).with_context(|| format!("look at {}", pin.display()))?.id())
}

fn process(pid: u32, values: &mut Values) -> Result<()> {
    let memory = Memory::of(pid)?;
    let count =
        |folder: &str| Ok::<_, std::io::Error>(fs::read_dir(format!("/proc/{pid}/{folder}"))?.count());
    values.insert("agent: resident memory, KiB", memory.resident_kib as f64);
    values.insert("agent: own memory, KiB", memory.anonymous_kib as f64);
    values.insert("agent: descriptors", count("fd")? as f64);
    values.insert("agent: threads", count("task")? as f64);
    Ok(())
}

fn entries(pins: &Path, values: &mut Values) -> Result<()> {
    let open = |name: &str| -> Result<Map> { Ok(Map::from_map_data(MapData::from_pin(pins.join(name))?)?) };
    values.insert("map peers", of_hash::<Addr4, PeerEntry>(open("peers")?)?);
    values.insert("map vteps", of_hash::<Addr4, Vtep>(open("vteps")?)?);
    values.insert("map endpoints", of_hash::<Addr4, EndpointEntry>(open("endpoints")?)?);
    values.insert("map stack_flows", of_hash::<FlowKey, Flow>(open("stack_flows")?)?);
    let no_peer = |entry: &PeerEntry| entry.outer == Addr4::default();
    values.insert("map peer_index", of_array(open("peer_index")?, no_peer)?);
    values.insert(
        "map endpoint_index",
        of_array(open("endpoint_index")?, |entry: &EndpointEntry| entry.ifindex == 0)?,
    );
    values.insert("map flow_marks", of_array(open("flow_marks")?, |mark: &u32| *mark == 0)?);
    values.insert("pinned links", fs::read_dir(pins.join("links"))?.count() as f64);
    Ok(())
}

fn of_hash<K: Pod + Eq + Hash, V: Pod>(map: Map) -> Result<f64> {
    let map: HashMap<MapData, K, V> = map.try_into()?;
    // Where an entry goes while the map is read, the kernel begins anew (BPF_MAP_GET_NEXT_KEY of a key that is not there), so
    // the same key may come twice.
    let keys: HashSet<K> = map.keys().flatten().collect();
    Ok(keys.len() as f64)
}

/// How many entries of an array are in use.
fn of_array<V: Pod>(map: Map, is_unused: impl Fn(&V) -> bool) -> Result<f64> {
    let map: Array<MapData, V> = map.try_into()?;
    Ok(map.iter().flatten().filter(|entry| !is_unused(entry)).count() as f64)
}

/// What the kernel has of the programs that count in one of these maps, which are a host's maps of counters, present and past. So
/// programs that `overlay down` left behind are seen, although nobody knows of them any more.
fn kernel(counters: &BTreeSet<u32>, values: &mut Values) -> Result<()> {
    let mut maps = BTreeSet::new();
    let mut programs = BTreeSet::new();
    // A program of somebody else's may end while it is asked about.
    for program in loaded_programs().flatten() {
        let used = used_maps(&program);
        if used.iter().any(|map| counters.contains(map)) {
            programs.insert(program.id());
            maps.extend(used);
        }
    }
    let links = loaded_links().flatten().filter(|link| programs.contains(&link.program_id())).count();
    let bytes: u64 = maps.iter().filter_map(|id| bytes(*id).ok()).sum();
    values.insert("BPF programs", programs.len() as f64);
    values.insert("BPF links", links as f64);
    values.insert("BPF maps", maps.len() as f64);
    values.insert("BPF maps' kernel memory, KiB", bytes as f64 / 1024.0);
    Ok(())
}

fn used_maps(program: &ProgramInfo) -> Vec<u32> {
    program.map_ids().ok().flatten().unwrap_or_default()
}

fn bytes(map: u32) -> Result<u64> {
    let map = MapInfo::from_id(map)?.fd()?;
    memlock(&fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd()))?)
}
