//! Two containers behind one bridge: the fast path carries what the bridge would only forward, and whatever the bridge or the host
//! would do besides is obeyed.
use std::{thread, time::Duration};

use overlay_common::{Hook, Reason};
use overlay_lab::{Container, Member, Numbered, Options, PingOptions, transfer, wait_until};
use serde_json::Value;

use super::bed::{Bed, Kind, MODES, assert_reaches, endpoint, json, pings, wait_for};

/// The sysctl by which forwarded frames pass iptables. Where br_netfilter is part of the kernel, or loaded, it begins with 1.
const BRIDGE_NETFILTER: &str = "bridge/bridge-nf-call-iptables";

/// One host whose containers' frames nothing but their bridge sees.
fn bed(agent: &[&str]) -> Bed {
    let bed = Bed::with(Kind::Folder, Options { hosts: 1, ..Options::default() }, agent);
    // Where br_netfilter is not loaded, there is no such sysctl.
    let _ = bed[0].host.namespace().sysctl(BRIDGE_NETFILTER, "0");
    learn(&bed);
    is_handed_on(&bed[0], true);
    bed
}

/// Has every container talk to its host once. The kernel does not tell of containers that talk to their neighbours alone.
fn learn(bed: &Bed) {
    let gateway = bed[0].subnet.replace(".0/24", ".1").parse().unwrap();
    bed[0].containers.iter().for_each(|container| assert_reaches(container, gateway));
    bed.learn_all();
}

fn pair(bed: &Bed) -> (&Container, &Container) {
    (&bed[0].containers[0], &bed[0].containers[1])
}

/// Waits until the programs have been told whether they hand the frames of both containers on.
#[track_caller]
fn is_handed_on(member: &Member, expected: bool) {
    let is = |container: &Container| {
        endpoint(member, container.address()).is_some_and(|row| row["same_host"] == expected)
    };
    wait_for(&format!("frames to be handed on: {expected}"), || member.containers.iter().all(is));
}

/// Packets that were handed on so far.
fn handed_on(member: &Member) -> u64 {
    member.counters().unwrap().packets(Hook::Encap, Reason::SameHost)
}

/// What status says of the host's only bridge.
fn said(member: &Member) -> Value {
    json(member, &["status"])["agent"]["learned"]["bridges"][0]["same_host"].clone()
}

/// Asserts that every ping arrives, and that the fast path carries both directions of each.
#[track_caller]
fn is_fast(bed: &Bed) {
    let (a, b) = pair(bed);
    let before = handed_on(&bed[0]);
    let ping = a.ping(b.address(), pings(10)).unwrap();
    assert!(ping.complete(), "{}", ping.output);
    // A switched packet keeps its TTL.
    assert!(ping.output.contains("ttl=64"), "{}", ping.output);
    assert_eq!(handed_on(&bed[0]) - before, 20);
}

/// Asserts that pings arrive, by the bridge.
#[track_caller]
fn is_bridged(bed: &Bed) {
    let (a, b) = pair(bed);
    let before = handed_on(&bed[0]);
    assert_reaches(a, b.address());
    assert_eq!(handed_on(&bed[0]), before);
}

/// Asserts that what the host forbids does not arrive.
#[track_caller]
fn is_refused(bed: &Bed, what: &str) {
    let (a, b) = pair(bed);
    let options = PingOptions { count: 2, timeout: 0.5, ..PingOptions::default() };
    let ping = a.ping(b.address(), options).unwrap();
    assert_eq!(ping.received, 0, "{what}: {}", ping.output);
}

/// Loads rules on the host.
fn nft(bed: &Bed, rules: &str) {
    bed[0].host.namespace().exec_words(&["nft", rules]).unwrap();
}

#[test]
fn containers_of_one_host_talk_past_the_bridge_and_are_counted_apart() {
    for mode in MODES {
        let bed = bed(mode);
        is_fast(&bed);
        let (a, b) = pair(&bed);
        let before = handed_on(&bed[0]);
        let stream = Numbered::start(a, b, 2000).unwrap();
        thread::sleep(Duration::from_millis(300));
        let report = stream.finish().unwrap();
        assert_eq!((report.lost, report.received), (0, report.sent), "{report:?}");
        assert!(handed_on(&bed[0]) - before >= report.sent, "{report:?}");
        transfer(a, b, 20 << 20).unwrap();
        let counters = bed[0].counters().unwrap();
        assert!(counters.count(Hook::Encap, Reason::SameHost).1 > 20 << 20, "{counters:?}");
        let carried = counters.carried();
        assert_eq!((carried.fast_out, carried.fast_in, carried.dropped), (0, 0, 0), "{counters:?}");
        let said = said(&bed[0]);
        assert_eq!((&said["kept_by_bridge"], &said["kept_by_ports"]), (&Value::Null, &serde_json::json!({})));
    }
}

#[test]
fn without_the_fast_path_the_bridge_carries_everything() {
    let bed = Bed::with(Kind::Folder, Options { hosts: 1, ..Options::default() }, &["--fast-path", "off"]);
    let _ = bed[0].host.namespace().sysctl(BRIDGE_NETFILTER, "0");
    learn(&bed);
    is_bridged(&bed);
    let text = bed[0].overlay(&["status"]).unwrap();
    assert!(text.contains("br0 forwards all frames: tier tc is not used"), "{text}");
}

#[test]
fn bridge_netfilter_is_obeyed_whatever_the_fast_path_may_carry() {
    for mode in MODES {
        let bed = bed(mode);
        let namespace = bed[0].host.namespace();
        if namespace.sysctl(BRIDGE_NETFILTER, "0").is_err() {
            eprintln!("br_netfilter is not loaded here: nothing to obey");
            return;
        }
        let to_b = format!("ip daddr {}", pair(&bed).1.address());
        let rules =
            format!("table ip u {{ chain f {{ type filter hook forward priority 0; {to_b} drop; }}; }}");
        nft(&bed, &rules);
        // No frame of a bridge meets a rule of IP now.
        is_fast(&bed);
        namespace.sysctl(BRIDGE_NETFILTER, "1").unwrap();
        is_handed_on(&bed[0], false);
        is_refused(&bed, "a rule in FORWARD");
        let why = said(&bed[0])["kept_by_bridge"].to_string();
        assert!(why.contains("bridge-nf-call-iptables"), "{why}");
        nft(&bed, "delete table ip u");
        is_bridged(&bed);
        namespace.sysctl(BRIDGE_NETFILTER, "0").unwrap();
        is_handed_on(&bed[0], true);
        // The same of one bridge.
        namespace.ip("link set br0 type bridge nf_call_iptables 1").unwrap();
        is_handed_on(&bed[0], false);
        nft(&bed, &rules);
        is_refused(&bed, "a rule in FORWARD, for this bridge");
        namespace.ip("link set br0 type bridge nf_call_iptables 0").unwrap();
        is_handed_on(&bed[0], true);
        is_fast(&bed);
    }
}

#[test]
fn rules_of_bridges_and_at_ports_are_obeyed_whatever_the_fast_path_may_carry() {
    for mode in MODES {
        let bed = bed(mode);
        let (a, b) = pair(&bed);
        let at = |family: &str, base: String| {
            let rule = format!("ip daddr {} drop;", b.address());
            format!("table {family} u {{ chain c {{ type filter hook {base} priority 0; {rule} }}; }}")
        };
        for (family, base) in [
            ("bridge", "prerouting".to_owned()),
            ("bridge", "forward".to_owned()),
            ("bridge", "postrouting".to_owned()),
            ("netdev", format!("ingress device {}", a.port())),
            ("netdev", format!("egress device {}", b.port())),
        ] {
            nft(&bed, &at(family, base.clone()));
            is_handed_on(&bed[0], false);
            is_refused(&bed, &base);
            let why = said(&bed[0])["kept_by_bridge"].to_string();
            assert!(why.contains("drop"), "{base}: {why}");
            nft(&bed, &format!("delete table {family} u"));
            is_handed_on(&bed[0], true);
            is_fast(&bed);
        }
        // A rule that lets everything pass is none to wait for.
        nft(&bed, "table bridge u { chain c { type filter hook forward priority 0; counter accept; }; }");
        thread::sleep(Duration::from_millis(500));
        is_handed_on(&bed[0], true);
    }
}

#[test]
fn what_a_bridge_does_beyond_forwarding_is_obeyed_and_named() {
    let bed = bed(&[]);
    let (a, b) = pair(&bed);
    let on_host = |line: &str| bed[0].host.exec(line).unwrap();
    let (a_port, b_port) = (a.port(), b.port());

    // `bridge` sends the kernel another request than `ip`, and the kernel's news of it are others.
    for (port, on, off) in [
        (a_port, "bridge link set dev PORT isolated on", "bridge link set dev PORT isolated off"),
        (
            b_port,
            "ip link set PORT type bridge_slave isolated on",
            "ip link set PORT type bridge_slave isolated off",
        ),
    ] {
        on_host(&on.replace("PORT", port));
        wait_for("the port's frames to be left to the bridge", || {
            said(&bed[0])["kept_by_ports"][port] == "isolated on"
        });
        is_bridged(&bed);
        on_host(&off.replace("PORT", port));
        is_handed_on(&bed[0], true);
    }
    for port in [a_port, b_port] {
        on_host(&format!("bridge link set dev {port} isolated on"));
    }
    is_handed_on(&bed[0], false);
    is_refused(&bed, "isolated ports");
    let check = json(&bed[0], &["check", "--iface", "eth0"]).to_string();
    assert!(check.contains(&format!("{a_port} isolated on")), "{check}");
    for port in [a_port, b_port] {
        on_host(&format!("bridge link set dev {port} isolated off"));
    }
    is_handed_on(&bed[0], true);
    is_fast(&bed);

    match bed[0].host.exec("ip link set br0 type bridge vlan_filtering 1") {
        // CONFIG_BRIDGE_VLAN_FILTERING is no part of every kernel.
        Err(error) if format!("{error:#}").contains("Operation not supported") => {
            eprintln!("bridges of this kernel know no VLANs: nothing to obey");
        }
        set => {
            set.unwrap();
            is_handed_on(&bed[0], false);
            is_bridged(&bed);
            on_host(&format!("bridge vlan del dev {b_port} vid 1"));
            is_refused(&bed, "another VLAN");
            on_host("ip link set br0 type bridge vlan_filtering 0");
            is_handed_on(&bed[0], true);
            is_fast(&bed);
        }
    }

    // Whoever listens at a promiscuous bridge sees all that it forwards.
    on_host("ip link set br0 promisc on");
    is_handed_on(&bed[0], false);
    on_host("ip link set br0 promisc off");
    is_handed_on(&bed[0], true);
    for setting in ["learning", "flood"] {
        on_host(&format!("bridge link set dev {b_port} {setting} off"));
        wait_for(setting, || said(&bed[0])["kept_by_ports"][b_port] == format!("{setting} off"));
        is_bridged(&bed);
        on_host(&format!("bridge link set dev {b_port} {setting} on"));
        is_handed_on(&bed[0], true);
    }
    on_host(&format!("tc qdisc add dev {b_port} root tbf rate 1gbit burst 100k latency 50ms"));
    wait_for("the queueing discipline", || said(&bed[0])["kept_by_ports"][b_port].is_string());
    is_bridged(&bed);
    on_host(&format!("tc qdisc del dev {b_port} root"));
    is_handed_on(&bed[0], true);
    on_host(&format!("ip link set {b_port} down"));
    wait_for("the port to be down", || said(&bed[0])["kept_by_ports"][b_port].is_string());
    is_refused(&bed, "a port that is down");
    on_host(&format!("ip link set {b_port} up"));
    is_handed_on(&bed[0], true);
    is_fast(&bed);
}

#[test]
fn it_goes_on_without_an_agent_and_a_replaced_container_is_reached() {
    let mut bed = bed(&[]);
    let (a, b) = (bed[0].containers[0].clone(), bed[0].containers[1].clone());
    let stream = Numbered::start(&a, &b, 2000).unwrap();
    bed[0].kill_agent().unwrap();
    thread::sleep(Duration::from_millis(200));
    let report = stream.finish().unwrap();
    assert_eq!((report.lost, report.received), (0, report.sent), "{report:?}");
    is_fast(&bed);

    let (subnet, mtu) = (bed[0].subnet.clone(), bed[0].mtu);
    bed[0].containers.remove(1);
    b.remove().unwrap();
    let new = bed[0].host.add_container("b", &subnet, 3, mtu).unwrap();
    bed[0].containers.push(new.clone());
    assert_reaches(&new, a.address());
    is_bridged(&bed);
    let gateway = subnet.replace(".0/24", ".1").parse().unwrap();
    assert_reaches(&new, gateway);
    let stream = Numbered::start(&a, &new, 2000).unwrap();
    bed[0].restart_agent().unwrap();
    is_handed_on(&bed[0], true);
    let report = stream.finish().unwrap();
    assert_eq!((report.lost, report.received), (0, report.sent), "{report:?}");
    is_fast(&bed);
}

#[test]
fn it_goes_on_when_the_bridge_has_forgotten_where_the_containers_are() {
    let bed = bed(&[]);
    let (a, b) = pair(&bed);
    let host = &bed[0].host;
    // The bridge forgets after a second, and looks for what to forget that often.
    host.exec("ip link set br0 type bridge ageing_time 100").unwrap();
    let known = |port: &str| host.exec(&format!("bridge fdb show dynamic brport {port}")).unwrap();
    let stream = Numbered::start(a, b, 2000).unwrap();
    wait_until("the bridge to forget both ports", Duration::from_secs(30), || {
        Ok([a, b].iter().all(|container| known(container.port()).trim().is_empty()))
    })
    .unwrap();
    let before = handed_on(&bed[0]);
    assert_reaches(a, b.address());
    let report = stream.finish().unwrap();
    assert_eq!((report.lost, report.received), (0, report.sent), "{report:?}");
    assert!(handed_on(&bed[0]) > before);
}

#[test]
fn containers_of_two_bridges_are_routed() {
    let bed = bed(&[]);
    let subnet = bed[0].subnet.replace(".0/24", ".192/26");
    bed[0].host.add_bridge_named("br1", &subnet, 1450).unwrap();
    let other = bed[0].host.add_container_on("br1", "c", &subnet, 8, 1450).unwrap();
    let a = &bed[0].containers[0];
    let gateway = bed[0].subnet.replace(".0/24", ".1");
    a.exec(&format!("ip route add {} via {gateway}", other.address())).unwrap();
    assert_reaches(&other, subnet.replace(".192/26", ".193").parse().unwrap());
    wait_for("the endpoint", || {
        endpoint(&bed[0], other.address()).is_some_and(|row| row["same_host"] == true)
    });
    let before = handed_on(&bed[0]);
    let ping = a.ping(other.address(), pings(3)).unwrap();
    assert!(ping.complete() && ping.output.contains("ttl=63"), "{}", ping.output);
    assert_eq!(handed_on(&bed[0]), before);
}
