//! Frames that pretend to be both directions of a connection: the fast path takes none whose other direction the stack has not
//! carried, whoever sends them.
use overlay_common::{
    Hook::{Decap, Encap},
    Reason,
};
use overlay_fuzz::{
    Bench, FastPath, Ingress, Nic, Setup,
    frames::{Frame, Transport},
    table::{from_container, is_from_us},
    world::{CONTAINER, CONTAINER_MAC, GATEWAY, PEERS, REMOTE},
};
use overlay_user::datapath::tables::Tables;

use super::overlay;

const TRANSPORTS: [Transport; 3] = [Transport::Udp, Transport::Tcp, Transport::Icmp];

/// A packet from the first peer's container to ours; connections are told apart by `port`.
fn comes(transport: Transport, port: u16) -> Frame {
    let mut frame = Frame::valid(u32::from(port), transport, 40);
    frame.inner_ports = [port, if transport == Transport::Icmp { 1 } else { 4000 }];
    frame
}

/// The answer to it, in whoever's frame.
fn goes(transport: Transport, port: u16) -> Frame {
    let mut frame = comes(transport, port);
    (frame.inner.from, frame.inner.to) = (CONTAINER, REMOTE);
    if transport != Transport::Icmp {
        frame.inner_ports.reverse();
    }
    frame
}

fn promoted(bench: &Bench) -> usize {
    let tables = Tables::open(&overlay_host_tests::pins(bench.host())).unwrap();
    tables.stack_flows.promoted().unwrap().len()
}

fn carried(bench: &Bench) -> u64 {
    let counted = bench.member().counters().unwrap();
    counted.packets(Decap, Reason::Carried) + counted.packets(Encap, Reason::Carried)
}

fn bench() -> Bench {
    let setup = Setup { ingress: Ingress::Tc, fast_path: FastPath::Established };
    Bench::new(setup, overlay()).unwrap()
}

#[test]
fn a_peer_that_plays_both_ends_gets_nothing_promoted() {
    let mut bench = bench();
    for (transport, port) in TRANSPORTS.into_iter().zip(20_000..) {
        let inwards = comes(transport, port);
        // The other direction comes from the peer, too; from another peer; or without any encapsulation.
        let mut others = vec![goes(transport, port); 3];
        others[1].ip.from = PEERS[1].0;
        others[2].unencapsulated = true;
        // And what comes in is in the name of that peer's container, from another peer.
        let mut stolen = inwards.clone();
        stolen.ip.from = PEERS[1].0;
        for _ in 0..3 {
            for frame in [&inwards, &stolen].into_iter().chain(&others) {
                for nic in [Nic::Underlay, Nic::Second] {
                    bench.receive(nic, &frame.frames()).unwrap();
                }
            }
        }
    }
    assert_eq!((promoted(&bench), carried(&bench)), (0, 0));
}

#[test]
fn a_container_that_plays_both_ends_gets_nothing_promoted() {
    let mut bench = bench();
    for (transport, port) in TRANSPORTS.into_iter().zip(20_000..) {
        let outwards = from_container(&goes(transport, port));
        // The other direction in the name of the peer's container, to itself and to its neighbour; and its own packet once more.
        let inwards = forged(comes(transport, port));
        let mut beside = comes(transport, port);
        beside.inner.to = [10, 244, 1, 3];
        for _ in 0..3 {
            bench
                .send(&[outwards.clone(), inwards.clone(), forged(beside.clone()), outwards.clone()])
                .unwrap();
        }
    }
    assert_eq!((promoted(&bench), carried(&bench)), (0, 0));
}

/// The packet as our container sends it, in whoever's name it is.
fn forged(mut frame: Frame) -> Vec<u8> {
    let [a, b, c, d] = GATEWAY;
    frame.inner_ethernet.from = CONTAINER_MAC;
    frame.inner_ethernet.to = [0x02, 0x42, a, b, c, d];
    frame.inner_frame()
}

/// The same frames from those whom they belong to: that the tests above could fail.
#[test]
fn both_ends_together_get_it_promoted() {
    let mut bench = bench();
    for (transport, port) in TRANSPORTS.into_iter().zip(20_000..) {
        for _ in 0..2 {
            bench.send(&[from_container(&goes(transport, port))]).unwrap();
            bench.receive(Nic::Underlay, &comes(transport, port).frames()).unwrap();
        }
    }
    assert_eq!((promoted(&bench), carried(&bench)), (3, 6));
}

/// A firewall that refuses the answers: however often both directions are seen in front of it, nothing takes the fast path.
#[test]
fn what_the_stack_refuses_in_one_direction_is_not_promoted() {
    let mut bench = bench();
    let rules = "table ip f { chain c { type filter hook forward priority 0;
        meta l4proto { tcp, udp } th dport 20000-20010 drop; }; }";
    bench.host().namespace().exec_words(&["nft", rules]).unwrap();
    for (transport, port) in [Transport::Udp, Transport::Tcp].into_iter().zip(20_000..) {
        for _ in 0..3 {
            let seen = bench.receive(Nic::Underlay, &comes(transport, port).frames()).unwrap();
            assert_eq!(seen.ours.len(), 1, "{transport:?}");
            let seen = bench.send(&[from_container(&goes(transport, port))]).unwrap();
            assert!(!seen.ours.iter().any(|frame| is_from_us(frame)), "{transport:?}: {:?}", seen.counted);
        }
    }
    assert_eq!((promoted(&bench), carried(&bench)), (0, 0));
}
