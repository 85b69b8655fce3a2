//! Leases that end, an etcd in trouble, and reservations: what each side sees of them.
use std::{
    thread,
    time::{Duration, Instant},
};

use overlay_lab::{Numbered, PingOptions};

use super::bed::{
    Bed, Mode, cases, flannel_lease, flannels, json, lease_key, peers, subnet_env, vtep_mac, wait_for,
};

/// A lease that belongs to no host, of a subnet beyond the first hundred free ones, among which hosts choose. Its host
/// is on the hosts' own link, as host-gw requires.
fn stranger(mode: Mode, number: u8) -> (String, String, String) {
    let mac = if mode == Mode::Vxlan { "02:00:00:00:01:01" } else { "" };
    (format!("10.244.{}.0/24", 200 + number), format!("10.99.0.{}", 100 + number), mac.to_owned())
}

fn put_stranger(bed: &mut Bed, number: u8, more: &[&str]) {
    let (subnet, ip, mac) = stranger(bed.mode, number);
    let value = bed.mode.lease(ip.parse().unwrap(), &mac);
    bed.etcd().ctl(&[&["put", &lease_key(&subnet), &value], more].concat()).unwrap();
}

fn following(bed: &Bed) -> bool {
    json(&bed.ours[0], &["status"])["agent"]["store"]["following"].as_bool().unwrap()
}

#[test]
fn i5_a_lease_that_ends_takes_its_entries_along_and_one_of_ours_comes_back() {
    for (flannel, mode) in cases(&Mode::ALL) {
        let mut bed = Bed::of(mode, &flannel, 1, 1);
        bed.learn_all();
        // A lease expires.
        let granted = bed.etcd().ctl(&["lease", "grant", "2"]).unwrap();
        let id = granted.split_whitespace().nth(1).unwrap().to_owned();
        put_stranger(&mut bed, 1, &["--lease", &id]);
        let known = stranger(mode, 1);
        let subnet = known.0.clone();
        wait_for("the short lease", || peers(&bed.ours[0]).contains(&known));
        wait_for("the short lease on flannel's side", || bed.flannel[0].knows(&subnet));
        wait_for("its end", || peers(&bed.ours[0]) == [bed.flannel[0].peer()]);
        wait_for("its end on flannel's side", || !bed.flannel[0].knows(&subnet));

        // Our lease is deleted by hand: the agent claims it again, the same in every byte, and flannel has its route
        // again.
        let (subnet, key) = (bed.ours[0].subnet.clone(), lease_key(&bed.ours[0].subnet));
        let before = bed.get(&key);
        bed.delete_lease(&subnet);
        wait_for("the lease", || bed.get(&key) == before);
        bed.know_each_other();
        bed.assert_all_reached();

        // flannel's lease is deleted by hand, which ends its flanneld.
        let (subnet, key) = (bed.flannel[0].subnet.clone(), lease_key(&bed.flannel[0].subnet));
        bed.delete_lease(&subnet);
        assert_eq!(bed.get(&key), "");
        bed.flannel[0].flanneld.as_mut().unwrap().wait(Duration::from_secs(10)).unwrap();
        wait_for("no peer", || peers(&bed.ours[0]).is_empty());
        let (a, b) = bed.pair();
        let ping = a.ping(b.address(), PingOptions { count: 1, ..PingOptions::default() }).unwrap();
        assert!(ping.received == 0 && ping.output.contains("Net Unreachable"), "{}", ping.output);
    }
}

#[test]
fn d5_a_lease_that_ended_while_the_agent_was_down_is_gone_once_it_is_back() {
    for flannel in flannels() {
        let mut bed = Bed::new(&flannel, 1, 2);
        bed.ours[0].kill_agent().unwrap();
        let subnet = bed.flannel[0].subnet.clone();
        bed.delete_lease(&subnet);
        assert_eq!(peers(&bed.ours[0]).len(), 2, "nobody is there to hear of it");
        bed.ours[0].restart_agent().unwrap();
        wait_for("its end", || peers(&bed.ours[0]) == [bed.flannel[1].peer()]);
    }
}

#[test]
fn i6_d11_what_etcd_compacted_while_an_agent_was_cut_off_is_caught_up_with() {
    for flannel in flannels() {
        let mut bed = Bed::new(&flannel, 2, 1);
        for number in 0..4 {
            put_stranger(&mut bed, number, &[]);
        }
        wait_for("the strangers", || peers(&bed.ours[0]).len() == 6);
        let known = peers(&bed.ours[0]);

        // The blackhole route must be there when the connection is closed: only a closed connection is known to be gone
        // at once, and then there must be no path for a new one.
        let cut = format!("blackhole {}/32", bed.ours[0].host.address());
        bed.etcd().stop().unwrap();
        wait_for("word of it", || !following(&bed));
        bed.lab.switch().exec(&format!("ip route add {cut}")).unwrap();
        bed.etcd().restart().unwrap();

        // One peer goes and one comes; one host of ours and one of flannel's get another MAC address.
        bed.delete_lease(&stranger(Mode::Vxlan, 0).0);
        put_stranger(&mut bed, 7, &[]);
        bed.ours[1].end_agent().unwrap();
        bed.ours[1].host.exec("ip link delete overlay0").unwrap();
        let subnet = bed.ours[1].subnet.clone();
        bed.delete_lease(&subnet);
        bed.ours[1].restart_agent().unwrap();
        bed.flannel[0].restart_with_a_new_device();
        bed.etcd().compact().unwrap();
        assert_eq!(peers(&bed.ours[0]), known, "it heard of it after all");

        bed.lab.switch().exec(&format!("ip route delete {cut}")).unwrap();
        let back = Instant::now();
        let mut truth = [1, 2, 3, 7].map(|number| stranger(Mode::Vxlan, number)).to_vec();
        let other = &bed.ours[1];
        truth.push((other.subnet.clone(), other.host.address().to_string(), vtep_mac(other)));
        truth.push(bed.flannel[0].peer());
        truth.sort();
        wait_for("the truth", || {
            let mut known = peers(&bed.ours[0]);
            known.sort();
            known == truth
        });
        println!("caught up {:?} after the path was free", back.elapsed());
        // The agent has kept its own lease, although flannel's own code would take such a reset for the loss of the
        // lease.
        let key = lease_key(&bed.ours[0].subnet);
        assert_eq!(bed.get(&key), flannel_lease(bed.ours[0].host.address(), &vtep_mac(&bed.ours[0])));
        bed.assert_all_reached();
    }
}

#[test]
fn i7_ten_seconds_without_etcd_cost_no_packet_and_both_sides_follow_again() {
    for (flannel, mode) in cases(&[Mode::Vxlan, Mode::Udp]) {
        let mut bed = Bed::of(mode, &flannel, 1, 1);
        bed.learn_all();
        let (a, b) = bed.pair();
        let streams = [(a, b), (b, a)].map(|(from, to)| Numbered::start(from, to, 1000).unwrap());
        let known = peers(&bed.ours[0]);
        let stopped = Instant::now();
        bed.etcd().stop().unwrap();
        wait_for("word of it", || !following(&bed));
        thread::sleep(Duration::from_secs(10).saturating_sub(stopped.elapsed()));
        assert_eq!(peers(&bed.ours[0]), known);
        bed.etcd().restart().unwrap();
        wait_for("the stream of changes", || following(&bed));
        for stream in streams {
            bed.assert_none_lost(&stream.finish().unwrap());
        }
        put_stranger(&mut bed, 0, &[]);
        let news = stranger(mode, 0);
        wait_for("news", || peers(&bed.ours[0]).contains(&news));
        wait_for("news on flannel's side", || bed.flannel[0].knows(&news.0));
    }
}

#[test]
fn i11_d1_a_reservation_survives_the_first_start_and_every_other() {
    for flannel in flannels() {
        let mut bed = Bed::new(&flannel, 1, 1);
        // A host has no lease before its first start.
        bed.ours[0].end_agent().unwrap();
        bed.ours[0].overlay(&["down"]).unwrap();
        let before = bed.ours[0].subnet.clone();
        bed.delete_lease(&before);
        // The subnet is one of those among which hosts choose; flannel has chosen another.
        let free =
            ["10.244.50", "10.244.51"].into_iter().find(|free| !bed.flannel[0].subnet.starts_with(free));
        let base = free.unwrap();
        let reserved = format!("{base}.0/24");
        let key = lease_key(&reserved);
        let value = format!(r#"{{"PublicIP":"{}"}}"#, bed.ours[0].host.address());
        bed.etcd().ctl(&["put", &key, &value]).unwrap();
        let lease_of = |bed: &mut Bed| {
            let text = bed.etcd().ctl(&["get", &key, "--write-out", "json"]).unwrap();
            let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(answer["count"], 1, "{answer}");
            // etcd's JSON leaves out a field that is zero.
            answer["kvs"][0]["lease"].as_i64().unwrap_or_default()
        };
        assert_eq!(lease_of(&mut bed), 0);
        for start in 0..3 {
            bed.ours[0].restart_agent().unwrap();
            assert_eq!(bed.ours[0].agent().unwrap().subnet().unwrap().0, reserved);
            assert_eq!(lease_of(&mut bed), 0, "start {start} gave the reservation an end");
            assert_eq!(bed.get(&key), flannel_lease(bed.ours[0].host.address(), &vtep_mac(&bed.ours[0])));
            assert!(subnet_env(&bed.ours[0].host).contains(&format!("FLANNEL_SUBNET={base}.1/24\n")));
            bed.ours[0].end_agent().unwrap();
        }
        // For flannel this host is like any other.
        wait_for("the reserved subnet on flannel's side", || bed.flannel[0].knows(&reserved));
    }
}
