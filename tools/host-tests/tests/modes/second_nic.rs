//! In UDP mode, what a peer sends by another interface than the underlay's arrives at the agent's socket.
use overlay_lab::{Backend, Options, transfer};

use crate::bed::{Bed, Kind};

#[test]
fn a_stream_whose_way_back_is_another_interface_is_not_held_up() {
    let bed = Bed::with_config(Kind::Folder, Options::default(), Backend::Udp.config(), &[]);
    bed.learn_all();
    let (a, b) = bed.pair();
    // A second link between the two hosts, a veth: it hands frames over with unfinished checksums.
    let names = [0, 1].map(|host| bed[host].host.namespace().name().to_owned());
    bed[0]
        .host
        .namespace()
        .ip(&format!("link add eth1 type veth peer name eth1 netns {}", names[1]))
        .unwrap();
    for (host, other) in [(0, 1), (1, 0)] {
        let namespace = bed[host].host.namespace();
        namespace.ip(&format!("address add 10.98.0.{}/24 dev eth1", host + 1)).unwrap();
        namespace.ip("link set eth1 up").unwrap();
        for interface in ["all", "eth0", "eth1"] {
            namespace.sysctl(&format!("ipv4/conf/{interface}/rp_filter"), "2").unwrap();
        }
        if host == 1 {
            let (here, there) = (bed[1].host.address(), bed[0].host.address());
            let via = format!("10.98.0.{}", other + 1);
            namespace.ip(&format!("route add {there}/32 via {via} dev eth1 src {here}")).unwrap();
        }
    }
    // Data in one direction, acknowledgements in the other; and the other way round.
    transfer(a, b, 1 << 20).unwrap();
    transfer(b, a, 1 << 20).unwrap();
}
