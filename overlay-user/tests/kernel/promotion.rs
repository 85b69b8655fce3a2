//! Promotion: which connections leave the stack for the fast path, when, and what takes them back.
use overlay_common::{
    Hook::{Decap, Encap},
    Reason,
};

use super::bed::*;

const PORTS: [u16; 2] = [4000, 5000];
const BACK: [u16; 2] = [5000, 4000];
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const GRE: u8 = 47;
const SCTP: u8 = 132;

/// The container sends a packet, and the stack sends it to a peer as it is. It is sent twice, since the fast path takes the first
/// packet of a connection that is not known, unless it is told to ask about each; and where it does, the stack has got the first
/// one before the container was learned.
fn sends(bed: &mut Bed, packet: &[u8]) {
    for _ in 0..2 {
        sends_as(bed, packet, packet);
    }
}

/// The container sends a packet, and the stack sends it to a peer as `translated`.
fn sends_as(bed: &mut Bed, packet: &[u8], translated: &[u8]) {
    bed.run("overlay_encap", bed.container, &from_container(packet));
    bed.run("overlay_send", bed.underlay, &ethernet(VTEP_MAC, VTEP_MAC, translated));
}

/// The stack delivers a packet of a peer's to the container.
fn delivers(bed: &mut Bed, packet: &[u8]) {
    bed.run("overlay_track", bed.container, &ethernet(CONTAINER_MAC, GATEWAY_MAC, packet)).assert(NEXT, &[]);
}

/// A direction of the stack's, and a packet for it.
type Step<'a> = (fn(&mut Bed, &[u8]), &'a [u8]);

/// Which path the two packets of one connection take: out of the container, and into it.
#[track_caller]
fn takes(bed: &mut Bed, out: &[u8], into: &[u8], reason: Reason) {
    let verdict = if reason == Reason::Carried { REDIRECT } else { NEXT };
    bed.run("overlay_encap", bed.container, &from_container(out)).assert(verdict, &[(Encap, reason)]);
    let frame = Tunnel::default().encapsulate(into);
    // XDP leaves all other protocols to TC.
    let is_xdps = matches!(into[9], 1 | 6 | 17);
    let outcome = if is_xdps { bed.take_in(&frame) } else { bed.run("overlay_decap", bed.underlay, &frame) };
    outcome.assert(verdict, &[(Decap, reason)]);
}

/// A packet of each kind of connection, and one in the other direction.
fn connections() -> Vec<(Vec<u8>, Vec<u8>)> {
    let other = |mut packet: Vec<u8>, protocol| {
        packet[9] = protocol;
        seal(&mut packet);
        packet
    };
    let echo = |from, to, kind| {
        let mut packet = icmp(from, to, kind, &[0; 8]);
        let sum = checksum(&packet[20..]);
        packet[22..24].copy_from_slice(&sum.to_be_bytes());
        packet
    };
    vec![
        (udp(CONTAINER, REMOTE, PORTS, 10), udp(REMOTE, CONTAINER, BACK, 10)),
        (tcp(CONTAINER, REMOTE, PORTS, ACK, 10), tcp(REMOTE, CONTAINER, BACK, ACK, 10)),
        (echo(CONTAINER, REMOTE, 8), echo(REMOTE, CONTAINER, 0)),
        // SCTP, which has ports in the same place, and a protocol that has none.
        (other(udp(CONTAINER, REMOTE, PORTS, 10), SCTP), other(udp(REMOTE, CONTAINER, BACK, 10), SCTP)),
        (other(udp(CONTAINER, REMOTE, [0; 2], 10), GRE), other(udp(REMOTE, CONTAINER, [0; 2], 10), GRE)),
    ]
}

#[test]
fn what_the_stack_carried_both_ways_unchanged_takes_the_fast_path() {
    for (out, into) in connections() {
        for outwards_first in [true, false] {
            with_bed(|bed| {
                let steps: [Step<'_>; 2] = [(sends, &out), (delivers, &into)];
                let order = if outwards_first { [0, 1] } else { [1, 0] };
                steps[order[0]].0(bed, steps[order[0]].1);
                takes(bed, &out, &into, Reason::StackFlow);
                // One direction proves nothing, however often it is seen.
                steps[order[0]].0(bed, steps[order[0]].1);
                takes(bed, &out, &into, Reason::StackFlow);
                steps[order[1]].0(bed, steps[order[1]].1);
                takes(bed, &out, &into, Reason::Carried);
            });
        }
    }
}

#[test]
fn what_the_stack_translates_is_never_promoted() {
    with_bed(|bed| {
        // To the container's own port 80, which its host redirects to 8080: the two directions have different keys.
        delivers(bed, &tcp(REMOTE, CONTAINER, [4000, 8080], SYN, 0));
        let answer = |port| tcp(CONTAINER, REMOTE, [port, 4000], SYN_ACK, 0);
        sends_as(bed, &answer(8080), &answer(80));
        // To a service's address, for which a peer's container answers: the answer is delivered as the service's.
        sends_as(bed, &udp(CONTAINER, [10, 96, 0, 1], PORTS, 10), &udp(CONTAINER, REMOTE, PORTS, 10));
        delivers(bed, &udp([10, 96, 0, 1], CONTAINER, BACK, 10));
        for (out, into) in [
            (tcp(CONTAINER, REMOTE, [8080, 4000], ACK, 10), tcp(REMOTE, CONTAINER, [4000, 8080], ACK, 10)),
            (tcp(CONTAINER, REMOTE, [80, 4000], ACK, 10), tcp(REMOTE, CONTAINER, [4000, 80], ACK, 10)),
            (udp(CONTAINER, REMOTE, PORTS, 10), udp(REMOTE, CONTAINER, BACK, 10)),
        ] {
            takes(bed, &out, &into, Reason::StackFlow);
        }
    });
}

/// Two connections from one port of the container. What the stack makes of the one has the addresses of the other.
#[test]
fn two_connections_that_are_translated_crosswise_are_not_promoted() {
    const OTHER: [u8; 4] = [10, 244, 3, 3];
    let to = |address| udp(CONTAINER, address, PORTS, 10);
    let from = |address| udp(address, CONTAINER, BACK, 10);
    // The other connection is to a peer's container too, or to a service's address outside Network.
    for asked in [OTHER, [10, 96, 0, 1]] {
        with_bed(|bed| {
            for _ in 0..3 {
                sends_as(bed, &to(asked), &to(REMOTE));
                delivers(bed, &from(asked));
                sends_as(bed, &to(REMOTE), &to(OTHER));
                delivers(bed, &from(REMOTE));
            }
            takes(bed, &to(REMOTE), &from(REMOTE), Reason::StackFlow);
            assert!(bed.tables.stack_flows.promoted().unwrap().is_empty());
            // The same happens if the stack keeps a packet, and the next to leave it is one of the other connection.
            bed.run("overlay_encap", bed.container, &from_container(&to(REMOTE)));
            sends_as(bed, &to(asked), &to(REMOTE));
            takes(bed, &to(REMOTE), &from(REMOTE), Reason::StackFlow);
        });
    }
}

#[test]
fn an_icmp_error_promotes_nothing() {
    with_bed(|bed| {
        let out = udp(CONTAINER, REMOTE, PORTS, 10);
        sends(bed, &out);
        // Port unreachable, from the peer's container and from another's.
        for from in [REMOTE, [10, 244, 3, 3]] {
            delivers(bed, &icmp(from, CONTAINER, 3, &out));
        }
        takes(bed, &out, &udp(REMOTE, CONTAINER, BACK, 10), Reason::StackFlow);
    });
}

#[test]
fn what_only_the_stack_can_carry_keeps_the_connection_there() {
    // A fragment in either direction, before the promotion and after it.
    for is_promoted in [false, true] {
        for is_sent in [false, true] {
            with_bed(|bed| {
                let (out, into) = (udp(CONTAINER, REMOTE, PORTS, 10), udp(REMOTE, CONTAINER, BACK, 10));
                if is_promoted {
                    sends(bed, &out);
                    delivers(bed, &into);
                    takes(bed, &out, &into, Reason::Carried);
                }
                let first = |ip: &mut [u8]| ip[6] = 0x20;
                if is_sent {
                    sends(bed, &udp_with(CONTAINER, REMOTE, PORTS, 16, first));
                } else {
                    delivers(bed, &udp_with(REMOTE, CONTAINER, BACK, 16, first));
                }
                sends(bed, &out);
                delivers(bed, &into);
                takes(bed, &out, &into, Reason::StackFlow);
            });
        }
    }
    // A datagram that this host has to fragment.
    with_bed(|bed| {
        let (out, into) = (udp(CONTAINER, REMOTE, PORTS, 10), udp(REMOTE, CONTAINER, BACK, 10));
        sends(bed, &out);
        delivers(bed, &into);
        let large = without_df(udp(CONTAINER, REMOTE, PORTS, 1450 - 28 + 1));
        bed.run("overlay_encap", bed.container, &from_container(&large))
            .assert(NEXT, &[(Encap, Reason::NeedsFragmentation)]);
        takes(bed, &out, &into, Reason::StackFlow);
    });
}

#[test]
fn the_next_connection_on_the_same_ports_begins_on_the_stack() {
    with_bed(|bed| {
        let (out, into) = (tcp(CONTAINER, REMOTE, PORTS, ACK, 1), tcp(REMOTE, CONTAINER, BACK, ACK, 1));
        let promote = |bed: &mut Bed| {
            sends(bed, &tcp(CONTAINER, REMOTE, PORTS, SYN, 0));
            delivers(bed, &tcp(REMOTE, CONTAINER, BACK, SYN_ACK, 0));
        };
        promote(bed);
        takes(bed, &out, &into, Reason::Carried);
        // A repeated answer is no new connection.
        bed.take_in(&Tunnel::default().encapsulate(&tcp(REMOTE, CONTAINER, BACK, SYN_ACK, 0)))
            .assert(REDIRECT, &[(Decap, Reason::Carried)]);
        takes(bed, &out, &into, Reason::Carried);
        // A new one from here, and one from there.
        bed.run("overlay_encap", bed.container, &from_container(&tcp(CONTAINER, REMOTE, PORTS, SYN, 0)))
            .assert(NEXT, &[(Encap, Reason::StackFlow)]);
        takes(bed, &out, &into, Reason::StackFlow);
        promote(bed);
        takes(bed, &out, &into, Reason::Carried);
        bed.take_in(&Tunnel::default().encapsulate(&tcp(REMOTE, CONTAINER, BACK, SYN, 0)))
            .assert(NEXT, &[(Decap, Reason::StackFlow)]);
        takes(bed, &out, &into, Reason::StackFlow);
    });
}

#[test]
fn a_new_epoch_takes_every_promotion_back() {
    with_bed(|bed| {
        let (out, into) = (udp(CONTAINER, REMOTE, PORTS, 10), udp(REMOTE, CONTAINER, BACK, 10));
        bed.tables.stack_flows.begin_epoch(0xabcd_0001).unwrap();
        sends(bed, &out);
        delivers(bed, &into);
        takes(bed, &out, &into, Reason::Carried);
        assert_eq!(bed.tables.stack_flows.promoted().unwrap().len(), 1);

        bed.tables.stack_flows.begin_epoch(0xabcd_0003).unwrap();
        takes(bed, &out, &into, Reason::StackFlow);
        assert!(bed.tables.stack_flows.promoted().unwrap().is_empty());
        // Half of what was seen under the earlier rules does not count for half of what is wanted now.
        sends(bed, &out);
        takes(bed, &out, &into, Reason::StackFlow);
        delivers(bed, &into);
        takes(bed, &out, &into, Reason::Carried);
        // The earlier rules are in force again, under which this one was not seen last.
        bed.tables.stack_flows.begin_epoch(0xabcd_0001).unwrap();
        takes(bed, &out, &into, Reason::StackFlow);
    });
}

#[test]
fn under_established_the_stack_decides_on_every_connection() {
    for (out, into) in connections() {
        with_bed(|bed| {
            bed.tables.set_fast_path(FastPath::Established).unwrap();
            takes(bed, &out, &into, Reason::NotEstablished);
            // Nothing tells the connections of such a protocol from each other, so that none is promoted.
            let is_told_apart = out[9] != GRE;
            let (once, both) = if is_told_apart {
                (Reason::StackFlow, Reason::Carried)
            } else {
                (Reason::NotEstablished, Reason::NotEstablished)
            };
            sends(bed, &out);
            takes(bed, &out, &into, once);
            delivers(bed, &into);
            takes(bed, &out, &into, both);
        });
    }
    // What the fast path drops, it drops before anybody asks about connections.
    with_bed(|bed| {
        bed.tables.set_fast_path(FastPath::Established).unwrap();
        let spoofed = from_container(&udp(REMOTE, REMOTE, PORTS, 10));
        bed.run("overlay_encap", bed.container, &spoofed).assert(SHOT, &[(Encap, Reason::SourceNotOurs)]);
    });
}

/// That the stack accepted a connection says nothing about what looks like a part of it, and is none for connection tracking.
#[test]
fn under_established_what_only_looks_accepted_is_the_stacks() {
    let promoted = |bed: &mut Bed, out: &[u8], into: &[u8]| {
        bed.tables.set_fast_path(FastPath::Established).unwrap();
        sends(bed, out);
        delivers(bed, into);
        takes(bed, out, into, Reason::Carried);
    };
    let taken_in = |bed: &mut Bed, packet: &[u8], counted: Reason| {
        let frame = Tunnel::default().encapsulate(packet);
        bed.run("overlay_decap", bed.underlay, &frame).assert(NEXT, &[(Decap, counted)]);
    };
    let [udp_both, _, echo_both, sctp_both, _] = <[_; 5]>::try_from(connections()).unwrap();
    with_bed(|bed| {
        let (out, into) = &udp_both;
        promoted(bed, out, into);
        // An error about it, which a rule may refuse.
        taken_in(bed, &icmp(REMOTE, CONTAINER, 3, out), Reason::NotEstablished);
        takes(bed, out, into, Reason::Carried);
    });
    with_bed(|bed| {
        let (out, into) = &echo_both;
        promoted(bed, out, into);
        // A request of the other side's, with the same identifier.
        let mut request = into.clone();
        request[20] = 8;
        request[22..24].fill(0);
        let sum = checksum(&request[20..]);
        request[22..24].copy_from_slice(&sum.to_be_bytes());
        taken_in(bed, &request, Reason::StackFlow);
        takes(bed, out, into, Reason::Carried);
    });
    with_bed(|bed| {
        let (out, into) = &sctp_both;
        promoted(bed, out, into);
        // The other side begins an association with the same ports.
        let mut init = into.clone();
        init[20 + 12] = 1;
        taken_in(bed, &init, Reason::StackFlow);
        takes(bed, out, into, Reason::StackFlow);
    });
}
