//! The checks hold at overlay0 too: a packet in outer fragments passes the underlay device's program untouched, is
//! reassembled by the kernel, and is checked by `overlay_receive`.
use overlay_common::{Hook::Receive, Reason};

use super::{
    bed::{lease_key, peers, wait_for},
    foreign::{FOREIGN, Mixed, mixed},
};

/// With the outer headers this is larger than the underlay's MTU, so the foreign host sends two outer fragments.
const LARGE: &str = "-s 1600";

/// Pings our container from the foreign host itself with the source address `source`. Returns whether an answer came.
fn ping(bed: &Mixed, source: &str, words: &str) -> bool {
    let to = bed.container.address();
    bed.foreign_host().exec(&format!("ping -n -c 1 -W 0.3 -I {source} {words} {to}")).is_ok()
}

/// Packets that `overlay_receive` counted for `reason` while `act` ran.
fn counted(bed: &Mixed, reason: Reason, act: impl FnOnce()) -> u64 {
    let count = || bed.ours.counters().unwrap().packets(Receive, reason);
    let before = count();
    act();
    count() - before
}

#[test]
fn what_arrives_in_outer_fragments_is_checked_all_the_same() {
    let mut bed = mixed(false);
    let host = bed.foreign_host().namespace().clone();
    // The inner packets stay whole and the outer ones do not fit. The MTU is locked, so that neither host learns one
    // from the other.
    let (subnet, peer) = (bed.ours.subnet.clone(), bed.ours.host.address());
    let base = subnet.split('/').next().unwrap().to_owned();
    for command in [
        "link set eth0 mtu 2000".to_owned(),
        "link set flannel.1 mtu 1700".to_owned(),
        format!("route add {peer}/32 dev eth0 mtu lock 1500"),
        format!("route replace {subnet} via {base} dev flannel.1 onlink mtu lock 1700"),
    ] {
        host.ip(&command).unwrap();
    }
    let own = "10.244.77.0";
    // A correct packet is reassembled, checked, delivered by the stack, and answered.
    assert_eq!(counted(&bed, Reason::Carried, || assert!(ping(&bed, own, LARGE))), 1);

    // The source is an address of another host's container, of one of ours, and of no host.
    let inside = bed.container.address().octets();
    let neighbour = format!("10.244.{}.200", inside[2]);
    for forged in ["10.244.0.9", neighbour.as_str()] {
        host.ip(&format!("address add {forged}/32 dev flannel.1")).unwrap();
        let dropped = counted(&bed, Reason::PeerMismatch, || assert!(!ping(&bed, forged, LARGE)));
        assert_eq!(dropped, 1, "{forged}");
        host.ip(&format!("address del {forged}/32 dev flannel.1")).unwrap();
    }

    // The destination is in another host's subnet, so that we would have to forward the packet.
    host.ip("route add 10.244.98.0/24 via 10.244.98.0 dev flannel.1 onlink mtu lock 1700").unwrap();
    let ours = bed.vtep_mac();
    host.ip(&format!("neighbour replace 10.244.98.0 lladdr {ours} dev flannel.1 nud permanent")).unwrap();
    let through = counted(&bed, Reason::NotOurSubnet, || {
        let line = format!("ping -n -c 1 -W 0.3 -I {own} {LARGE} 10.244.98.9");
        assert!(bed.foreign_host().exec(&line).is_err());
    });
    assert_eq!(through, 1);

    // The inner packet is IPv6, which none of our checks reads, so it is dropped here.
    for command in [
        "-6 address add fd77::2/64 dev flannel.1 nodad".to_owned(),
        format!("-6 neighbour replace fd77::1 lladdr {ours} dev flannel.1 nud permanent"),
    ] {
        host.ip(&command).unwrap();
    }
    bed.ours.host.namespace().ip("-6 address add fd77::1/64 dev overlay0 nodad").unwrap();
    // How many packets the host's own IPv6 has received from overlay0.
    let received = || {
        let counters = bed.ours.host.exec("cat /proc/net/dev_snmp6/overlay0").unwrap();
        let line = counters.lines().find(|line| line.starts_with("Ip6InReceives")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = received();
    let dropped = counted(&bed, Reason::NotIpv4, || {
        assert!(bed.foreign_host().exec("ping -6 -n -c 1 -W 0.3 fd77::1").is_err());
    });
    assert!(dropped > 0);
    assert_eq!(received(), before, "IPv6 from a peer entered the stack");

    // The same host is no peer any more once its lease is gone.
    bed.etcd().ctl(&["del", &lease_key(FOREIGN)]).unwrap();
    wait_for("the foreign host to be gone", || peers(&bed.ours).is_empty());
    assert_eq!(counted(&bed, Reason::UnknownPeer, || assert!(!ping(&bed, own, LARGE))), 1);
}
