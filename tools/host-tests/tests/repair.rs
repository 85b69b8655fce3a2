//! What somebody deletes under a running agent is restored within seconds, and until then the status says what is
//! missing.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, as its assertions do")]

use std::path::PathBuf;

use overlay_host_tests::{
    hosts::{JoinedHost, SOON, carried, lab, logged, overlay, status, store, until},
    overlay as binary,
};
use overlay_lab::{Host, Lab, Numbered, wait_until};

fn members(lab: &Lab, more: &[&str]) -> (JoinedHost, JoinedHost) {
    let store = store(lab);
    let arguments = [&["--store-dir", &store, "--store-shared"], more].concat();
    let (a, b) = (JoinedHost::join(lab.host(0), &arguments), JoinedHost::join(lab.host(1), &arguments));
    a.reaches(&b);
    (a, b)
}

/// Index and MAC address of a link, as `ip` prints them.
fn link(host: &Host, name: &str) -> Option<(String, String)> {
    let line = host.exec(&format!("ip -o link show dev {name}")).ok()?;
    let index = line.split(':').next()?.to_owned();
    let mac = line.split("link/ether ").nth(1)?.split(' ').next()?.to_owned();
    Some((index, mac))
}

fn pin(host: &Host, name: &str) -> PathBuf {
    overlay_host_tests::pins(host).join("links").join(name)
}

/// What the kernel reports about links, addresses and routes for a second, once the agent should be idle.
fn events(host: &Host) -> String {
    // The agent may still be at its last repairs.
    std::thread::sleep(std::time::Duration::from_secs(2));
    host.exec("timeout 1 ip monitor link address route").unwrap_or_else(|error| error.to_string())
}

/// Whether the host itself reaches the other's container. Its packets go through overlay0, since they pass no
/// container's port.
fn host_reaches(from: &Host, to: &JoinedHost) -> bool {
    from.exec(&format!("ping -n -c 1 -W 1 {}", to.container.address())).is_ok()
}

#[test]
fn overlay0_is_made_again_and_the_fast_path_does_not_notice() {
    let lab = lab(2);
    let (a, b) = members(&lab, &[]);
    assert!(host_reaches(&a.host, &b));
    let traffic = Numbered::start(&a.container, &b.container, 2000).unwrap();
    let (index, mac) = link(&a.host, "overlay0").unwrap();

    a.host.namespace().ip("link delete overlay0").unwrap();
    wait_until("another overlay0", SOON, || {
        Ok(link(&a.host, "overlay0").is_some_and(|(new, _)| new != index))
    })
    .unwrap();
    let (index, same) = link(&a.host, "overlay0").unwrap();
    assert_eq!(mac, same);
    wait_until("the stack's tier", SOON, || Ok(host_reaches(&a.host, &b) && host_reaches(&b.host, &a)))
        .unwrap();
    let attached =
        || Ok(["send", "receive"].iter().all(|name| pin(&a.host, &format!("{name}-{index}")).exists()));
    wait_until("its programs", SOON, attached).unwrap();
    until(&a.host, "all well", |status| status["agent"]["datapath"]["attached"] == true);

    // These are other things that can be done to the device.
    for harm in
        ["link set overlay0 down", "route delete 10.244.0.0/18 dev overlay0", "address flush dev overlay0"]
    {
        a.host.namespace().ip(harm).unwrap();
        wait_until(harm, SOON, || Ok(host_reaches(&a.host, &b))).unwrap();
    }
    assert_eq!(link(&a.host, "overlay0").unwrap(), (index, mac));
    // A check that finds nothing to change must make no events, because these would start the next check.
    let events = events(&a.host);
    assert!(!events.contains("overlay0"), "{events}");
    let report = traffic.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}

#[test]
fn an_overlay0_that_cannot_come_back_is_told_by_status_and_readyz() {
    let lab = lab(2);
    let (a, b) = members(&lab, &[]);
    // The device is renamed rather than deleted, to be faster than the agent. Even both commands in one batch of
    // netlink messages would be a race.
    a.host.namespace().ip("link set overlay0 down").unwrap();
    let batch = a.host.folder().join("batch");
    std::fs::write(&batch, "link delete overlay0\nlink add overlay0 type bridge\n").unwrap();
    wait_until("a bridge in its place", SOON, || {
        let _ = a.host.exec(&format!("ip -force -batch {}", batch.display()));
        Ok(a.host.exec("ip -d link show overlay0").is_ok_and(|link| link.contains("bridge")))
    })
    .unwrap();
    logged(&a.host, "interface overlay0 exists and is a bridge");
    until(&a.host, "not attached", |status| {
        status["agent"]["datapath"]["attached"] == false && status["tiers"][1]["in_use"] == false
    });
    let (code, why) = a.host.http_get(8471, "/readyz").unwrap();
    assert_eq!((code, why.as_str()), (503, "data path: the tunnel device has not all of its programs\n"));
    a.reaches(&b);
    a.host.namespace().ip("link delete overlay0").unwrap();
    until(&a.host, "attached again", |status| status["agent"]["datapath"]["attached"] == true);
    assert_eq!(a.host.http_get(8471, "/readyz").unwrap().0, 200);
    wait_until("the stack's tier", SOON, || Ok(host_reaches(&a.host, &b))).unwrap();
}

#[test]
fn programs_that_somebody_detached_are_attached_again() {
    let lab = lab(2);
    // However slow the machine is, no audit comes by itself.
    let (a, b) = members(&lab, &["--audit-interval", "3600"]);
    let (underlay, _) = link(&a.host, "eth0").unwrap();
    let (port, _) = link(&a.host, a.container.port()).unwrap();
    // The pin stays, and leads to a link that is attached to nothing.
    let detach = |name: String| {
        let pin = pin(&a.host, &name);
        a.host.exec(&format!("bpftool link detach pinned {}", pin.display())).unwrap();
    };
    let hooks = ["encap", "decap"];
    // How many of the packets of `reaches` the programs carried, at the container's port and at the underlay device.
    let reached = || {
        let before = hooks.map(|hook| carried(&a.host, hook));
        a.reaches(&b);
        [0, 1].map(|at| carried(&a.host, hooks[at]) - before[at])
    };
    // The count of repairs may be seen a moment before the repair is complete.
    let both_carry = || {
        wait_until("both programs", SOON, || Ok(reached().iter().all(|count| *count >= 10))).unwrap();
    };
    both_carry();
    let before = repaired(&a.host);
    let repairs = |count: u64| {
        until(&a.host, "repairs", |status| {
            status["agent"]["datapath"]["repaired"].as_u64() == Some(before + count)
        });
    };

    // A container's port that has lost a program is found by the audit. Until then the stack carries its packets.
    detach(format!("encap-{port}"));
    assert_eq!(reached()[0], 0);
    overlay(&a.host, &["peers", "--resync"]).is(0, &["read again"]);
    repairs(1);
    both_carry();

    // The underlay device is looked at every other second, without an audit. Once it lacks its program, all ports are looked at.
    detach(format!("encap-{port}"));
    detach(format!("decap-{underlay}"));
    logged(&a.host, "the host's own devices have lost programs");
    repairs(3);
    both_carry();
}

/// Runs a command of bpftool's about a map, such as `lookup peers key 10 244 7 0`.
fn bpftool(host: &Host, command: &str, map: &str, rest: &str) -> anyhow::Result<String> {
    let pin = overlay_host_tests::pins(host).join(map);
    host.exec(&format!("bpftool -j map {command} pinned {} {rest}", pin.display()))
}

/// How many entries the agent says it has repaired.
fn repaired(host: &Host) -> u64 {
    status(host)["agent"]["datapath"]["repaired"].as_u64().unwrap()
}

/// Entries that are in the tables but that the programs do not find by their indexes are not in force.
#[test]
fn what_somebody_empties_in_the_programs_indexes_is_filled_again() {
    let lab = lab(2);
    let (a, b) = members(&lab, &[]);
    // The endpoints were learned by an earlier agent; this one has adopted them without deciding anything itself.
    let a = a.restarted(&["--store-dir", &store(&lab), "--store-shared"]);
    let before = carried(&a.host, "encap");
    a.reaches(&b);
    assert!(carried(&a.host, "encap") >= before + 10);
    let empty = |map: &str, length: usize| {
        let zeros = vec!["0"; length].join(" ");
        for number in 0..256 {
            bpftool(&a.host, "update", map, &format!("key {number} 0 0 0 value {zeros}")).unwrap();
        }
    };
    empty("endpoint_index", 20);
    let before = carried(&a.host, "encap");
    // The container is not found, so the stack carries its packets.
    a.reaches(&b);
    assert_eq!(carried(&a.host, "encap"), before);
    empty("peer_index", 16);
    overlay(&a.host, &["peers", "--resync"]).is(0, &["read again"]);
    until(&a.host, "two repairs", |status| status["agent"]["datapath"]["repaired"].as_u64() >= Some(2));
    a.reaches(&b);
    assert!(carried(&a.host, "encap") >= before + 10);
}

#[test]
fn what_somebody_writes_into_the_tables_of_peers_is_put_right() {
    let lab = lab(2);
    let (a, b) = members(&lab, &[]);
    let host = &a.host;
    let resync = |why: &str, entries: u64| {
        let before = repaired(host);
        overlay(host, &["peers", "--resync"]).is(0, &["read again"]);
        until(host, why, |status| status["agent"]["datapath"]["repaired"].as_u64() == Some(before + entries));
    };
    let lease = lab.folder().join("store/subnets/10.244.201.0-24");
    let value = r#"{"PublicIP":"10.99.0.201","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:c9"}}"#;
    std::fs::write(&lease, value).unwrap();
    until(host, "two peers", |status| status["peers"] == 2);
    let is_zero = |text: &str| {
        let found: serde_json::Value = serde_json::from_str(text).unwrap();
        found["value"].as_array().unwrap().iter().all(|byte| byte == "0x00")
    };
    let index = || bpftool(host, "lookup", "peer_index", "key 201 0 0 0").unwrap();
    assert!(!is_zero(&index()));

    // A peer is deleted by hand, and then its lease too: it must go from every place where programs look.
    bpftool(host, "delete", "peers", "key 10 244 201 0").unwrap();
    std::fs::remove_file(&lease).unwrap();
    wait_until("the peer's end", SOON, || Ok(is_zero(&index()))).unwrap();
    wait_until("its address's", SOON, || Ok(bpftool(host, "lookup", "vteps", "key 10 99 0 201").is_err()))
        .unwrap();

    // A peer is deleted by hand while its lease exists: it comes back, with the counters it had.
    let traffic = || {
        let peers: serde_json::Value =
            serde_json::from_str(&host.overlay(binary(), &["peers", "--json"]).unwrap()).unwrap();
        peers[0]["sent_packets"].as_u64()
    };
    let sent = traffic();
    assert!(sent > Some(0), "{sent:?}");
    let base = b.subnet.split('/').next().unwrap().replace('.', " ");
    bpftool(host, "delete", "peers", &format!("key {base}")).unwrap();
    // The peer is missing in the table, and where the programs look it up.
    resync("the peer", 2);
    assert_eq!(traffic(), sent);

    // A peer is added by hand, without a lease.
    bpftool(host, "update", "peers", "key 10 244 99 0 value 10 99 0 77 2 0 0 0 0 9 0 0 40 0 0 0").unwrap();
    resync("a peer by hand", 2);
    assert!(bpftool(host, "lookup", "peers", "key 10 244 99 0").is_err());

    // Only the underlay address is deleted.
    bpftool(host, "delete", "vteps", "key 10 99 0 2").unwrap();
    bpftool(host, "update", "vteps", "key 10 99 0 66 value 3 0 0 0").unwrap();
    resync("the VTEPs", 2);
    assert!(bpftool(host, "lookup", "vteps", "key 10 99 0 66").is_err());
    a.reaches(&b);
}

#[test]
fn an_underlay_device_that_is_made_anew_gets_its_programs() {
    let lab = lab(2);
    let (a, b) = members(&lab, &[]);
    let (before, _) = link(&a.host, "eth0").unwrap();
    a.host.namespace().ip("link delete eth0").unwrap();
    logged(&a.host, "interface eth0 is gone");
    until(&a.host, "not attached", |status| status["agent"]["datapath"]["attached"] == false);
    let (code, why) = a.host.http_get(8471, "/readyz").unwrap();
    assert_eq!((code, why.contains("data path: the underlay device has no program")), (503, true), "{why}");

    let inside = a.host.namespace().name().to_owned();
    lab.switch()
        .ip(&format!("link add again mtu 1500 type veth peer name eth0 mtu 1500 netns {inside}"))
        .unwrap();
    lab.switch().ip("link set again master br0 up").unwrap();
    a.host.namespace().ip("address add 10.99.0.1/24 dev eth0").unwrap();
    a.host.namespace().ip("link set eth0 up").unwrap();
    let (after, _) = link(&a.host, "eth0").unwrap();
    assert_ne!(before, after);
    until(&a.host, "attached", |status| status["agent"]["datapath"]["attached"] == true);
    a.reaches(&b);
    let (sent, received) = (carried(&a.host, "encap"), carried(&a.host, "decap"));
    a.reaches(&b);
    assert!(carried(&a.host, "encap") >= sent + 10 && carried(&a.host, "decap") >= received + 10);
    assert!(!pin(&a.host, &format!("decap-{before}")).exists());

    // The programs were loaded anew, and their reports still reach the log. This one is about VXLAN from an address of
    // no peer.
    let mut frame = vec![8, 0, 0, 0, 0, 0, 1, 0];
    frame.extend([[0x02; 14].as_slice(), &[0; 46]].concat());
    let sent = lab.switch().enter(move || {
        let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
        Ok(socket.send_to(&frame, ("10.99.0.1", 8472))?)
    });
    sent.unwrap();
    logged(&a.host, "decap: unknown-peer (a packet was dropped");
}

#[test]
fn the_status_knows_that_the_fast_path_is_off_before_any_packet() {
    let lab = lab(1);
    let store = store(&lab);
    let host = lab.host(0);
    for (choice, in_use) in [("off", false), ("on", true)] {
        let mut agent = host.start_agent(binary(), &["--store-dir", &store, "--fast-path", choice]).unwrap();
        agent.wait_ready(SOON).unwrap();
        assert_eq!(status(host)["tiers"][1]["in_use"], in_use);
        // The check must not take the agent's own device for another's.
        let check = host.overlay(binary(), &["check", "--iface", "eth0", "--json"]).unwrap();
        let findings: serde_json::Value = serde_json::from_str(&check).unwrap();
        let port = findings.as_array().unwrap().iter().find(|one| one["what"] == "udp port 8472").unwrap();
        assert_eq!((&port["level"], &port["detail"]), (&"ok".into(), &"ours: overlay0 has it".into()));
        agent.terminate().unwrap();
        // This holds without a running agent as well.
        let status = status(host);
        assert_eq!(
            (&status["tiers"][1]["in_use"], &status["agent"]),
            (&in_use.into(), &serde_json::Value::Null)
        );
    }
}
