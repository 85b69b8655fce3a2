//! Direct routing, with either encapsulation behind it: what leaves and arrives as it is when the peer is the next hop.
use overlay_common::{
    ENCAPSULATION_UDP,
    Hook::{Decap, Encap, Receive, Send, Xdp},
    Reason, SETTING_DIRECT, SETTING_STACK_ONLY,
};

use super::{bed::*, encap::assert_answer};
use crate::support::ip;

const SENT: (overlay_common::Hook, Reason) = (Encap, Reason::Carried);
const DELIVERED: (overlay_common::Hook, Reason) = (Decap, Reason::Carried);
/// A container of the second peer, which [`behind_a_gateway`] moves away.
const FAR: [u8; 4] = [10, 244, 3, 9];

/// What stands in for direct routing where the peer is not on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fallback {
    Vxlan,
    Udp,
}

impl Fallback {
    /// Bytes that encapsulation adds.
    const fn overhead(self) -> usize {
        match self {
            Self::Vxlan => 50,
            Self::Udp => 28,
        }
    }

    fn wrap(self, packet: &[u8]) -> Vec<u8> {
        match self {
            Self::Vxlan => Tunnel::default().wrap(packet),
            Self::Udp => Datagram::default().wrap(packet),
        }
    }

    /// What becomes of a frame that overlay0 gets: a VXLAN device wants its own MAC address in it.
    fn handed_over(self, mut frame: Vec<u8>) -> Vec<u8> {
        if self == Self::Vxlan {
            frame[..6].copy_from_slice(&VTEP_MAC);
        }
        frame
    }
}

fn with_direct(flags: u32, test: fn(&mut Bed, Fallback)) {
    for fallback in [Fallback::Vxlan, Fallback::Udp] {
        with_settings(
            |settings| {
                if fallback == Fallback::Udp {
                    bare(settings);
                }
                settings.flags = flags | SETTING_DIRECT;
                assert_eq!(settings.encapsulation == ENCAPSULATION_UDP, fallback == Fallback::Udp);
            },
            |bed| test(bed, fallback),
        );
    }
}

fn behind_a_gateway() {
    ip("route add 10.99.0.3/32 via 10.99.0.2 dev eth0");
}

fn encap(bed: &mut Bed, packet: &[u8]) -> Outcome {
    bed.run("overlay_encap", bed.container, &from_container(packet))
}

/// As it arrives on the underlay device.
fn arriving(packet: &[u8]) -> Vec<u8> {
    ethernet(UNDERLAY_MAC, NEXT_HOP_MAC, packet)
}

/// `packet` with one less in its TTL.
fn routed(mut packet: Vec<u8>) -> Vec<u8> {
    packet[8] -= 1;
    seal(&mut packet);
    packet
}

#[test]
fn to_a_peer_on_the_link_a_packet_leaves_as_it_is() {
    with_direct(0, |bed, _| {
        for tos in [0, 0xbb] {
            let packet = udp_with(CONTAINER, REMOTE, [4000, 5000], 100, |ip| ip[1] = tos);
            let outcome = encap(bed, &packet);
            outcome.assert(REDIRECT, &[SENT]);
            assert_eq!(outcome.frame, from_container(&routed(packet)));
        }
        let traffic = bed.tables.traffic(0).unwrap();
        assert_eq!((traffic.sent_packets, traffic.sent_bytes), (2, 2 * 128));
        // What is not learned yet, and the like, is the stack's all the same.
        encap(bed, &udp(UNLEARNED, REMOTE, [1, 2], 10)).assert(NEXT, &[(Encap, Reason::Unlearned)]);
        ip("addr del 10.99.0.1/24 dev eth0");
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 10)).assert(NEXT, &[(Encap, Reason::NoNextHop)]);
    });
}

#[test]
fn to_a_peer_behind_a_gateway_a_packet_leaves_encapsulated() {
    with_direct(0, |bed, fallback| {
        let packet = udp(CONTAINER, FAR, [4000, 5000], 100);
        assert_eq!(encap(bed, &packet).frame, from_container(&routed(packet.clone())), "while on the link");
        behind_a_gateway();
        let outcome = encap(bed, &packet);
        outcome.assert(REDIRECT, &[SENT]);
        let (headers, inside) = outcome.frame.split_at(14 + fallback.overhead());
        assert_eq!(headers[26..34], [LOCAL, OTHER_PEER].concat());
        let port = if fallback == Fallback::Udp { UDP_PORT } else { PORT };
        assert_eq!(headers[36..38], port.to_be_bytes());
        assert_eq!(inside, routed(packet));
        let traffic = bed.tables.traffic(1).unwrap();
        assert_eq!((traffic.sent_packets, traffic.sent_bytes), (2, 2 * 128));
    });
}

#[test]
fn on_the_link_packets_may_be_as_large_as_its_mtu() {
    with_direct(0, |bed, _| {
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 1500 - 28)).assert(REDIRECT, &[SENT]);
        let packet = udp(CONTAINER, REMOTE, [1, 2], 1501 - 28);
        let outcome = encap(bed, &packet);
        outcome.assert(REDIRECT, &[(Encap, Reason::TooBig)]);
        assert_answer(&outcome.frame, &packet, 40, 4, 1500);
        let packet = without_df(packet);
        let outcome = encap(bed, &packet);
        outcome.assert(NEXT, &[(Encap, Reason::NeedsFragmentation)]);
        assert_eq!(outcome.frame, from_container(&packet));
        // A path MTU that the kernel knows of, to the peer itself.
        ip("route add 10.99.0.2/32 dev eth0 mtu lock 1400");
        let packet = udp(CONTAINER, REMOTE, [1, 2], 1401 - 28);
        assert_answer(&encap(bed, &packet).frame, &packet, 40, 4, 1400);
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 1400 - 28)).assert(REDIRECT, &[SENT]);
    });
}

#[test]
fn behind_a_gateway_the_headers_count() {
    with_direct(0, |bed, fallback| {
        behind_a_gateway();
        let mtu = 1500 - fallback.overhead();
        encap(bed, &udp(CONTAINER, FAR, [1, 2], mtu - 28)).assert(REDIRECT, &[SENT]);
        // The second would fit without headers, the third not even so.
        for length in [mtu + 1, 1500, 1501] {
            let packet = udp(CONTAINER, FAR, [1, 2], length - 28);
            let outcome = encap(bed, &packet);
            outcome.assert(REDIRECT, &[(Encap, Reason::TooBig)]);
            assert_answer(&outcome.frame, &packet, 40, 4, mtu as u16);
            encap(bed, &without_df(packet)).assert(NEXT, &[(Encap, Reason::NeedsFragmentation)]);
        }
    });
}

/// Nothing needs room here, so that a test run's GSO frame goes all the way.
#[test]
fn segments_count_not_frames() {
    with_direct(0, |bed, _| {
        let packet = tcp(CONTAINER, REMOTE, [1, 2], 0x10, 2920);
        let frame = from_container(&packet);
        let outcome = bed.run_with(
            "overlay_encap",
            Skb { ifindex: bed.container, gso_segs: 2, gso_size: 1460 },
            &frame,
        );
        outcome.assert(REDIRECT, &[SENT]);
        assert_eq!(outcome.frame, from_container(&routed(packet.clone())));
        assert_eq!(bed.tables.traffic(0).unwrap().sent_packets, 2);
        let larger = Skb { ifindex: bed.container, gso_segs: 2, gso_size: 1461 };
        let outcome = bed.run_with("overlay_encap", larger, &frame);
        outcome.assert(REDIRECT, &[(Encap, Reason::TooBig)]);
        assert_answer(&outcome.frame, &packet, 40, 4, 1500);
    });
}

#[test]
fn a_plain_packet_of_a_peer_is_delivered() {
    with_direct(0, |bed, _| {
        for (source, slot) in [(REMOTE, 0), (FAR, 1)] {
            let packet = udp_with(source, CONTAINER, [5000, 4000], 100, |ip| ip[1] = 0xbb);
            let frame = arriving(&packet);
            let outcome = bed.run("overlay_decap", bed.underlay, &frame);
            assert_eq!(outcome.frame, ethernet(CONTAINER_MAC, GATEWAY_MAC, &packet));
            let traffic = bed.tables.traffic(slot).unwrap();
            assert_eq!((traffic.received_packets, traffic.received_bytes), (1, 128));
            bed.take_in_plain(&frame).assert(REDIRECT, &[DELIVERED]);
            let traffic = bed.tables.traffic(slot).unwrap();
            assert_eq!((traffic.received_packets, traffic.received_bytes), (3, 3 * 128), "XDP's too");
        }
        for (hook, packets) in [(Decap, 4), (Xdp, 2)] {
            let count = bed.tables.counter(hook, Reason::Carried).unwrap();
            assert_eq!((count.packets, count.bytes), (packets, packets * 128), "{hook:?}");
        }
        // Segments, which nobody has to make room for.
        let frame = arriving(&tcp(REMOTE, CONTAINER, [1, 2], 0x10, 2920));
        let skb = Skb { ifindex: bed.underlay, gso_segs: 2, gso_size: 1460 };
        bed.run_with("overlay_decap", skb, &frame).assert(REDIRECT, &[DELIVERED]);
    });
}

#[test]
fn encapsulated_packets_are_understood_beside_plain_ones() {
    with_direct(0, |bed, fallback| {
        let packet = udp(REMOTE, CONTAINER, [5000, 4000], 100);
        let outcome = bed.take_in(&fallback.wrap(&packet));
        outcome.assert(REDIRECT, &[DELIVERED]);
        assert_eq!(outcome.frame, ethernet(CONTAINER_MAC, GATEWAY_MAC, &packet));
        let count = bed.tables.counter(Decap, Reason::Carried).unwrap();
        assert_eq!((count.packets, count.bytes), (1, 128));
        // To the kernel's own tunnel untouched; a TUN has none.
        let frame = fallback.wrap(&udp(REMOTE, UNLEARNED, [1, 2], 10));
        let outcome = bed.take_in(&frame);
        let verdict = if fallback == Fallback::Udp { REDIRECT } else { NEXT };
        outcome.assert(verdict, &[(Decap, Reason::Unlearned)]);
        assert_eq!(outcome.frame, frame);
        let frame = fallback.wrap(&udp(REMOTE, FAR, [1, 2], 10));
        bed.take_in(&frame).assert(SHOT, &[(Decap, Reason::NotOurSubnet)]);
    });
}

/// No outer header says who sent it: the source must be a peer's container's.
#[test]
fn sources_of_plain_packets_are_checked() {
    with_direct(0, |bed, _| {
        for (source, reason) in [
            (UNLEARNED, Reason::PeerMismatch),
            (CONTAINER, Reason::PeerMismatch),
            ([10, 244, 99, 1], Reason::UnknownPeer),
        ] {
            let frame = arriving(&udp(source, CONTAINER, [1, 2], 10));
            bed.take_in_plain(&frame).assert(SHOT, &[(Decap, reason)]);
        }
    });
}

#[test]
fn what_is_no_containers_packet_to_a_container_passes_untouched_and_uncounted() {
    with_direct(0, |bed, _| {
        let packet = udp(REMOTE, CONTAINER, [1, 2], 40);
        let mut arp = arriving(&packet);
        arp[12..14].copy_from_slice(&[8, 6]);
        let mut other_mac = arriving(&packet);
        other_mac[5] ^= 1;
        for (name, frame) in [
            ("a host's", arriving(&udp(PEER, CONTAINER, [1, 2], 10))),
            ("the internet's", arriving(&udp([192, 0, 2, 1], CONTAINER, [1, 2], 10))),
            ("to this host", arriving(&udp(REMOTE, LOCAL, [1, 2], 10))),
            ("to another subnet", arriving(&udp(REMOTE, FAR, [1, 2], 10))),
            ("ARP", arp),
            ("another host's, seen because the interface is promiscuous", other_mac),
        ] {
            let outcome = bed.take_in_plain(&frame);
            assert_eq!((outcome.verdict, outcome.counted), (NEXT, vec![]), "{name}");
            assert_eq!(outcome.frame, frame, "{name}");
        }
    });
    // Nor is anything plain ours unless it is asked for.
    for udp_mode in [false, true] {
        with_settings(
            |settings| {
                if udp_mode {
                    bare(settings);
                }
            },
            |bed| {
                let frame = arriving(&udp(REMOTE, CONTAINER, [1, 2], 10));
                bed.take_in_plain(&frame).assert(NEXT, &[]);
            },
        );
    }
}

#[test]
fn plain_headers_that_lie_are_dropped() {
    with_direct(0, |bed, _| {
        let altered = |alter: fn(&mut [u8])| udp_with(REMOTE, CONTAINER, [1, 2], 10, alter);
        let mut sum = altered(|_| {});
        sum[10] ^= 1;
        for packet in [altered(|ip| ip[3] += 1), altered(|ip| ip[3] = 19), altered(|ip| ip[0] = 0x65), sum] {
            bed.take_in_plain(&arriving(&packet)).assert(SHOT, &[(Decap, Reason::Malformed)]);
        }
        let frame = arriving(&altered(|_| {}));
        for length in 34..frame.len() {
            bed.take_in_plain(&frame[..length]).assert(SHOT, &[(Decap, Reason::Malformed)]);
        }
    });
}

#[test]
fn plain_packets_that_the_stack_must_see_are_handed_over() {
    with_direct(0, |bed, fallback| {
        let handed_over = |bed: &mut Bed, packet: &[u8], reason: Reason| {
            let outcome = bed.take_in_plain(&arriving(packet));
            outcome.assert(REDIRECT, &[(Decap, reason)]);
            assert_eq!(outcome.frame, fallback.handed_over(arriving(packet)), "{reason:?}");
        };
        let altered = |alter: fn(&mut [u8])| udp_with(REMOTE, CONTAINER, [1, 2], 10, alter);
        handed_over(bed, &altered(|ip| ip[6] = 0x20), Reason::InnerFragment);
        handed_over(bed, &altered(|ip| ip[7] = 1), Reason::InnerFragment);
        handed_over(bed, &altered(|ip| ip[0] = 0x46), Reason::InnerOptions);
        handed_over(bed, &altered(|ip| ip[8] = 1), Reason::TtlExpired);
        handed_over(bed, &altered(|ip| ip[8] = 0), Reason::TtlExpired);
        handed_over(bed, &[altered(|_| {}), vec![0; 6]].concat(), Reason::TrailingBytes);
        for destination in [UNLEARNED, GATEWAY, [10, 244, 1, 0]] {
            handed_over(bed, &udp(REMOTE, destination, [1, 2], 10), Reason::Unlearned);
        }
        bed.note(CONTAINER, REMOTE, [4000, 5000], 17);
        handed_over(bed, &udp(REMOTE, CONTAINER, [5000, 4000], 10), Reason::StackFlow);
        bed.take_in_plain(&arriving(&udp(REMOTE, CONTAINER, [5000, 4001], 10)))
            .assert(REDIRECT, &[DELIVERED]);
        let packet = udp(REMOTE, CONTAINER, [1, 2], 500);
        ip("link set c1 mtu 527");
        handed_over(bed, &packet, Reason::EndpointGone);
        ip("link set c1 mtu 528");
        bed.take_in_plain(&arriving(&packet)).assert(REDIRECT, &[DELIVERED]);
        ip("link del c1");
        handed_over(bed, &packet, Reason::EndpointGone);
    });
    with_direct(SETTING_STACK_ONLY, |bed, fallback| {
        let frame = arriving(&udp(REMOTE, CONTAINER, [1, 2], 10));
        let outcome = bed.take_in_plain(&frame);
        outcome.assert(REDIRECT, &[(Decap, Reason::StackOnly)]);
        assert_eq!(outcome.frame, fallback.handed_over(frame));
        let frame = arriving(&udp(UNLEARNED, CONTAINER, [1, 2], 10));
        bed.take_in_plain(&frame).assert(SHOT, &[(Decap, Reason::PeerMismatch)]);
    });
}

/// What a device is still to finish loses what says so when it is redirected.
#[test]
fn xdp_leaves_plain_packets_that_it_does_not_understand_to_the_end() {
    with_direct(0, |bed, _| {
        let mut unfinished = tcp(REMOTE, CONTAINER, [1, 2], 0x10, 100);
        let length = (unfinished.len() as u16 - 20).to_be_bytes();
        let pseudo = !checksum(&[&unfinished[12..20], &[0, 6], &length].concat());
        unfinished[36..38].copy_from_slice(&pseudo.to_be_bytes());
        let error = icmp(REMOTE, CONTAINER, 3, &udp(CONTAINER, REMOTE, [1, 2], 0));
        for packet in [unfinished, error] {
            bed.is_left("overlay_xdp", &arriving(&packet), "TC's");
            bed.run("overlay_decap", bed.underlay, &arriving(&packet)).assert(REDIRECT, &[DELIVERED]);
        }
    });
}

/// At a VXLAN device; a TUN's packets are in tun.rs.
#[test]
fn the_stacks_packets_leave_plain_to_a_peer_on_the_link() {
    with_settings(
        |settings| settings.flags = SETTING_DIRECT,
        |bed| {
            behind_a_gateway();
            let send = |bed: &mut Bed, packet: &[u8]| {
                bed.run("overlay_send", bed.underlay, &ethernet(VTEP_MAC, VTEP_MAC, packet))
            };
            let packet = udp(CONTAINER, REMOTE, [4000, 5000], 10);
            let outcome = send(bed, &packet);
            outcome.assert(REDIRECT, &[(Send, Reason::Carried)]);
            assert_eq!(outcome.frame, ethernet(VTEP_MAC, VTEP_MAC, &packet));
            assert_eq!(bed.flows().len(), 1);
            // The kernel's tunnel writes the headers.
            let packet = udp(CONTAINER, FAR, [4000, 5000], 10);
            let outcome = send(bed, &packet);
            outcome.assert(NEXT, &[(Send, Reason::Carried)]);
            assert_eq!(outcome.frame, ethernet([2, 0, 0, 0, 0, 3], VTEP_MAC, &packet));
            assert_eq!(bed.flows().len(), 2);
            send(bed, &udp(REMOTE, REMOTE, [1, 2], 10)).assert(SHOT, &[(Send, Reason::SourceNotOurs)]);
            send(bed, &udp(CONTAINER, UNLEARNED, [1, 2], 10)).assert(SHOT, &[(Send, Reason::NoPeer)]);
            assert_eq!(bed.flows().len(), 2);
        },
    );
}

/// What has no tunnel key, at a VXLAN device.
#[test]
fn plain_packets_enter_the_stack_in_their_peers_names_only() {
    with_settings(
        |settings| settings.flags = SETTING_DIRECT,
        |bed| {
            let receive = |bed: &mut Bed, packet: &[u8]| {
                bed.run("overlay_receive", bed.underlay, &ethernet(VTEP_MAC, NEXT_HOP_MAC, packet))
            };
            let packet = udp_with(REMOTE, CONTAINER, [1, 2], 10, |ip| ip[7] = 1);
            let outcome = receive(bed, &packet);
            outcome.assert(NEXT, &[(Receive, Reason::Carried)]);
            assert_eq!(outcome.frame, ethernet(VTEP_MAC, NEXT_HOP_MAC, &packet));
            for (source, destination, reason) in [
                (UNLEARNED, CONTAINER, Reason::PeerMismatch),
                ([10, 244, 99, 1], CONTAINER, Reason::UnknownPeer),
                ([192, 0, 2, 1], CONTAINER, Reason::UnknownPeer),
                (REMOTE, FAR, Reason::NotOurSubnet),
                (REMOTE, LOCAL, Reason::NotOurSubnet),
            ] {
                receive(bed, &udp(source, destination, [1, 2], 10)).assert(SHOT, &[(Receive, reason)]);
            }
            let mut arp = ethernet(VTEP_MAC, NEXT_HOP_MAC, &packet);
            arp[12..14].copy_from_slice(&[8, 6]);
            bed.run("overlay_receive", bed.underlay, &arp).assert(SHOT, &[(Receive, Reason::UnknownPeer)]);
        },
    );
}
