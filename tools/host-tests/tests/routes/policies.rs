//! Policies and routes of the host's owner that the fast path obeys.
use overlay_common::{Hook::Encap, Reason};
use overlay_lab::Backend;
use serde_json::Value;

use crate::bed::{Bed, Kind, pings};

#[test]
fn a_policy_for_the_hosts_own_packets_sends_the_tunnel_by_another_path() {
    for backend in Backend::ALL {
        let options = overlay_lab::Options::default();
        let bed = Bed::with_config(Kind::Folder, options, backend.config(), &[]);
        // A second link between the two hosts.
        let (here, there) = (bed[0].host.namespace(), bed[1].host.namespace());
        let inside = there.name();
        here.ip(&format!("link add eth1 type veth peer name eth1 netns {inside}")).unwrap();
        for (host, address) in [(here, "192.168.7.1/24"), (there, "192.168.7.2/24")] {
            host.ip(&format!("address add {address} dev eth1")).unwrap();
            host.ip("link set eth1 up").unwrap();
        }
        bed.learn_all();
        let (a, b) = bed.pair();
        let peer = bed[1].host.address();
        here.ip(&format!("route add {peer}/32 via 192.168.7.2 dev eth1 table 100")).unwrap();
        here.ip(&format!("rule add iif lo to {peer} lookup 100")).unwrap();
        let carried = || bed[0].counters().unwrap().packets(Encap, Reason::Carried);
        let (before, left) = (carried(), sent(&bed, "eth1"));
        // So many that what the link itself sends (ARP, IPv6) does not make a difference.
        let pinged = a.ping(b.address(), pings(50)).unwrap();
        assert!(pinged.complete(), "{}: {}", backend.name(), pinged.output);
        assert_eq!(carried(), before + 50, "{}", backend.name());
        assert!(sent(&bed, "eth1") >= left + 50, "{}", backend.name());
    }
}

/// Packets that an interface of the first host has sent.
pub(super) fn sent(bed: &Bed, device: &str) -> u64 {
    let link = bed[0].host.exec(&format!("ip -j -s link show dev {device}")).unwrap();
    let link: Value = serde_json::from_str(&link).unwrap();
    link[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}
