//! The slow tier: `overlay_send`, `overlay_receive` and `overlay_track`.
use overlay_common::{
    Addr4, FlowKey,
    Hook::{Receive, Send, Track},
    Reason, SETTING_DIRECT,
};

use super::bed::*;

fn send(bed: &mut Bed, packet: &[u8]) -> Outcome {
    bed.run("overlay_send", bed.underlay, &ethernet(VTEP_MAC, VTEP_MAC, packet))
}

#[test]
fn the_stacks_packets_get_the_peers_mac_and_are_recorded() {
    with_bed(|bed| {
        let packet = udp(CONTAINER, REMOTE, [4000, 5000], 10);
        let outcome = send(bed, &packet);
        outcome.assert(NEXT, &[(Send, Reason::Carried)]);
        assert_eq!(outcome.frame, ethernet(PEER_VTEP_MAC, VTEP_MAC, &packet));
        let key = FlowKey::new(
            Addr4::new(REMOTE),
            Addr4::new(CONTAINER),
            [5000u16.to_be_bytes(), 4000u16.to_be_bytes()],
            17,
        );
        assert_eq!(bed.flows().iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key]);
        // The host's own address as a source is the stack's to choose.
        for host in [[10, 99, 0, 1], [10, 244, 1, 0], GATEWAY] {
            send(bed, &udp(host, REMOTE, [1, 2], 10)).assert(NEXT, &[(Send, Reason::Carried)]);
        }
        assert_eq!(bed.flows().len(), 1, "the host's own connections are never recorded");
        // A later fragment has no ports, so nothing is recorded.
        let flows = bed.flows().len();
        send(bed, &udp_with(CONTAINER, REMOTE, [9, 9], 10, |ip| ip[7] = 9))
            .assert(NEXT, &[(Send, Reason::Carried)]);
        assert_eq!(bed.flows().len(), flows);
    });
}

#[test]
fn the_stack_cannot_send_in_others_names_or_to_nobody() {
    with_bed(|bed| {
        send(bed, &udp(REMOTE, REMOTE, [1, 2], 10)).assert(SHOT, &[(Send, Reason::SourceNotOurs)]);
        send(bed, &udp(CONTAINER, [10, 244, 77, 1], [1, 2], 10)).assert(SHOT, &[(Send, Reason::NoPeer)]);
        send(bed, &udp(CONTAINER, UNLEARNED, [1, 2], 10)).assert(SHOT, &[(Send, Reason::NoPeer)]);
        assert!(bed.flows().is_empty());
    });
}

#[test]
fn a_frame_without_a_tunnel_key_never_enters_the_stack() {
    with_bed(|bed| {
        let frame = ethernet(VTEP_MAC, PEER_VTEP_MAC, &udp(REMOTE, CONTAINER, [1, 2], 10));
        bed.run("overlay_receive", bed.underlay, &frame).assert(SHOT, &[(Receive, Reason::UnknownPeer)]);
    });
}

#[test]
fn deliveries_of_the_stack_are_recorded_when_a_peer_sent_them() {
    with_bed(|bed| {
        for (source, recorded) in [(REMOTE, 1), ([192, 0, 2, 1], 1), (UNLEARNED, 1), ([10, 244, 3, 3], 2)] {
            let frame = ethernet(CONTAINER_MAC, GATEWAY_MAC, &udp(source, CONTAINER, [80, 4000], 10));
            let outcome = bed.run("overlay_track", bed.container, &frame);
            outcome.assert(NEXT, &[]);
            assert_eq!(outcome.frame, frame);
            assert_eq!(bed.flows().len(), recorded, "{source:?}");
        }
        // The reply to what the stack has delivered takes the stack.
        bed.run("overlay_encap", bed.container, &from_container(&udp(CONTAINER, REMOTE, [4000, 80], 10)))
            .assert(NEXT, &[(overlay_common::Hook::Encap, Reason::StackFlow)]);
    });
}

#[test]
fn a_full_table_of_flows_is_counted_and_nothing_is_dropped() {
    with_bed(|bed| {
        let mut inserted = 0u32;
        loop {
            let key = FlowKey {
                addresses: [Addr4::new([9; 4]), Addr4::new(inserted.to_be_bytes())],
                ..FlowKey::default()
            };
            if bed.tables.stack_flows.insert(key, overlay_common::Flow::default()).is_err() {
                break;
            }
            inserted += 1;
        }
        assert_eq!(inserted, overlay_common::MAX_FLOWS);
        send(bed, &udp(CONTAINER, REMOTE, [4000, 5000], 10))
            .assert(NEXT, &[(Send, Reason::Carried), (Send, Reason::FlowTableFull)]);
        let frame = ethernet(CONTAINER_MAC, GATEWAY_MAC, &udp(REMOTE, CONTAINER, [80, 4000], 10));
        bed.run("overlay_track", bed.container, &frame).assert(NEXT, &[(Track, Reason::FlowTableFull)]);
    });
}

/// At a VXLAN device; a TUN's packets are in tun_send.rs.
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
fn unencapsulated_packets_enter_the_stack_in_their_peers_names_only() {
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
