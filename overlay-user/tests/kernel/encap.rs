//! Container to underlay: every branch of `overlay_encap` and `overlay_bridge`.
use overlay_common::{
    Addr4, FLOW_CLOSING, FlowKey,
    Hook::Encap,
    Reason, SETTING_OUTER_DF,
    wire::{self, DATAGRAM, ETHERNET, ETHERTYPE_IPV4, INNER, OVERHEAD, Outer, Vxlan},
};

use super::bed::*;

const CARRIED: (overlay_common::Hook, Reason) = (Encap, Reason::Carried);

fn encap(bed: &mut Bed, packet: &[u8]) -> Outcome {
    bed.run("overlay_encap", bed.container, &from_container(packet))
}

/// Verdicts on so many of the same packet, as fast as they can be had: faster than answers are allowed.
fn flood(bed: &mut Bed, packet: &[u8], count: usize) -> Vec<i32> {
    let (frame, skb) = (from_container(packet), Skb { ifindex: bed.container, ..Skb::default() });
    (0..count).map(|_| bed.run_uncounted("overlay_encap", skb, &frame).0).collect()
}

#[test]
fn a_packet_to_a_peer_leaves_in_the_headers_of_the_oracle() {
    with_each_look_up(|bed, remote| {
        let packet = udp(CONTAINER, remote, [4000, 5000], 100);
        let outcome = encap(bed, &packet);
        outcome.assert(REDIRECT, &[CARRIED]);
        let frame = &outcome.frame;
        assert_eq!(frame.len(), 14 + packet.len() + OVERHEAD);
        let port = u16::from_be_bytes([frame[34], frame[35]]);
        assert!(port >= 49152, "{port}");
        let expected = Outer {
            source: Addr4::new(LOCAL),
            destination: Addr4::new(PEER),
            tos: 0,
            identification: u16::from_be_bytes([frame[18], frame[19]]),
            dont_fragment: false,
            source_port: port,
            port: PORT.to_be_bytes(),
            payload: (OVERHEAD - DATAGRAM + packet.len()) as u32,
        };
        let ethertype = ETHERTYPE_IPV4;
        let vxlan = Vxlan { vni: VNI, destination_mac: PEER_VTEP_MAC, source_mac: VTEP_MAC, ethertype };
        // Whatever is left unwritten shows.
        let mut headers = [0xa5; OVERHEAD];
        expected.write(headers.first_chunk_mut().unwrap());
        vxlan.write(headers.last_chunk_mut().unwrap());
        // The first packet's Ethernet header is left to the kernel's neighbours, which write it on the way out.
        assert_eq!(frame[..ETHERNET], TO_BE_RESOLVED);
        assert_eq!(frame[ETHERNET..INNER], headers);
        assert_eq!(checksum(&frame[14..34]), 0, "outer header checksum");
        let mut inner = packet;
        inner[8] -= 1;
        seal(&mut inner);
        assert_eq!(frame[INNER..], inner, "inner packet: TTL one less, nothing else");
        let traffic = bed.tables.traffic(0).unwrap();
        assert_eq!((traffic.sent_packets, traffic.sent_bytes), (1, 128));
    });
}

/// Routers may fragment outer packets, since they have no DF. Fragments of two packets with one identification would be put
/// together as one packet (RFC 6864, section 4.2). Of 64 random numbers of 16 bits, more than a few are never the same.
#[test]
fn outer_packets_of_one_connection_have_identifications_of_their_own() {
    let ids = |bed: &mut Bed| {
        let packet = udp(CONTAINER, REMOTE, [4000, 5000], 10);
        let ids = (0..64).map(|_| encap(bed, &packet).frame[18..20].to_vec());
        ids.collect::<std::collections::HashSet<_>>().len()
    };
    with_bed(|bed| assert!(ids(bed) > 56, "VXLAN"));
    with_udp(0, |bed| assert!(ids(bed) > 56, "bare IPv4 in UDP"));
}

/// The outer source port of a frame.
fn source_port(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[34], frame[35]])
}

#[test]
fn every_connection_has_its_own_source_port_and_keeps_it() {
    with_bed(|bed| {
        let mut ports = std::collections::HashSet::new();
        for flow in 0..32 {
            let both = [4000 + flow, 5000];
            let key = |protocol| {
                FlowKey::new(Addr4::new(CONTAINER), Addr4::new(REMOTE), both.map(u16::to_be_bytes), protocol)
            };
            for (protocol, length) in [(17, 10), (17, 1000), (6, 10), (6, 1000), (132, 10)] {
                let packet = match protocol {
                    17 => udp(CONTAINER, REMOTE, both, length),
                    6 => tcp(CONTAINER, REMOTE, both, 0x10, length),
                    // SCTP's ports are where UDP's are. The chunk behind its header is none that begins a connection.
                    _ => {
                        let mut packet = udp(CONTAINER, REMOTE, both, length);
                        packet[9] = protocol;
                        packet[28..].fill(0);
                        seal(&mut packet);
                        packet
                    }
                };
                let outcome = encap(bed, &packet);
                outcome.assert(REDIRECT, &[CARRIED]);
                let expected = wire::source_port(key(protocol).hash(), 49152, 16384);
                assert_eq!(source_port(&outcome.frame), expected, "protocol {protocol}, {length} bytes");
                ports.insert(expected);
            }
        }
        assert!(ports.len() > 84, "{} of 96 differ", ports.len());
    });
}

/// The kernel's hash sees what is inside a container's own tunnel. The program's own would give all of that one port.
#[test]
fn what_has_no_ports_has_a_source_port_by_the_kernels_hash() {
    with_bed(|bed| {
        let in_ip = |port| {
            let inner = udp([192, 0, 2, 1], [192, 0, 2, 2], [port, 53], 10);
            let mut packet = udp(CONTAINER, REMOTE, [0, 0], inner.len() - 8);
            packet[9] = 4;
            packet[20..].copy_from_slice(&inner);
            seal(&mut packet);
            packet
        };
        let mut ports = std::collections::HashSet::new();
        for port in 4000..4032 {
            let [first, again] = [(); 2].map(|()| encap(bed, &in_ip(port)));
            first.assert(REDIRECT, &[CARRIED]);
            assert_eq!(source_port(&first.frame), source_port(&again.frame));
            ports.insert(source_port(&first.frame));
        }
        assert!(ports.len() > 24, "{} of 32 differ", ports.len());
        // An error has no ports of its own, though it belongs to a connection that has some.
        let quoting = |port| icmp(CONTAINER, REMOTE, 3, &udp(REMOTE, CONTAINER, [port, 8000], 0));
        let [one, other] = [4000, 4001].map(|port| source_port(&encap(bed, &quoting(port)).frame));
        assert_eq!(one, other);
    });
}

#[test]
fn ecn_is_copied_outwards_and_dscp_is_not() {
    with_bed(|bed| {
        for tos in [0b0000_0001, 0b0000_0010, 0b0000_0011, 0b1011_1010] {
            let packet = udp_with(CONTAINER, REMOTE, [1, 2], 10, |ip| ip[1] = tos);
            let outcome = encap(bed, &packet);
            outcome.assert(REDIRECT, &[CARRIED]);
            assert_eq!(outcome.frame[15], tos & 3);
            assert_eq!(outcome.frame[INNER + 1], tos);
        }
    });
}

#[test]
fn df_outside_follows_the_setting() {
    for (flags, byte) in [(0, 0), (SETTING_OUTER_DF, 0x40)] {
        with_settings(
            |settings| settings.flags = flags,
            |bed| {
                let outcome = encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 10));
                outcome.assert(REDIRECT, &[CARRIED]);
                assert_eq!(outcome.frame[20] & 0x40, byte);
            },
        );
    }
}

#[test]
fn what_is_not_ours_passes_untouched_and_uncounted() {
    with_bed(|bed| {
        let mut arp = from_container(&udp(CONTAINER, REMOTE, [1, 2], 40));
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        let mut v6 = arp.clone();
        v6[12..14].copy_from_slice(&[0x86, 0xdd]);
        for frame in [
            arp,
            v6,
            from_container(&udp(CONTAINER, UNLEARNED, [1, 2], 10)),
            from_container(&udp(CONTAINER, [192, 0, 2, 1], [1, 2], 10)),
            from_container(&udp(CONTAINER, [224, 0, 0, 251], [1, 2], 10)),
            from_container(&udp(CONTAINER, [255, 255, 255, 255], [1, 2], 10)),
            from_container(&udp(CONTAINER, [10, 244, 255, 255], [1, 2], 10)),
            // To another router on the bridge.
            ethernet([0x0a, 0, 0, 0, 0, 9], CONTAINER_MAC, &udp(CONTAINER, REMOTE, [1, 2], 10)),
        ] {
            let outcome = bed.run("overlay_encap", bed.container, &frame);
            outcome.assert(NEXT, &[]);
            assert_eq!(outcome.frame, frame);
        }
    });
}

#[test]
fn a_container_cannot_send_tunnel_packets_of_its_own() {
    with_bed(|bed| {
        let outside = [192, 0, 2, 1];
        let to = |source, destination, port| from_container(&udp(source, destination, [4000, port], 60));
        let mut options = udp(CONTAINER, PEER, [4000, PORT], 60);
        options[0] = 0x47;
        options.splice(20..20, [1; 8]);
        let total = (options.len() as u16).to_be_bytes();
        options[2..4].copy_from_slice(&total);
        seal(&mut options);
        let first = udp_with(CONTAINER, PEER, [4000, PORT], 60, |header| header[6] = 0x20);
        // To a peer, whence it would come masqueraded; in a peer's name to any address of this host.
        let forged = [
            to(CONTAINER, PEER, PORT),
            to(outside, PEER, PORT),
            to(PEER, LOCAL, PORT),
            to(PEER, GATEWAY, PORT),
            from_container(&options),
            from_container(&first),
        ];
        let later = udp_with(CONTAINER, PEER, [4000, PORT], 60, |header| header[7] = 8);
        let honest = [
            to(CONTAINER, PEER, 53),
            to(CONTAINER, outside, PORT),
            to(CONTAINER, LOCAL, PORT),
            to(STRANGER, LOCAL, PORT),
            from_container(&tcp(CONTAINER, PEER, [4000, PORT], 0x02, 0)),
            // Without the first fragment it is nothing.
            from_container(&later),
        ];
        for (program, ifindex) in [("overlay_encap", bed.container), ("overlay_bridge", bed.bridge)] {
            for frame in &forged {
                let outcome = bed.run(program, ifindex, frame);
                outcome.assert(SHOT, &[(Encap, Reason::ForgedTunnel)]);
            }
            for frame in &honest {
                let outcome = bed.run(program, ifindex, frame);
                outcome.assert(NEXT, &[]);
                assert_eq!(outcome.frame, *frame);
            }
        }
    });
}

#[test]
fn sources_are_checked() {
    with_bed(|bed| {
        let table = [
            (UNLEARNED, NEXT, Reason::Unlearned),
            ([10, 244, 2, 9], SHOT, Reason::SourceNotOurs),
            ([192, 0, 2, 9], NEXT, Reason::ForeignSource),
        ];
        for (source, verdict, reason) in table {
            let packet = udp(source, REMOTE, [1, 2], 10);
            let outcome = encap(bed, &packet);
            outcome.assert(verdict, &[(Encap, reason)]);
            assert_eq!(outcome.frame, from_container(&packet));
        }
        let wrong_port = bed.wrong_port;
        let outcome =
            bed.run("overlay_encap", wrong_port, &from_container(&udp(CONTAINER, REMOTE, [1, 2], 10)));
        outcome.assert(SHOT, &[(Encap, Reason::SourceAtWrongPort)]);
        // But if the interface it was learned on is gone, it was replaced while no agent ran.
        bed.learn(CONTAINER, u32::MAX >> 1);
        let outcome =
            bed.run("overlay_encap", wrong_port, &from_container(&udp(CONTAINER, REMOTE, [1, 2], 10)));
        outcome.assert(NEXT, &[(Encap, Reason::EndpointGone)]);
        // The bridge's program judges forgery of other hosts' addresses alone: the rest has been judged at a port, or is
        // the stack's.
        let bridge = bed.bridge;
        for source in [CONTAINER, UNLEARNED, [192, 0, 2, 9]] {
            let frame = from_container(&udp(source, REMOTE, [1, 2], 10));
            let outcome = bed.run("overlay_bridge", bridge, &frame);
            outcome.assert(NEXT, &[]);
            assert_eq!(outcome.frame, frame);
        }
        let outcome = bed.run("overlay_bridge", bridge, &from_container(&udp(REMOTE, REMOTE, [1, 2], 10)));
        outcome.assert(SHOT, &[(Encap, Reason::SourceNotOurs)]);
    });
}

#[test]
fn connections_of_the_stack_stay_the_stacks_in_both_directions() {
    with_bed(|bed| {
        bed.keep_to_stack(CONTAINER, REMOTE, [4000, 5000], 17);
        encap(bed, &udp(CONTAINER, REMOTE, [4000, 5000], 10)).assert(NEXT, &[(Encap, Reason::StackFlow)]);
        encap(bed, &udp(CONTAINER, REMOTE, [4001, 5000], 10)).assert(REDIRECT, &[CARRIED]);
        bed.keep_to_stack(REMOTE, CONTAINER, [7000, 8000], 6);
        encap(bed, &tcp(CONTAINER, REMOTE, [8000, 7000], 0x10, 10))
            .assert(NEXT, &[(Encap, Reason::StackFlow)]);
        // Traffic keeps the stack flow alive.
        assert!(bed.flows().iter().all(|(_, flow)| flow.seen_ns > 0 && flow.state & FLOW_CLOSING == 0));
        encap(bed, &tcp(CONTAINER, REMOTE, [8000, 7000], 0x11, 10))
            .assert(NEXT, &[(Encap, Reason::StackFlow)]);
        assert!(bed.flows().iter().any(|(_, flow)| flow.state & FLOW_CLOSING != 0), "FIN was not seen");
        // The acknowledgement of the FIN keeps the end in mind; a new connection on the same ports does not.
        encap(bed, &tcp(CONTAINER, REMOTE, [8000, 7000], 0x10, 10))
            .assert(NEXT, &[(Encap, Reason::StackFlow)]);
        assert!(bed.flows().iter().any(|(_, flow)| flow.state & FLOW_CLOSING != 0));
        encap(bed, &tcp(CONTAINER, REMOTE, [8000, 7000], 0x02, 0))
            .assert(NEXT, &[(Encap, Reason::StackFlow)]);
        assert!(bed.flows().iter().all(|(_, flow)| flow.state & FLOW_CLOSING == 0));
    });
}

#[test]
fn an_icmp_error_belongs_to_the_connection_it_quotes() {
    with_bed(|bed| {
        let quoted = udp(REMOTE, CONTAINER, [7000, 8000], 0);
        encap(bed, &icmp(CONTAINER, REMOTE, 3, &quoted)).assert(REDIRECT, &[CARRIED]);
        bed.keep_to_stack(REMOTE, CONTAINER, [7000, 8000], 17);
        encap(bed, &icmp(CONTAINER, REMOTE, 3, &quoted)).assert(NEXT, &[(Encap, Reason::StackFlow)]);
        // One echo has the identifier of the stack flow, and one has another.
        bed.keep_to_stack(CONTAINER, REMOTE, [0x1234, 0x1234], 1);
        encap(bed, &icmp(CONTAINER, REMOTE, 8, &[])).assert(NEXT, &[(Encap, Reason::StackFlow)]);
        bed.keep_to_stack(CONTAINER, [10, 244, 3, 3], [0x9999, 0x9999], 1);
        encap(bed, &icmp(CONTAINER, [10, 244, 3, 3], 8, &[])).assert(REDIRECT, &[CARRIED]);
    });
}

#[test]
fn what_the_stack_does_better_goes_to_the_stack_untouched() {
    with_bed(|bed| {
        let more_fragments = udp_with(CONTAINER, REMOTE, [1, 2], 10, |ip| ip[6] = 0x20);
        let later_fragment = udp_with(CONTAINER, REMOTE, [1, 2], 10, |ip| ip[7] = 1);
        let last_hop = udp_with(CONTAINER, REMOTE, [1, 2], 10, |ip| ip[8] = 1);
        let no_hop = udp_with(CONTAINER, REMOTE, [1, 2], 10, |ip| ip[8] = 0);
        let large = udp(CONTAINER, REMOTE, [1, 2], 1450 - 28 + 1);
        // etherparse sets DF: clear it.
        let mut splittable = large.clone();
        splittable[6] = 0;
        seal(&mut splittable);
        let mut options = udp(CONTAINER, REMOTE, [1, 2], 10);
        options[0] = 0x46;
        for (packet, reason) in [
            (more_fragments, Reason::InnerFragment),
            (later_fragment, Reason::InnerFragment),
            (last_hop, Reason::TtlExpired),
            (no_hop, Reason::TtlExpired),
            (splittable, Reason::NeedsFragmentation),
            (options, Reason::InnerOptions),
        ] {
            let outcome = encap(bed, &packet);
            outcome.assert(NEXT, &[(Encap, reason)]);
            assert_eq!(outcome.frame, from_container(&packet), "{reason:?}");
        }
        // A neighbour that is not resolved yet is resolved by the fast path itself.
        change("neigh del 10.99.0.2 dev eth0");
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 10)).assert(REDIRECT, &[CARRIED]);
        // A next hop with an IPv6 address (RFC 5549) is the kernel's to reach.
        change("route add 10.99.0.2/32 via inet6 fe80::2 dev eth0");
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 10)).assert(NEXT, &[(Encap, Reason::NoNextHop)]);
        change("route del 10.99.0.2/32");
        change("addr del 10.99.0.1/24 dev eth0");
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 10)).assert(NEXT, &[(Encap, Reason::NoNextHop)]);
    });
}

#[test]
fn policies_for_what_the_host_itself_sends_decide_on_the_path() {
    with_bed(|bed| {
        let mut reason = |rule: &str| {
            change(&format!("rule add {rule}"));
            let outcome = encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 10));
            change(&format!("rule del {rule}"));
            outcome.counted
        };
        // The tunnel's outer packets are the host's own: for the kernel they come from the loopback device.
        change("route add unreachable default table 100");
        assert_eq!(reason("iif lo to 10.99.0.2 lookup 100"), [(Encap, Reason::NoNextHop)]);
        assert_eq!(reason("iif lo to 10.99.0.2 prohibit"), [(Encap, Reason::NoNextHop)]);
        assert_eq!(reason("to 10.99.0.2 ipproto 17 dport 8472 blackhole"), [(Encap, Reason::NoNextHop)]);
        assert_eq!(reason("iif lo to 10.99.0.3 lookup 100"), [CARRIED]);
        // What comes in by the underlay device is another matter.
        assert_eq!(reason("iif eth0 to 10.99.0.2 lookup 100"), [CARRIED]);
    });
}

#[test]
fn headers_that_lie_are_dropped() {
    with_bed(|bed| {
        let too_long = udp_with(CONTAINER, REMOTE, [1, 2], 10, |ip| ip[3] += 1);
        let too_short = udp_with(CONTAINER, REMOTE, [1, 2], 10, |ip| ip[3] = 19);
        let mut version = udp(CONTAINER, REMOTE, [1, 2], 10);
        version[0] = 0x65;
        let mut words = version.clone();
        words[0] = 0x44;
        let mut sum = udp(CONTAINER, REMOTE, [1, 2], 10);
        sum[10] ^= 1;
        for packet in [too_long, too_short, version, words, sum] {
            encap(bed, &packet).assert(SHOT, &[(Encap, Reason::Malformed)]);
        }
        // Bytes behind the packet would leave beyond its length; the stack takes them off.
        let padded = [udp(CONTAINER, REMOTE, [1, 2], 10), vec![0; 6]].concat();
        encap(bed, &padded).assert(NEXT, &[(Encap, Reason::TrailingBytes)]);
    });
}

#[test]
fn the_exact_mtu_passes_and_one_more_is_answered() {
    with_bed(|bed| {
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 1450 - 28)).assert(REDIRECT, &[CARRIED]);
        let packet = udp(CONTAINER, REMOTE, [1, 2], 1450 - 28 + 1);
        let outcome = encap(bed, &packet);
        outcome.assert(REDIRECT, &[(Encap, Reason::TooBig)]);
        assert_answer(&outcome.frame, &packet, 40, 4, 1450);
        // A path with a smaller MTU. The kernel heeds a route's only when it is locked (ip_mtu_from_fib_result).
        change("route add 10.99.0.2/32 dev eth0 mtu lock 1400");
        let packet = udp(CONTAINER, REMOTE, [1, 2], 1350 - 28 + 1);
        assert_answer(&encap(bed, &packet).frame, &packet, 40, 4, 1350);
        // TCP is quoted through its checksum.
        let packet = tcp(CONTAINER, REMOTE, [1, 2], 0x10, 1350);
        assert_answer(&encap(bed, &packet).frame, &packet, 40, 4, 1350);
    });
}

#[test]
fn segments_count_not_frames() {
    with_bed(|bed| {
        let large = tcp(CONTAINER, REMOTE, [1, 2], 0x10, 2700);
        let skb = Skb { ifindex: bed.container, gso_segs: 3, gso_size: 900, ..Skb::default() };
        let outcome = bed.run_with("overlay_encap", skb, &from_container(&large));
        // A test run's GSO frame has no type, so the kernel refuses it headroom. Hosts with real ones are on another rung.
        outcome.assert(NEXT, &[(Encap, Reason::HeadroomRefused)]);
        assert_eq!(outcome.frame, from_container(&large), "refused, hence untouched");
        assert_eq!(bed.tables.counter(Encap, Reason::HeadroomRefused).unwrap().packets, 3);
        let skb = Skb { ifindex: bed.container, gso_segs: 2, gso_size: 1411, ..Skb::default() };
        let outcome = bed.run_with("overlay_encap", skb, &from_container(&large));
        outcome.assert(REDIRECT, &[(Encap, Reason::TooBig)]);
    });
}

#[test]
fn a_subnet_without_a_peer_is_answered() {
    with_bed(|bed| {
        let nowhere = [10, 244, 77, 1];
        let packet = udp(CONTAINER, nowhere, [1, 2], 10);
        let outcome = encap(bed, &packet);
        outcome.assert(REDIRECT, &[(Encap, Reason::NoPeer)]);
        assert_answer(&outcome.frame, &packet, 28, 0, 0);
        let packet = tcp(CONTAINER, nowhere, [1, 2], 0x02, 0);
        assert_answer(&encap(bed, &packet).frame, &packet, 40, 0, 0);
        let packet = icmp(CONTAINER, nowhere, 8, &[1; 16]);
        assert_answer(&encap(bed, &packet).frame, &packet, 40, 0, 0);
        // Never about an ICMP error (RFC 1122 section 3.2.2).
        let error = icmp(CONTAINER, nowhere, 3, &udp(nowhere, CONTAINER, [1, 2], 0));
        encap(bed, &error).assert(SHOT, &[(Encap, Reason::NoPeer), (Encap, Reason::AnswerWithheld)]);
    });
}

#[test]
fn answers_are_rate_limited_and_drops_are_not() {
    with_bed(|bed| {
        let packet = udp(CONTAINER, [10, 244, 77, 1], [1, 2], 10);
        let verdicts = flood(bed, &packet, 2000);
        let answers = verdicts.iter().filter(|verdict| **verdict == REDIRECT).count();
        assert!((50..1900).contains(&answers), "{answers} answers to 2000 packets");
        assert_eq!(bed.tables.counter(Encap, Reason::NoPeer).unwrap().packets, 2000);
    });
}

#[test]
fn too_big_beyond_the_rate_is_the_stacks_to_answer() {
    with_bed(|bed| {
        let packet = udp(CONTAINER, REMOTE, [1, 2], 1500);
        let verdicts = flood(bed, &packet, 2000);
        let answered = verdicts.iter().filter(|verdict| **verdict == REDIRECT).count();
        assert!((50..1900).contains(&answered), "{answered} answers to 2000 packets");
        assert!(verdicts.iter().all(|verdict| matches!(*verdict, REDIRECT | NEXT)));
        assert_eq!(
            bed.tables.counter(Encap, Reason::NeedsFragmentation).unwrap().packets,
            2000 - answered as u64
        );
    });
}

#[test]
fn the_fast_path_can_be_switched_off() {
    with_bed(|bed| {
        bed.tables.set_fast_path(FastPath::Off).unwrap();
        encap(bed, &udp(CONTAINER, REMOTE, [1, 2], 10)).assert(NEXT, &[(Encap, Reason::StackOnly)]);
        // The checks stay.
        encap(bed, &udp([10, 244, 2, 9], REMOTE, [1, 2], 10)).assert(SHOT, &[(Encap, Reason::SourceNotOurs)]);
    });
}

/// An ICMP destination unreachable to the container, from its gateway, quoting `quote` bytes of `packet`.
#[track_caller]
pub(super) fn assert_answer(frame: &[u8], packet: &[u8], quote: usize, code: u8, mtu: u16) {
    assert_eq!(frame.len(), 14 + 28 + quote);
    assert_eq!(frame[..6], CONTAINER_MAC);
    assert_eq!(frame[6..12], GATEWAY_MAC);
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else { panic!("{frame:02x?}") };
    assert_eq!(ip.header().source(), GATEWAY);
    assert_eq!(ip.header().destination(), CONTAINER);
    assert_eq!(checksum(&frame[14..34]), 0, "IPv4 checksum");
    assert_eq!(checksum(&frame[34..]), 0, "ICMP checksum");
    assert_eq!(frame[34..36], [3, code]);
    assert_eq!(frame[40..42], mtu.to_be_bytes(), "MTU");
    assert_eq!(frame[42..], packet[..quote], "quote");
}
