//! Leases and packets of both kinds of hosts: each side reads what the other wrote, and receives what the other sent.
use std::{thread, time::Duration};

use overlay_lab::{DIRECT_VXLAN, Numbered, Options, transfer};

use super::bed::{
    Bed, Mode, assert_reaches, bpftool, cases, datagram_arrives, endpoint, flannel_lease, flannels, ids,
    json, lease_key, peers, ping_df, pins, subnet_env, vtep_mac, wait_for,
};

/// Field names in other cases, host bits, unknown fields: flannel accepts all of these.
const ODD: &str = r#"{"network":"10.244.3.4/16","subnetmax":"10.244.63.0","comment":{"by":"hand"},"BACKEND":{"type":"VxLAN","vni":1,"Unknown":[]}}"#;

#[test]
fn i1_configs_and_leases_are_read_and_written_byte_for_byte() {
    for flannel in flannels() {
        let mut bed = Bed::with(&flannel, 1, 1, ODD, Options::default());
        let (ours, theirs) = (&bed.ours[0], &bed.flannel[0]);
        let mut expected = vec![
            (lease_key(&ours.subnet), flannel_lease(ours.host.address(), &vtep_mac(ours))),
            (lease_key(&theirs.subnet), theirs.lease()),
        ];
        expected.sort();
        assert_eq!(bed.leases(), expected);

        // These leases are as real flannels of every backend and age have written them.
        let mac = "7a:75:0d:2d:88:95";
        let vxlan = format!(r#""BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}"#);
        let v6 = r#""BackendV6Data":{"VNI":1,"VtepMAC":"e6:26:4c:97:8d:05"}"#;
        let good = [
            (
                "10.244.240.0-24&fd00:244:0:4b::-64",
                format!(r#"{{"PublicIP":"10.99.1.1","PublicIPv6":"fd99::1",{vxlan},{v6}}}"#),
            ),
            ("10.244.241.0-24", format!(r#"{{"PublicIP":"10.99.1.2",{vxlan}}}"#)),
            (
                "10.244.242.0-24",
                format!(
                    r#"{{"publicip":"10.99.1.3","New":true,"backendtype":"vxlan","BACKENDDATA":{{"vni":1,"vtepmac":"{mac}"}}}}"#
                ),
            ),
        ];
        let other = [
            ("10.244.243.0-24", "", r#"{"PublicIP":"10.99.1.4","PublicIPv6":null}"#),
            (
                "10.244.244.0-24",
                "host-gw",
                r#"{"PublicIP":"10.99.1.5","PublicIPv6":"fd99::1","BackendType":"host-gw"}"#,
            ),
            ("10.244.245.0-24", "ipip", r#"{"PublicIP":"10.99.1.6","PublicIPv6":null,"BackendType":"ipip"}"#),
            (
                "10.244.246.0-24",
                "extension",
                r#"{"PublicIP":"10.99.1.7","PublicIPv6":null,"BackendType":"extension","BackendData":"hello"}"#,
            ),
            (
                "10.244.247.0-24",
                "wireguard",
                r#"{"PublicIP":"10.99.1.8","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"aGVsbG8=","Port":51820}}"#,
            ),
        ];
        let put = |bed: &mut Bed, key: &str, value: &str| {
            bed.etcd().ctl(&["put", &format!("/coreos.com/network/subnets/{key}"), value]).unwrap();
        };
        for (key, value) in &good {
            put(&mut bed, key, value);
        }
        for (key, _, value) in other {
            put(&mut bed, key, value);
        }
        let mut known = vec![bed.flannel[0].peer()];
        known.extend(
            (0..3).map(|n| (format!("10.244.24{n}.0/24"), format!("10.99.1.{}", n + 1), mac.to_owned())),
        );
        known.sort();
        let now = |bed: &Bed| {
            let mut now = peers(&bed.ours[0]);
            now.sort();
            now
        };
        wait_for("three more peers", || now(&bed) == known);
        let skipped = json(&bed.ours[0], &["status"])["agent"]["peers"]["skipped"].clone();
        for (key, backend, _) in other {
            let why = skipped.as_array().unwrap().iter().find(|skipped| skipped["key"] == key);
            let why = why.unwrap_or_else(|| panic!("{key} is not in {skipped}"))["why"].as_str().unwrap();
            assert!(why.contains("not vxlan") && why.contains(backend), "{why}");
        }
        // flannel reads our lease too: it has a route to us, and the MAC address of our device.
        let (ours, theirs) = (&bed.ours[0], &bed.flannel[0]);
        let base = ours.subnet.strip_suffix("/24").unwrap();
        let neighbour = theirs.host.exec(&format!("ip neighbour show {base} dev flannel.1")).unwrap();
        assert!(neighbour.contains(&vtep_mac(ours)) && neighbour.contains("PERMANENT"), "{neighbour}");
        bed.assert_all_reached();
    }
}

#[test]
fn i2_d8_every_size_gets_through_and_the_mtu_told_is_the_mtu_that_fits() {
    for (flannel, mode) in cases(&Mode::ALL) {
        let both = [Options::default(), Options { wire_like: true, ..Options::default() }];
        for options in both.into_iter().filter(|options| options.wire_like >= mode.underlay().wire_like) {
            let wire_like = options.wire_like;
            let bed = Bed::with(&flannel, 1, 1, mode.config(), options);
            bed.learn_all();
            let (a, b) = bed.pair();
            let mtu = mode.mtu();
            // The MTU that is told is the device's, and fits into one underlay frame, on both sides.
            for (host, device) in
                [(&bed.ours[0].host, mode.our_device()), (&bed.flannel[0].host, mode.flannels_device())]
            {
                assert!(subnet_env(host).contains(&format!("\nFLANNEL_MTU={mtu}\n")), "{}", subnet_env(host));
                let link = host.exec(&format!("ip -o link show dev {device}")).unwrap();
                assert!(link.contains(&format!(" mtu {mtu} ")), "{link}");
            }
            for (from, to) in [(a, b), (b, a)] {
                assert!(ping_df(from, to.address(), mtu - 28).complete());
                let refused = ping_df(from, to.address(), mtu - 28 + 1);
                let said = refused.output.contains(&format!("mtu={mtu}"));
                assert!(refused.received == 0 && said, "{}", refused.output);
                // The last three sizes are sent in fragments.
                for bytes in [1, 1000, mtu as usize - 28, mtu as usize - 28 + 1, 4000, 60000] {
                    datagram_arrives(from, to, bytes);
                }
                transfer(from, to, 64 << 10).unwrap();
                let sent = transfer(from, to, 64 << 20).unwrap();
                println!("  {mode:?}, wire-like {wire_like}: 64 MiB in {:?}", sent.time);
            }
            let carried = bed.ours[0].counters().unwrap().carried();
            // Whole segments take the fast path and fragments the stack. Nothing is dropped.
            assert!(carried.fast_out > 3000 && carried.fast_in > 3000 && carried.dropped == 0, "{carried:?}");
        }
    }
}

#[test]
fn i4_d4_a_flannel_host_with_another_mac_is_followed_and_leaves_no_old_entry() {
    for (flannel, mode) in cases(&Mode::ALL) {
        let mut bed = Bed::of(mode, &flannel, 2, 1);
        bed.learn_all();
        for _ in 0..2 {
            bed.flannel[0].restart_with_a_new_device();
            let peer = bed.flannel[0].peer();
            for member in &bed.ours {
                wait_for(&format!("{peer:?} on {}", member.host.name()), || peers(member).contains(&peer));
                // There is exactly one entry per peer, by subnet and by underlay address.
                for map in ["peers", "vteps"] {
                    let entries = bpftool(&["map", "dump"], &pins(member).join(map));
                    assert_eq!(entries.as_array().unwrap().len(), 2, "{map}: {entries}");
                }
            }
            bed.know_each_other();
            bed.assert_all_reached();
        }
    }
}

/// Asserts that nothing is encapsulated between our host and flannel's, in either direction.
fn assert_unencapsulated(bed: &Bed, port: u16) {
    let capture = bed.ours[0].host.capture("eth0", &format!("udp port {port}")).unwrap();
    for theirs in &bed.flannel {
        let (a, b) = (&bed.ours[0].containers[0], &theirs.container);
        transfer(a, b, 8 << 20).unwrap();
        transfer(b, a, 8 << 20).unwrap();
    }
    let packets = capture.lines().unwrap();
    assert!(packets.is_empty(), "{packets:#?}");
}

#[test]
fn i9_any_mixture_of_hosts_talks_also_when_flannel_routes_directly() {
    for (flannel, mode) in cases(&Mode::ALL) {
        let bed = Bed::of(mode, &flannel, 1, 2);
        bed.learn_all();
        if mode == Mode::HostGw {
            assert_unencapsulated(&bed, 8285);
        }
    }
    for flannel in flannels() {
        // The reverse path filter is loose, as systemd sets it, because what the stack sends takes another path than
        // what it receives.
        let bed = Bed::with(&flannel, 2, 1, DIRECT_VXLAN, Options { rp_filter: 2, ..Options::default() });
        bed.learn_all();
        let theirs = &bed.flannel[0];
        for ours in &bed.ours {
            let route = theirs.route(&ours.subnet);
            assert!(route.contains(&format!("via {} dev eth0", ours.host.address())), "{route}");
        }
        assert_unencapsulated(&bed, 8472);
    }
}

#[test]
fn i12_an_agent_that_ends_and_starts_loses_no_packet_to_or_from_flannel() {
    for (flannel, mode) in cases(&Mode::ALL) {
        let mut bed = Bed::of(mode, &flannel, 1, 1);
        bed.learn_all();
        let (a, b) = bed.pair();
        let (a, b) = (a.clone(), b.clone());
        let before = ids(&bed.ours[0]);
        let streams = [(&a, &b), (&b, &a)].map(|(from, to)| Numbered::start(from, to, 5000).unwrap());
        thread::sleep(Duration::from_millis(300));
        bed.ours[0].kill_agent().unwrap();
        thread::sleep(Duration::from_millis(300));
        bed.ours[0].restart_agent().unwrap();
        assert!(bed.ours[0].end_agent().unwrap().success());
        thread::sleep(Duration::from_millis(300));
        bed.ours[0].restart_agent().unwrap();
        for stream in streams {
            let report = stream.finish().unwrap();
            bed.assert_none_lost(&report);
            assert!(report.sent > 3000, "{report:?}");
        }
        let after = ids(&bed.ours[0]);
        assert_eq!((&before.maps, &before.links), (&after.maps, &after.links));
        assert_eq!(peers(&bed.ours[0]), [bed.flannel[0].peer()]);
        assert_reaches(&a, b.address());
        assert!(endpoint(&bed.ours[0], a.address()).is_some());
    }
}
