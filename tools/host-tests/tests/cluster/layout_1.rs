//! An agent with map layout 1 is upgraded. The layout is made by hand, byte for byte; or, if the environment variable
//! `OVERLAY_OLDER_AGENT` names the binary of such an agent (commit 4a6de61, say), by that agent itself.
use std::{
    env, fs,
    path::{Path, PathBuf},
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use overlay_common::{ENDPOINT_PINNED, Hook, Reason, Verdict};
use overlay_host_tests::layout;
use overlay_lab::{Container, Member, Numbered, Options, PingOptions, command::sh};
use overlay_user::datapath::tables::Tables;

use super::bed::{Bed, Kind, endpoint, filters, ids, ids_in, json, overlay, peers, pins, wait_for};

/// Rows and columns of the counters in layout 1.
const HOOKS: u32 = 6;
const REASONS: u32 = 32;
/// The hook that was called `note`.
const NOTE: u32 = 4;

/// The maps of layout 1: pin, kind, bytes of a key, bytes of a value, length.
const MAPS: [(&str, &str, usize, usize, u32); 9] = [
    ("peers", "hash", 4, 16, 4096),
    ("vteps", "hash", 4, 4, 4097),
    ("endpoints", "hash", 4, 20, 256),
    ("flows", "hash", 16, 16, 65536),
    ("noted", "array", 4, 4, 4096),
    ("noted_half", "array", 4, 4, 1),
    ("receivers", "devmap_hash", 4, 4, 256),
    ("counters", "percpu_array", 4, 16, HOOKS * REASONS),
    ("peer_counters", "percpu_array", 4, 32, 4096),
];

/// An older agent's binary, if there is one.
fn older_agent() -> Option<PathBuf> {
    env::var_os("OVERLAY_OLDER_AGENT").map(PathBuf::from)
}

/// Where a host's pins of layout 1 are.
fn pins_1(member: &Member) -> PathBuf {
    layout(&member.host, 1)
}

fn map<T: TryFrom<Map, Error = MapError>>(folder: &Path, pin: &str) -> T {
    MapData::from_pin(folder.join(pin)).and_then(Map::from_map_data).unwrap().try_into().unwrap()
}

fn hash<const K: usize, const V: usize>(folder: &Path, pin: &str) -> HashMap<MapData, [u8; K], [u8; V]>
where
    [u8; K]: Pod,
    [u8; V]: Pod,
{
    map(folder, pin)
}

/// Bytes one after the other, in an array of their length.
fn bytes<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    parts.concat().try_into().unwrap()
}

/// What is counted by hand: another number for each hook and reason.
fn by_hand(hook: u32, reason: u32) -> u64 {
    1_000_000 + u64::from(hook * REASONS + reason)
}

/// Makes the maps of layout 1 in `folder`, with what the present maps hold, and `counted` packets of `2 * counted` bytes for
/// each hook and reason.
fn make_maps(folder: &Path, present: &Tables, counted: impl Fn(u32, u32) -> u64) {
    for (pin, kind, key, value, length) in MAPS {
        let path = folder.join(pin).display().to_string();
        sh(&format!(
            "bpftool map create {path} type {kind} key {key} value {value} entries {length} name {pin} flags 0"
        ))
        .unwrap();
    }
    let (mut peers, mut vteps) = (hash::<4, 16>(folder, "peers"), hash::<4, 4>(folder, "vteps"));
    for (base, peer) in present.peers.entries().unwrap() {
        let (outer, slot) = (peer.outer.octets, peer.slot.to_ne_bytes());
        peers.insert(base.octets(), bytes(&[&outer, &peer.vtep_mac, &[0; 2], &slot]), 0).unwrap();
        vteps.insert(outer, slot, 0).unwrap();
    }
    let mut endpoints = hash::<4, 20>(folder, "endpoints");
    for (address, endpoint) in present.endpoints.entries().unwrap() {
        let is_pinned = u32::from(endpoint.flags & ENDPOINT_PINNED != 0);
        let value = bytes(&[
            &endpoint.ifindex.to_ne_bytes(),
            &endpoint.mac,
            &endpoint.gateway_mac,
            &is_pinned.to_ne_bytes(),
        ]);
        endpoints.insert(address.octets(), value, 0).unwrap();
    }
    let mut flows = hash::<16, 16>(folder, "flows");
    for entry in present.stack_flows.iter() {
        let (key, flow) = entry.unwrap();
        let ([a, b], [p, q]) = (key.addresses.map(|address| address.octets), key.ports);
        let value = bytes(&[&flow.seen_ns.to_ne_bytes(), &flow.state.to_ne_bytes(), &[0; 4]]);
        flows.insert(bytes(&[&a, &b, &p, &q, &[key.protocol, 0, 0, 0]]), value, 0).unwrap();
    }
    // The second half counts.
    map::<Array<MapData, u32>>(folder, "noted_half").set(0, 1, 0).unwrap();
    let mut counters: PerCpuArray<MapData, [u8; 16]> = map(folder, "counters");
    for index in 0..HOOKS * REASONS {
        let packets = counted(index / REASONS, index % REASONS);
        // The first CPU has counted one packet, the last one all others.
        let mut counts = vec![[0; 2]; nr_cpus().unwrap()];
        *counts.first_mut().unwrap() = [1, 2];
        let last = counts.last_mut().unwrap();
        *last = [last[0] + packets - 1, last[1] + 2 * packets - 2];
        let counts: Vec<[u8; 16]> = counts
            .iter()
            .map(|[packets, size]| bytes(&[&packets.to_ne_bytes(), &size.to_ne_bytes()]))
            .collect();
        counters.set(index, PerCpuValues::try_from(counts).unwrap(), 0).unwrap();
    }
}

/// Has a host whose agent has ended look as one of layout 1 does. The programs that are attached are those of today, and go on
/// with their own maps.
fn make_layout_1(member: &Member) {
    let (present, folder) = (pins(member), pins_1(member));
    fs::create_dir_all(folder.join("links")).unwrap();
    make_maps(&folder, &Tables::open(&present).unwrap(), by_hand);
    for link in fs::read_dir(present.join("links")).unwrap() {
        let name = link.unwrap().file_name().into_string().unwrap();
        let older = name.replace("track-", "note-");
        fs::rename(present.join("links").join(&name), folder.join("links").join(older)).unwrap();
    }
    fs::rename(present.join("qdiscs"), folder.join("qdiscs")).unwrap();
    fs::remove_dir_all(present).unwrap();
}

/// Hosts that know each other, of which the first is, or was, an older agent's: it runs the older agent or none.
fn bed(method: &str) -> Bed {
    let options = Options { hosts: 2, ..Options::default() };
    let mut bed = Bed::with(Kind::Folder, options, &["--attach", method]);
    bed.learn_all();
    if let Some(older) = older_agent() {
        bed[0].end_agent().unwrap();
        bed[0].overlay(&["down"]).unwrap();
        bed[0].install(&older);
        bed[0].restart_agent().unwrap();
        bed.learn_all();
    }
    // There are an endpoint that learning must not touch, and stack flows.
    let (address, port) = {
        let pinned = &bed[0].containers[1];
        (pinned.address(), pinned.port().to_owned())
    };
    bed[0].overlay(&["attach", &address.to_string(), "--port", &port]).unwrap();
    wait_for("a pinned endpoint", || endpoint(&bed[0], address).is_some_and(|row| row["pinned"] == true));
    let large = PingOptions { count: 2, size: 3000, ..PingOptions::default() };
    let (a, b) = bed.pair();
    assert!(a.ping(b.address(), large).unwrap().complete());
    bed
}

fn stream(from: &Container, to: &Container) -> Numbered {
    Numbered::start(from, to, 20_000).unwrap()
}

/// What must be the same before and after: peers and endpoints, as the commands show them.
fn known(member: &Member) -> (Vec<(String, String, String)>, serde_json::Value) {
    let mut endpoints = json(member, &["endpoints"]);
    // The commands of that layout showed no path.
    for field in ["path", "path_why"] {
        for endpoint in endpoints.as_array_mut().unwrap() {
            endpoint.as_object_mut().unwrap().remove(field);
        }
    }
    (peers(member), endpoints)
}

/// The name that a map or a link of layout 1 has today.
fn name_of_today(name: &str) -> String {
    match name {
        "flows" => "stack_flows".to_owned(),
        "noted" => "flow_marks".to_owned(),
        "noted_half" => "flow_marks_half".to_owned(),
        "receivers" => "xdp_targets".to_owned(),
        _ => name.replace("note-", "track-"),
    }
}

/// Asserts that the counters say what layout 1 was left with, and at most `more` packets more where packets are carried.
fn assert_inherited(member: &Member, left: impl Fn(u32, u32) -> u64, more: u64) {
    let counters = member.counters().unwrap();
    for hook in Hook::ALL {
        for reason in Reason::ALL {
            // That layout had 32 reasons.
            let expected = if (*reason as u32) < 32 { left(*hook as u32, *reason as u32) } else { 0 };
            let (packets, size) = counters.count(*hook, *reason);
            let is_exact = match reason.verdict() {
                Verdict::Carried | Verdict::Stack => *hook as u32 == NOTE,
                Verdict::Drop | Verdict::Answered | Verdict::Event => true,
            };
            if is_exact {
                assert_eq!((packets, size), (expected, 2 * expected), "{hook:?} {reason:?}");
            } else {
                assert!((expected..=expected + more).contains(&packets), "{hook:?} {reason:?}: {packets}");
            }
        }
    }
}

fn is_upgraded_under_traffic(method: &str) {
    let mut bed = bed(method);
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let is_by_hand = older_agent().is_none();
    let (known_before, counted) = (known(&bed[0]), bed[0].counters().unwrap().carried());
    let streams = [stream(&a, &b), stream(&b, &a)];
    assert!(bed[0].end_agent().unwrap().success());
    if is_by_hand {
        make_layout_1(&bed[0]);
    }
    let (before, attached) = (ids_in(&pins_1(&bed[0])), filters(&bed[0].host));
    bed[0].install(overlay());
    bed[0].restart_agent().unwrap();
    let reports = streams.map(|stream| stream.finish().unwrap());
    for report in reports {
        assert_eq!((report.lost, report.duplicated), (0, 0), "{method}: {report:?}");
    }

    // The older layout is gone. Its maps are the present ones under the names of today.
    assert!(!pins_1(&bed[0]).exists() && !bed[0].host.bpf_root().join("overlay/filling").exists());
    let after = ids(&bed[0]);
    let shared = |maps: &[(String, u64)]| -> Vec<_> {
        let mut maps: Vec<_> = maps.iter().map(|(name, id)| (name_of_today(name), *id)).collect();
        // That layout knew no promotions.
        maps.retain(|(name, _)| !["counters", "promotion_epoch", "fast_path"].contains(&name.as_str()));
        maps.sort();
        maps
    };
    assert_eq!(shared(&before.maps), shared(&after.maps));
    // So are the links, or filters, with the programs of today.
    let mut links: Vec<_> = before.links.iter().map(|(name, id)| (name_of_today(name), *id)).collect();
    links.sort();
    assert_eq!(links, after.links);
    assert_eq!(links.is_empty(), method == "clsact");
    let is_kept = |(_, id): &(String, u64)| after.programs.iter().any(|(_, now)| now == id);
    assert!(!before.programs.iter().any(is_kept), "{:?} {:?}", before.programs, after.programs);
    let now = filters(&bed[0].host);
    assert_eq!((now.len(), now.is_empty()), (attached.len(), method == "tcx"), "{now:?}");
    assert!(now.iter().all(|one| one.2 != "overlay_note" && !attached.contains(one)), "{now:?}");
    assert_eq!(known(&bed[0]), known_before);

    // No count is lost. What is made by hand has nobody who counts while it is taken over.
    if is_by_hand {
        assert_inherited(&bed[0], by_hand, reports[0].sent.max(reports[1].sent) + 1000);
    } else {
        let carried = bed[0].counters().unwrap().carried();
        assert_eq!(carried.fast_out - counted.fast_out, reports[0].sent, "{counted:?} {carried:?}");
        assert_eq!(carried.fast_in - counted.fast_in, reports[1].sent, "{counted:?} {carried:?}");
        assert_eq!(carried.dropped, counted.dropped);
    }
    bed.assert_all_reached();
    bed[0].end_agent().unwrap();
    bed[0].restart_agent().unwrap();
    assert_eq!(ids(&bed[0]).maps, after.maps);
}

#[test]
fn layout_1_with_links_is_upgraded_under_traffic() {
    is_upgraded_under_traffic("tcx");
}

#[test]
fn layout_1_with_filters_is_upgraded_under_traffic() {
    is_upgraded_under_traffic("clsact");
}

/// An agent may end between the last replaced program and the removal of the older pins. The next one finds what the older
/// programs have counted up to the last of them, and must not count twice what has been inherited already.
#[test]
fn counters_of_layout_1_are_inherited_once_and_to_the_end() {
    let mut bed = Bed::new(Kind::Folder, 1);
    assert!(bed[0].end_agent().unwrap().success());
    make_layout_1(&bed[0]);
    bed[0].restart_agent().unwrap();
    assert_inherited(&bed[0], by_hand, 1000);

    assert!(bed[0].end_agent().unwrap().success());
    let to_the_end = |hook, reason| by_hand(hook, reason) + u64::from(hook + reason);
    fs::create_dir_all(pins_1(&bed[0]).join("links")).unwrap();
    make_maps(&pins_1(&bed[0]), &Tables::open(&pins(&bed[0])).unwrap(), to_the_end);
    bed[0].restart_agent().unwrap();
    assert_inherited(&bed[0], to_the_end, 1000);
    assert!(!pins_1(&bed[0]).exists());
    for _ in 0..2 {
        assert!(bed[0].end_agent().unwrap().success());
        bed[0].restart_agent().unwrap();
        assert_inherited(&bed[0], to_the_end, 1000);
    }
}
