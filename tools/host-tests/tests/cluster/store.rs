//! A store in trouble: it is away, compacted without the agent noticing, emptied, or not meant for two hosts.
use std::{
    thread,
    time::{Duration, Instant},
};

use overlay_lab::{Backend, Lab, Numbered, Options, wait_until};
use overlay_user::model::clock::unix_now;

use super::bed::{
    Bed, Kind, assert_reaches, flannel_lease, json, lease_key, overlay, peers, pings, wait_for,
};

/// Writes leases of hosts that do not exist.
fn put_strangers(bed: &mut Bed, numbers: impl Iterator<Item = u8>) {
    for number in numbers {
        let value = flannel_lease([10, 99, 1, number].into(), "02:00:00:00:01:01");
        let key = lease_key(&stranger(number));
        bed.etcd().ctl(&["put", &key, &value]).unwrap();
    }
}

/// A subnet beyond the first hundred free ones, among which the lab's hosts choose.
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
    // The agent really follows the store again, and does not only say so.
    put_strangers(&mut bed, 0..1);
    bed.wait_for_peers(2);
}

/// Peers whose removal is held back on the first host.
fn held(bed: &Bed) -> usize {
    json(&bed[0], &["status"])["agent"]["peers"]["held"].as_array().unwrap().len()
}

fn subnets(bed: &Bed) -> Vec<String> {
    peers(&bed[0]).into_iter().map(|(subnet, ..)| subnet).collect()
}

#[test]
fn an_etcd_that_is_killed_again_and_again_or_slow_is_followed_all_the_same() {
    let mut bed = Bed::new(Kind::Etcd, 2);
    bed.learn_all();
    let (a, b) = bed.pair();
    let stream = Numbered::start(a, b, 1000).unwrap();
    for round in 0..3 {
        bed.etcd().kill9().unwrap();
        thread::sleep(Duration::from_millis(300 * round));
        bed.etcd().restart().unwrap();
        let back = Instant::now();
        put_strangers(&mut bed, round as u8..round as u8 + 1);
        wait_until("a peer that came after", Duration::from_secs(20), || {
            Ok(subnets(&bed).contains(&stranger(round as u8)))
        })
        .unwrap();
        println!("round {round}: caught up {:?} after etcd answers", back.elapsed());
    }
    // Etcd is slow: it hangs for a second and works for a moment, over and over. No single answer takes as long as the
    // agent waits.
    for number in 3..6 {
        bed.etcd().pause().unwrap();
        thread::sleep(Duration::from_secs(1));
        bed.etcd().resume().unwrap();
        put_strangers(&mut bed, number..number + 1);
    }
    bed.wait_for_peers(7);
    assert_eq!(held(&bed), 0);
    // A deleted lease is removed, so no stale one is kept.
    bed.etcd().ctl(&["del", &lease_key(&stranger(0))]).unwrap();
    bed.wait_for_peers(6);
    let report = stream.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}

#[test]
fn an_etcd_restored_from_a_backup_takes_no_peer_that_came_after_it() {
    let mut bed = Bed::new(Kind::Etcd, 2);
    put_strangers(&mut bed, 0..2);
    bed.wait_for_peers(3);
    bed.learn_all();
    bed.etcd().stop().unwrap();
    bed.etcd().back_up().unwrap();
    bed.etcd().restart().unwrap();
    // After the backup one peer comes and one goes. That is too few for the rule about more than half of the peers.
    put_strangers(&mut bed, 5..6);
    bed.etcd().ctl(&["del", &lease_key(&stranger(0))]).unwrap();
    wait_for("the change", || {
        let known = subnets(&bed);
        known.contains(&stranger(5)) && !known.contains(&stranger(0))
    });
    bed.etcd().stop().unwrap();
    bed.etcd().restore().unwrap();
    bed.etcd().restart().unwrap();
    let back = Instant::now();
    wait_for("what the backup knows", || subnets(&bed).contains(&stranger(0)));
    println!("caught up {:?} after etcd answers", back.elapsed());
    assert_eq!(held(&bed), 1);
    assert!(subnets(&bed).contains(&stranger(5)), "{:?}", peers(&bed[0]));
    bed.assert_all_reached();
    bed[0].overlay(&["peers", "--accept-deletions"]).unwrap();
    assert!(!subnets(&bed).contains(&stranger(5)));
}

#[test]
fn another_cluster_in_etcds_place_takes_no_peer() {
    let mut bed = Bed::new(Kind::Etcd, 2);
    put_strangers(&mut bed, 0..2);
    bed.wait_for_peers(3);
    bed.learn_all();
    let (a, b) = bed.pair();
    let stream = Numbered::start(a, b, 1000).unwrap();
    let cluster = |bed: &Bed| json(&bed[0], &["status"])["agent"]["store"]["cluster"].as_u64();
    let before = cluster(&bed);
    bed.etcd().stop().unwrap();
    bed.etcd().replace().unwrap();
    bed.etcd().restart().unwrap();
    // The hosts that are alive are in the new cluster within seconds; the removals of the others are held back.
    wait_for("the other cluster", || cluster(&bed) != before && held(&bed) == 2);
    let keys = [0, 1].map(|host| lease_key(&bed[host].subnet));
    wait_for("both leases", || keys.iter().all(|key| !bed.etcd().ctl(&["get", key]).unwrap().is_empty()));
    assert_eq!(subnets(&bed).len(), 3);
    bed.assert_all_reached();
    let report = stream.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}

#[test]
fn an_etcd_wiped_behind_an_agents_back_that_counted_past_what_it_knew_is_told_by_its_keys() {
    let mut bed = Bed::new(Kind::Etcd, 2);
    put_strangers(&mut bed, 0..2);
    bed.wait_for_peers(3);
    let cut = format!("blackhole {}/32", bed[0].host.address());
    bed.lab.switch().exec(&format!("ip route add {cut}")).unwrap();
    wait_until("word of it", Duration::from_secs(30), || Ok(!following(&bed))).unwrap();
    let known = json(&bed[0], &["status"])["agent"]["store"]["revision"].as_i64().unwrap();

    bed.etcd().stop().unwrap();
    bed.etcd().wipe().unwrap();
    bed.etcd().restart().unwrap();
    // The other host is alive and writes its lease again at once, at one of the first revisions of the new history.
    let key = lease_key(&bed[1].subnet);
    wait_until("the living", Duration::from_secs(30), || Ok(!bed.etcd().ctl(&["get", &key])?.is_empty()))
        .unwrap();
    for number in 0..=known {
        bed.etcd().ctl(&["put", "/somebody/else", &number.to_string()]).unwrap();
    }
    bed.lab.switch().exec(&format!("ip route delete {cut}")).unwrap();
    wait_until("an agent that follows", Duration::from_secs(30), || Ok(following(&bed))).unwrap();
    // Two of three are held back here, which that rule alone would let go.
    assert_eq!(held(&bed), 2);
    assert_eq!(subnets(&bed).len(), 3);
    bed.assert_all_reached();
}

#[test]
fn an_emptied_store_takes_no_peer_without_the_operators_word() {
    let mut bed = Bed::new(Kind::Etcd, 2);
    bed.learn_all();
    put_strangers(&mut bed, 0..5);
    bed.wait_for_peers(6);
    // A running agent would claim its lease again at once.
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
    // The agent has claimed its own lease again.
    let key = lease_key(&bed[0].subnet);
    wait_for("the own lease", || !bed.etcd().ctl(&["get", &key]).unwrap().is_empty());

    let done = bed[0].overlay(&["peers", "--accept-deletions"]).unwrap();
    println!("{}", done.trim());
    assert!(peers(&bed[0]).is_empty());
    assert_eq!(a.ping(b.address(), pings(1)).unwrap().received, 0);

    // When the host comes back, it finds as many peers gone as the other did, and holds their removal back in the same
    // way.
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
    lab.host(0)
        .overlay(overlay(), &["config", "set", Backend::Vxlan.config(), "--store-dir", &folder])
        .unwrap();
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
    // The agent was refused before it made anything.
    assert!(lab.host(1).exec("ip link show dev overlay0").is_err());
}
