//! A store in trouble: away, compacted behind the agent's back, emptied, or not meant for two hosts.
use std::{
    thread,
    time::{Duration, Instant},
};

use overlay_user::status::unix_now;
use xtask::lab::{Lab, Numbered, Options};

use super::bed::{
    Bed, Kind, assert_reaches, flannel_lease, json, lease_key, overlay, peers, pings, wait_for,
};

/// Leases of hosts that do not exist.
fn put_strangers(bed: &mut Bed, numbers: impl Iterator<Item = u8>) {
    for number in numbers {
        let value = flannel_lease([10, 99, 1, number].into(), "02:00:00:00:01:01");
        let key = lease_key(&stranger(number));
        bed.etcd().ctl(&["put", &key, &value]).unwrap();
    }
}

/// Beyond the first hundred free subnets, which the lab's hosts draw from.
fn stranger(number: u8) -> String {
    format!("10.244.{}.0/24", 200 + number)
}

fn following(bed: &Bed) -> bool {
    json(&bed[0], &["status"])["agent"]["store"]["following"].as_bool().unwrap()
}

#[test]
fn an_etcd_that_is_away_costs_no_route_and_no_packet() {
    let mut bed = Bed::new(Kind::Etcd, 2);
    bed.learn_all();
    let known = [0, 1].map(|host| peers(&bed[host]));
    let (a, b) = bed.pair();
    let stream = Numbered::start(a, b, 1000).unwrap();

    let (before, stopped) = (unix_now(), Instant::now());
    bed.etcd().stop().unwrap();
    wait_for("word of it", || !following(&bed));
    thread::sleep(Duration::from_secs(5).saturating_sub(stopped.elapsed()));
    let store = json(&bed[0], &["status"])["agent"]["store"].clone();
    let since = store["since"].as_u64().unwrap();
    assert!((before..=before + 3).contains(&since) && store["error"].is_string(), "{before}: {store}");
    let text = bed[0].overlay(&["status"]).unwrap();
    assert!(text.contains("NO for "), "{text}");
    assert_eq!([0, 1].map(|host| peers(&bed[host])), known);

    bed.etcd().restart().unwrap();
    let back = Instant::now();
    wait_for("the stream of changes", || following(&bed));
    println!("following again {:?} after etcd answers", back.elapsed());
    let report = stream.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    assert_eq!([0, 1].map(|host| peers(&bed[host])), known);
    // And it is alive, not only well.
    put_strangers(&mut bed, 0..1);
    bed.wait_for_peers(2);
}

#[test]
fn an_emptied_store_takes_no_peer_without_the_operators_word() {
    let mut bed = Bed::new(Kind::Etcd, 2);
    bed.learn_all();
    put_strangers(&mut bed, 0..5);
    bed.wait_for_peers(6);
    // An agent that lives would claim its lease again at once.
    bed[1].kill_agent().unwrap();
    bed.etcd().ctl(&["del", "--prefix", "/coreos.com/network/subnets/"]).unwrap();
    wait_for("held removals", || {
        json(&bed[0], &["status"])["agent"]["peers"]["held"].as_array().unwrap().len() == 6
    });
    let shown = json(&bed[0], &["peers"]);
    assert!(shown.as_array().unwrap().iter().all(|peer| peer["installed"] == "held"), "{shown}");
    let (a, b) = bed.pair();
    let (a, b) = (a.clone(), b.clone());
    assert_reaches(&a, b.address());
    // Its own lease it took back.
    let key = lease_key(&bed[0].subnet);
    wait_for("the own lease", || !bed.etcd().ctl(&["get", &key]).unwrap().is_empty());

    let done = bed[0].overlay(&["peers", "--accept-deletions"]).unwrap();
    println!("{}", done.trim());
    assert!(peers(&bed[0]).is_empty());
    assert_eq!(a.ping(b.address(), pings(1)).unwrap().received, 0);

    // The host comes back, and finds as many gone as the other did: the same question, the same answer.
    bed[1].restart_agent().unwrap();
    wait_for("the peer that is back", || peers(&bed[0]).len() == 1);
    assert_eq!(peers(&bed[1]).len(), 6);
    bed[1].overlay(&["peers", "--accept-deletions"]).unwrap();
    bed.wait_for_peers(1);
    assert_reaches(&a, b.address());
}

#[test]
fn a_shared_folder_serves_two_hosts_and_one_that_is_not_serves_one() {
    let bed = Bed::new(Kind::Folder, 2);
    bed.assert_all_reached();

    let lab = Lab::new(Options::default()).unwrap();
    let folder = lab.folder().join("mine").display().to_string();
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    lab.host(0).overlay(overlay(), &["config", "set", config, "--store-dir", &folder]).unwrap();
    let mut first = lab.host(0).start_agent(overlay(), &["--store-dir", &folder]).unwrap();
    first.wait_ready(Duration::from_secs(20)).unwrap();
    let mut second = lab.host(1).start_agent(overlay(), &["--store-dir", &folder]).unwrap();
    wait_for("the second agent's end", || second.status().unwrap().is_some());
    assert_eq!(second.status().unwrap().unwrap().code(), Some(1));
    let log = second.log();
    for part in [&folder, "of another host, 10.99.0.1", "declare the folder shared"] {
        assert!(log.contains(part), "no {part} in {log}");
    }
    assert!(first.status().unwrap().is_none());
    // Refused before anything was made.
    assert!(lab.host(1).exec("ip link show dev overlay0").is_err());
}
