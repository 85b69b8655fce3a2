//! The programs as filters of a clsact qdisc, as on kernels without TCX. Everything that holds for links must hold for
//! filters.
use std::fs;

use overlay_lab::{Host, Options, transfer};
use serde_json::Value;

use super::{
    bed::{Bed, Kind, assert_reaches, endpoint, filters, json, pins, wait_for},
    restart::under_packets,
};

/// Priority of our filters.
const PRIORITY: &str = "7";
/// A filter that matches nothing.
const NEVER: &str = "u32 match u32 0xdeadbeef 0xffffffff at 0 flowid 1:1";

fn bed(hosts: u8, method: &str) -> Bed {
    Bed::with(Kind::Folder, Options { hosts, ..Options::default() }, &["--attach", method])
}

/// What hangs at the interfaces of a host, without the ids, and short: `eth0 ingress overlay_decap`.
fn places(host: &Host) -> Vec<String> {
    let place = |(device, kind, name, _): &(String, String, String, u64)| {
        format!("{device} {} {name}", kind.trim_start_matches("clsact/"))
    };
    filters(host).iter().map(place).collect()
}

/// The filters of a host with two containers.
const ALL: [&str; 8] = [
    "br0 ingress overlay_bridge",
    "eth0 ingress overlay_decap",
    "overlay0 egress overlay_send",
    "overlay0 ingress overlay_receive",
    "va egress overlay_track",
    "va ingress overlay_encap",
    "vb egress overlay_track",
    "vb ingress overlay_encap",
];

fn pinned_links(bed: &Bed, host: usize) -> usize {
    fs::read_dir(pins(&bed[host]).join("links")).unwrap().count()
}

fn tc(host: &Host, line: &str) -> String {
    host.exec(&format!("tc {line}")).unwrap()
}

/// A filter that leaves every packet to the next one: a classic BPF program of one instruction, `ret -1`.
fn go_on(host: &Host) -> String {
    let file = host.folder().join("go-on");
    fs::write(&file, "1,6 0 0 4294967295").unwrap();
    format!("bpf da bytecode-file {}", file.display())
}

#[test]
fn filters_carry_what_links_carry_and_go_with_down() {
    let mut bed = bed(2, "clsact");
    bed.learn_all();
    let host = bed[0].host.clone();
    assert_eq!((places(&host), pinned_links(&bed, 0)), (ALL.map(str::to_owned).to_vec(), 0));
    let (a, b) = bed.pair();
    let before = bed[0].counters().unwrap().carried();
    bed.assert_all_reached();
    transfer(a, b, 20 << 20).unwrap();
    transfer(b, a, 20 << 20).unwrap();
    let after = bed[0].counters().unwrap().carried();
    let enough = (20 << 20) / 1400;
    assert!(
        after.fast_in - before.fast_in > enough && after.fast_out - before.fast_out > enough,
        "{after:?}"
    );
    assert_eq!((after.stack_in, after.stack_out, after.dropped), (before.stack_in, before.stack_out, 0));

    let status = json(&bed[0], &["status"]);
    assert_eq!(status["attached_by"], "clsact");
    let tcx = status["features"].as_array().unwrap().iter().find(|one| one["name"] == "TCX").unwrap();
    assert_eq!(tcx["instead"], "clsact filters");
    assert!(bed[0].overlay(&["status"]).unwrap().contains("attached by clsact filters"));

    // A filter that another product adds beside ours afterwards keeps its qdisc.
    tc(&host, &format!("filter add dev va ingress protocol all pref 100 {NEVER}"));
    bed[0].end_agent().unwrap();
    assert_eq!(places(&host).len(), 8, "an agent that ends leaves its filters");
    bed[0].overlay(&["down"]).unwrap();
    assert_eq!(places(&host), [""; 0]);
    let qdiscs = tc(&host, "qdisc show");
    let left: Vec<_> = qdiscs.lines().filter(|line| line.contains("clsact")).collect();
    assert!(left.len() == 1 && left[0].contains("dev va "), "{qdiscs}");
    assert!(tc(&host, "filter show dev va ingress").contains("pref 100 u32"));

    bed[0].restart_agent().unwrap();
    bed.wait_for_peers(1);
    bed.learn_all();
    assert_eq!(places(&bed[0].host).len(), 8);
}

#[test]
fn what_others_hang_there_is_left_alone() {
    let mut bed = bed(1, "clsact");
    bed[0].end_agent().unwrap();
    bed[0].overlay(&["down"]).unwrap();
    let host = bed[0].host.clone();
    // One qdisc was made by another product and is still empty; the other has filters before and behind ours.
    tc(&host, "qdisc add dev br0 clsact");
    tc(&host, "qdisc add dev eth0 clsact");
    for line in ["protocol ip pref 3", "protocol all pref 49152"] {
        tc(&host, &format!("filter add dev eth0 ingress {line} {NEVER}"));
    }
    let before = (tc(&host, "qdisc show"), tc(&host, "filter show dev eth0 ingress"));
    bed[0].restart_agent().unwrap();
    wait_for("all programs", || places(&host) == ALL);
    bed[0].end_agent().unwrap();
    bed[0].overlay(&["down"]).unwrap();
    assert_eq!((tc(&host, "qdisc show"), tc(&host, "filter show dev eth0 ingress")), before);

    // A foreign filter has our very place: first by another kind of filter, then by handle.
    bed[0].restart_agent().unwrap();
    let handle = tc(&host, "filter show dev eth0 ingress pref 7");
    let handle = handle.split("handle ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    bed[0].end_agent().unwrap();
    bed[0].overlay(&["down"]).unwrap();
    let foreign =
        [format!("pref {PRIORITY} {NEVER}"), format!("pref {PRIORITY} handle {handle} {}", go_on(&host))];
    for (foreign, named) in foreign.iter().zip(["a u32 filter", "a bpf filter"]) {
        tc(&host, &format!("filter add dev eth0 ingress protocol all {foreign}"));
        let before = tc(&host, "filter show dev eth0 ingress");
        bed[0].start_agent().unwrap();
        let error = format!("{:#}", bed[0].wait_ready().unwrap_err());
        assert!(error.contains(&format!("priority {PRIORITY}, handle {handle}")), "{error}");
        assert!(
            error.contains(named) && error.contains("tc filter delete dev eth0 ingress pref 7"),
            "{error}"
        );
        let _ = bed[0].end_agent();
        // Neither what a failed start leaves nor a later `overlay down` touches it.
        bed[0].overlay(&["down"]).unwrap();
        assert_eq!(
            (tc(&host, "filter show dev eth0 ingress"), places(&host).len()),
            (before, usize::from(named.contains("bpf")))
        );
        tc(&host, &format!("filter delete dev eth0 ingress pref {PRIORITY}"));
    }
    // A filter at our priority with another handle does not concern us.
    tc(&host, &format!("filter add dev eth0 ingress protocol all pref {PRIORITY} handle 1 {}", go_on(&host)));
    bed[0].restart_agent().unwrap();
    wait_for("all programs", || places(&host).len() == ALL.len() + 1);
    bed[0].end_agent().unwrap();
    bed[0].overlay(&["down"]).unwrap();
    assert!(tc(&host, "filter show dev eth0 ingress").contains("handle 0x1 "));
}

#[test]
fn the_attach_method_changes_under_traffic() {
    let mut bed = bed(2, "tcx");
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    bed.learn_all();
    let host = bed[0].host.clone();
    assert_eq!((places(&host).len(), pinned_links(&bed, 0)), (0, 8));
    // An interface drops for a moment what it is to send when it gets a clsact qdisc, so the qdiscs are made before the
    // packets start.
    for device in ["eth0", "br0", "va", "vb", "overlay0"] {
        tc(&host, &format!("qdisc add dev {device} clsact"));
    }
    let before = bed[0].counters().unwrap().carried();
    for (end, method, attached) in
        [(true, "clsact", (8, 0)), (false, "auto", (0, 8)), (false, "clsact", (8, 0)), (true, "tcx", (0, 8))]
    {
        bed.members[0].set_options(&bed.store, &["--attach", method]);
        let reports = under_packets(&a, &b, 20_000, || {
            if end {
                assert!(bed[0].end_agent().unwrap().success());
            } else {
                bed[0].kill_agent().unwrap();
            }
            bed[0].restart_agent().unwrap();
        });
        for report in reports {
            println!("to {method}: {report:?}");
            assert_eq!((report.lost, report.duplicated), (0, 0), "to {method}: {report:?}");
        }
        assert_eq!((places(&host).len(), pinned_links(&bed, 0)), attached, "to {method}");
        // The kernel detaches a link a moment after its pin is removed.
        wait_for("an end of what was there before", || {
            let links = host.exec("bpftool -j link show").unwrap();
            let links: Value = serde_json::from_str(&links).unwrap();
            let index = interface(&host, "eth0").0;
            let of_eth0 = |one: &&Value| one["ifindex"] == index && one["type"] == 11;
            links.as_array().unwrap().iter().filter(of_eth0).count() <= attached.1.min(1)
        });
        let before = bed[0].counters().unwrap().carried();
        assert_reaches(&a, b.address());
        let after = bed[0].counters().unwrap().carried();
        // Two requests and two answers are each counted once.
        assert_eq!((after.fast_out - before.fast_out, after.fast_in - before.fast_in), (2, 2), "to {method}");
    }
    // There was never a moment without a program either, in which the stack would have carried what arrived.
    let after = bed[0].counters().unwrap().carried();
    assert_eq!(
        (after.stack_out, after.stack_in, after.dropped),
        (before.stack_out, before.stack_in, 0),
        "{after:?}"
    );
}

/// Index and MAC address of a link.
fn interface(host: &Host, name: &str) -> (u64, String) {
    let shown: Value =
        serde_json::from_str(&host.exec(&format!("ip -j link show dev {name}")).unwrap()).unwrap();
    (shown[0]["ifindex"].as_u64().unwrap(), shown[0]["address"].as_str().unwrap().to_owned())
}

#[test]
fn ports_come_and_go_and_an_index_is_not_an_interface() {
    let mut bed = bed(2, "clsact");
    bed.learn_all();
    let host = bed[0].host.clone();
    let marked = |bed: &Bed, index: u64| pins(&bed[0]).join("qdiscs").join(index.to_string()).exists();
    let (subnet, mtu) = (bed[0].subnet.clone(), bed[0].mtu);
    let (far, address) = (bed[1].containers[0].clone(), bed[0].containers[1].address());
    let (index, _) = interface(&host, "vb");
    assert!(marked(&bed, index));

    // First a port goes and comes under a running agent.
    bed.members[0].containers.pop().unwrap().remove().unwrap();
    wait_for("nothing at vb", || endpoint(&bed[0], address).is_none() && !marked(&bed, index));
    assert_eq!(places(&host).len(), 6);
    let container = host.add_container("b", &subnet, 3, mtu).unwrap();
    assert_reaches(&container, far.address());
    wait_for("filters at the new vb", || endpoint(&bed[0], address).is_some() && places(&host) == ALL);
    assert!(marked(&bed, interface(&host, "vb").0));

    // Then it goes while no agent runs, and another container gets the same interface index.
    bed[0].kill_agent().unwrap();
    let (index, _) = interface(&host, "vb");
    container.remove().unwrap();
    assert_reaches(&bed[0].containers[0], far.address());
    let container = host.add_container("b", &subnet, 3, mtu).unwrap();
    host.exec("ip link delete vb").unwrap();
    let inside = container.namespace().name().to_owned();
    host.namespace()
        .ip(&format!("link add vb index {index} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {inside}"))
        .unwrap();
    host.namespace().ip("link set vb master br0 up").unwrap();
    let gateway = format!("{}1", subnet.trim_end_matches("0/24"));
    for line in [
        format!("address add {address}/24 dev eth0"),
        "link set eth0 up".into(),
        format!("route add default via {gateway}"),
    ] {
        container.namespace().ip(&line).unwrap();
    }
    assert_eq!((interface(&host, "vb").0, places(&host).len()), (index, 6));
    // Without an agent the stack carries the packets.
    assert_reaches(&container, far.address());
    bed[0].restart_agent().unwrap();
    assert_reaches(&container, far.address());
    wait_for("filters at the vb of the same index", || places(&host) == ALL);
    wait_for("its endpoint", || endpoint(&bed[0], address).is_some());

    // Somebody deletes the qdisc with everything in it. The audit notices.
    for device in ["eth0", "va"] {
        tc(&host, &format!("qdisc delete dev {device} clsact"));
    }
    // The underlay device's qdisc may be back already, since any event at eth0 makes the agent look at it.
    assert!(places(&host).len() <= 6, "{:?}", places(&host));
    assert_reaches(&container, far.address());
    bed[0].overlay(&["peers", "--resync"]).unwrap();
    wait_for("all programs", || places(&host) == ALL);

    // When overlay0 is made anew, it gets filters of its own, and it does not count as there without them.
    let (index, _) = interface(&host, "overlay0");
    host.exec("ip link delete overlay0").unwrap();
    wait_for("another overlay0", || places(&host) == ALL && interface(&host, "overlay0").0 != index);
}
