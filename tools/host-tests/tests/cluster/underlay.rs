//! The address by which the other hosts reach a host: which one packets come from, and what happens when it changes.
use std::{fs, os::unix::net::UnixDatagram};

use overlay_host_tests::{
    hosts::{CONFIG, JoinedHost, SOON, lab, logged, overlay, program, start_logged, status, until},
    pins,
};
use overlay_lab::{Backend, Host, Numbered, wait_until};
use serde_json::Value;

/// The port on which the lab's agents answer.
const HEALTH: u16 = 8471;

/// Waits until /readyz answers 503 with these words.
fn not_ready(host: &Host, words: &str) {
    wait_until(words, SOON, || {
        let (code, body) = host.http_get(HEALTH, "/readyz")?;
        Ok(code == 503 && body.contains(words))
    })
    .unwrap();
}

/// The public addresses of a host's peers.
fn public_ips(host: &Host) -> Vec<String> {
    let peers = host.overlay(overlay_host_tests::overlay(), &["peers", "--json"]).unwrap();
    let rows: Value = serde_json::from_str(&peers).unwrap();
    let address = |row: &Value| row["public_ip"].as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().map(address).collect()
}

#[test]
fn a_host_whose_address_changes_is_followed_and_keeps_its_subnet() {
    for config in [CONFIG, Backend::Udp.config()] {
        let lab = lab(2);
        let folder = lab.folder().join("store");
        let store = folder.display().to_string();
        overlay(lab.host(0), &["config", "set", config, "--store-dir", &store]).is(0, &[]);
        let arguments = ["--store-dir", &store, "--store-shared"];
        let mut a = JoinedHost::join(lab.host(0), &arguments);
        let b = JoinedHost::join(lab.host(1), &arguments);
        a.reaches(&b);
        // Beside a running agent, nothing needs to be named: there is no default route here.
        let check = overlay(lab.host(0), &["check"]);
        assert!(!check.text.contains("underlay interface"), "{}", check.text);
        let status = overlay(lab.host(0), &["status"]);
        status.is(0, &["underlay", "eth0 with 10.99.0.1"]);
        assert!(!status.text.contains("vni 0"), "{}", status.text);

        let ip = |words: &str| lab.host(0).namespace().ip(words).unwrap();
        ip("address delete 10.99.0.1/24 dev eth0");
        not_ready(
            lab.host(0),
            "underlay: 10.99.0.1, which the other hosts send to, is no address of this host",
        );
        overlay(lab.host(0), &["status"]).is(0, &["NOT reached by other hosts", "eth0 has none"]);
        overlay(lab.host(0), &["check"]).is(3, &["underlay interface", "no address of this host any more"]);
        // While this host could not join, nothing of the agent ends that keeps the host in order.
        let (present, aside) = (folder.join("config"), folder.join("aside"));
        fs::rename(&present, &aside).unwrap();
        ip("address add 10.99.0.77/24 dev eth0");
        logged(lab.host(0), "joins with its new address when that is mended");
        overlay(lab.host(0), &["status"]).is(0, &["NOT reached by other hosts"]);
        let mended = || fs::rename(&aside, &present).unwrap();
        if config == CONFIG {
            joining_fails_for_a_while(&a, &b, mended);
        } else {
            mended();
        }
        logged(lab.host(0), "eth0 with 10.99.0.77 is the underlay now");
        a.agent.wait_ready(SOON).unwrap();
        wait_until("the new address", SOON, || Ok(public_ips(lab.host(1)) == ["10.99.0.77"])).unwrap();
        a.reaches(&b);
        b.reaches(&a);
        let leases: Vec<String> = fs::read_dir(folder.join("subnets"))
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        let has = |address: &str| leases.iter().filter(|lease| lease.contains(address)).count();
        assert_eq!((leases.len(), has("\"10.99.0.77\""), has("\"10.99.0.1\"")), (2, 1, 0), "{leases:?}");

        // Nobody speaks of requests whose answers nobody waits for any more.
        assert!(!a.agent.log().contains("netlink_proto"), "{}", a.agent.log());
        // The record follows too: the next agent adopts what is there.
        let a = a.restarted(&arguments);
        a.reaches(&b);
        assert_eq!(a.agent.terminate().unwrap().code(), Some(0));
    }
}

/// A host whose store is `mended` cannot join again, because there is no place for its subnet.env. Meanwhile somebody removes its
/// pins.
fn joining_fails_for_a_while(a: &JoinedHost, b: &JoinedHost, mended: impl Fn()) {
    let (host, file) = (&a.host, a.host.subnet_file());
    wait_until("a folder in the place of subnet.env", SOON, || {
        // The agent may write the file anew in between.
        let _ = fs::remove_file(&file);
        Ok(fs::create_dir(&file).is_ok())
    })
    .unwrap();
    mended();
    logged(host, "join again: ");
    // The peers have heard of the new address by now.
    a.reaches(b);
    let traffic = Numbered::start(&a.container, &b.container, 2000).unwrap();
    // The pins go in a pause, as they would during the rest of the agent's life. It is seen when it begins, and long enough.
    let failures = || -> Vec<String> {
        let log = fs::read_to_string(host.agent_log()).unwrap();
        log.lines().filter(|line| line.contains("join again: ")).map(str::to_owned).collect()
    };
    let before = failures().len();
    wait_until("a pause of seconds", SOON, || {
        let failures = failures();
        let pause =
            failures.last().and_then(|line| line.split("trying again in ").nth(1)).unwrap_or_default();
        let is_long = pause.strip_suffix('s').is_some_and(|pause| pause.parse::<f32>().is_ok());
        Ok(failures.len() > before && is_long)
    })
    .unwrap();
    fs::remove_dir_all(pins(host)).unwrap();
    overlay(host, &["down"]).is(1, &["another agent (pid"]);
    wait_until("the pins", SOON, || {
        Ok(fs::read_dir(pins(host).join("links")).is_ok_and(|links| links.count() > 0))
    })
    .unwrap();
    let report = traffic.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    fs::remove_dir(&file).unwrap();
}

#[test]
fn packets_come_from_the_public_ip_that_the_operator_named_and_no_other_takes_its_place() {
    let lab = lab(2);
    let store = overlay_host_tests::hosts::store(&lab);
    let ip = |words: &str| lab.host(0).namespace().ip(words).unwrap();
    ip("address add 10.99.0.77/24 dev eth0");
    let shared = ["--store-dir", &store, "--store-shared"];
    let a = JoinedHost::join(lab.host(0), &[&shared[..], &["--public-ip", "10.99.0.77"]].concat());
    let b = JoinedHost::join(lab.host(1), &shared);
    a.reaches(&b);
    b.reaches(&a);
    let counters = status(lab.host(1))["counters"].clone();
    let unknown = |one: &&Value| one["reason"] == "unknown-peer" && one["packets"] != 0;
    assert!(!counters.as_array().unwrap().iter().any(|one| unknown(&one)), "{counters}");

    ip("address delete 10.99.0.77/24 dev eth0");
    not_ready(lab.host(0), "no other takes its place: --public-ip names it");
    assert_eq!(public_ips(lab.host(1)), ["10.99.0.77"]);
    ip("address add 10.99.0.77/24 dev eth0");
    until(lab.host(0), "the end of the trouble", |status| status["agent"]["underlay"]["error"].is_null());
    a.reaches(&b);
    ip("link set eth0 down");
    not_ready(lab.host(0), "underlay: interface eth0 is down");
}

/// Routing protocols put the address of a host with several ways out on lo. systemd is told when such a host is ready, too.
#[test]
fn an_address_on_lo_has_the_mtu_of_the_way_out_and_systemd_is_told() {
    let lab = lab(1);
    let host = lab.host(0);
    let store = overlay_host_tests::hosts::store(&lab);
    let ip = |words: &str| host.namespace().ip(words).unwrap();
    ip("address add 10.98.0.1/32 dev lo");
    ip("route add default nexthop via 10.99.0.2 dev eth0 nexthop via 10.99.0.3 dev eth0");
    let socket = host.folder().join("notify");
    let listener = UnixDatagram::bind(&socket).unwrap();
    listener.set_read_timeout(Some(SOON)).unwrap();
    let words = ["agent", "--iface", "10.98.0.1", "--store-dir", &store];
    let agent = start_logged(host, program(host, host, &[], &words).env("NOTIFY_SOCKET", &socket));
    let mut told = [0; 64];
    let length = listener.recv(&mut told).unwrap();
    assert_eq!(&told[..length], b"READY=1");
    let env = fs::read_to_string(host.subnet_file()).unwrap();
    assert!(env.contains("FLANNEL_MTU=1450"), "{env}");
    until(host, "the underlay", |status| status["agent"]["underlay"]["address"] == "10.98.0.1");
    overlay(host, &["status"]).is(0, &["eth0 with 10.98.0.1"]);
    drop(agent);
}
