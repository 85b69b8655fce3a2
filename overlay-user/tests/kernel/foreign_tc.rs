//! Containers at whose ports somebody else has queueing disciplines, filters or programs.
use overlay_common::{
    DELIVERY_MAGIC, ENDPOINT_FOREIGN_EGRESS, ENDPOINT_FOREIGN_INGRESS,
    Hook::{Decap, Encap, Xdp},
    Reason, SETTING_DIRECT,
};

use super::bed::*;

/// A packet from the peer's container, encapsulated.
fn from_peer() -> Vec<u8> {
    let mut frame = Tunnel::default().encapsulate(&udp(REMOTE, CONTAINER, [80, 4000], 10));
    frame[40..42].fill(0);
    frame
}

/// The mark of a delivery through the container's port.
fn mark(bed: &Bed) -> [u32; 5] {
    let [first, second] = DELIVERY_MAGIC;
    [first, second, bed.underlay, bed.device, bed.container]
}

#[test]
fn a_port_with_a_foreign_egress_gets_its_packets_marked_for_it() {
    with_bed(|bed| {
        let skb = Skb { ifindex: bed.underlay, ..Skb::default() };
        assert_eq!(bed.run_for_cb("overlay_decap", skb, &from_peer()), (REDIRECT, [0; 5]));
        bed.learn_with(CONTAINER, bed.container, ENDPOINT_FOREIGN_EGRESS);
        let outcome = bed.run("overlay_decap", bed.underlay, &from_peer());
        outcome.assert(REDIRECT, &[(Decap, Reason::Carried)]);
        let packet = udp(REMOTE, CONTAINER, [80, 4000], 10);
        assert_eq!(outcome.frame, ethernet(CONTAINER_MAC, GATEWAY_MAC, &packet));
        assert_eq!(bed.run_for_cb("overlay_decap", skb, &from_peer()), (REDIRECT, mark(bed)));
        // The answer does not pass that egress.
        bed.run("overlay_encap", bed.container, &from_container(&udp(CONTAINER, REMOTE, [4000, 80], 10)))
            .assert(REDIRECT, &[(Encap, Reason::Carried)]);
    });
}

#[test]
fn xdp_redirects_nothing_past_a_foreign_egress() {
    with_bed(|bed| {
        bed.run_xdp("overlay_xdp", &from_peer()).assert(XDP_REDIRECT, &[(Xdp, Reason::Carried)]);
        bed.learn_with(CONTAINER, bed.container, ENDPOINT_FOREIGN_EGRESS);
        bed.is_left("overlay_xdp", &from_peer(), "the egress would be passed by");
        // What XDP only strips is TC's to deliver, which goes through the egress.
        let stripped = bed.run_xdp("overlay_xdp_strip", &from_peer());
        assert_eq!((stripped.verdict, stripped.frame[..2].to_vec()), (XDP_PASS, b"ov".to_vec()));
    });
}

#[test]
fn a_marked_delivery_is_no_stack_flow_and_everything_else_is() {
    with_bed(|bed| {
        let frame = ethernet(CONTAINER_MAC, GATEWAY_MAC, &udp(REMOTE, CONTAINER, [80, 4000], 10));
        let marked =
            Skb { ifindex: bed.container, ingress_ifindex: bed.underlay, cb: mark(bed), ..Skb::default() };
        // The mark is taken off, so that no program behind sees it.
        assert_eq!(bed.run_for_cb("overlay_track", marked, &frame), (NEXT, [0; 5]));
        assert!(bed.flows().is_empty());
        let mut another = marked;
        another.cb[4] = bed.wrong_port;
        for (number, (name, skb)) in [
            ("it came from the bridge", Skb { ingress_ifindex: bed.bridge, ..marked }),
            ("the mark is for another port", another),
            ("there is no mark", Skb { cb: [0; 5], ..marked }),
        ]
        .into_iter()
        .enumerate()
        {
            let from = [80 + number as u16, 4000];
            let frame = ethernet(CONTAINER_MAC, GATEWAY_MAC, &udp(REMOTE, CONTAINER, from, 10));
            assert_eq!(bed.run_for_cb("overlay_track", skb, &frame), (NEXT, skb.cb), "{name}");
            assert_eq!(bed.flows().len(), number + 1, "{name}");
        }
    });
}

#[test]
fn a_port_with_a_foreign_ingress_is_left_to_the_stack_both_ways() {
    for direct in [0, SETTING_DIRECT] {
        with_settings(
            |settings| settings.flags |= direct,
            |bed| {
                bed.learn_with(CONTAINER, bed.container, ENDPOINT_FOREIGN_INGRESS);
                let sent = from_container(&udp(CONTAINER, REMOTE, [4000, 80], 10));
                let outcome = bed.run("overlay_encap", bed.container, &sent);
                outcome.assert(NEXT, &[(Encap, Reason::ForeignFilter)]);
                assert_eq!(outcome.frame, sent);
                // The forgery of another host's source is seen all the same.
                bed.run("overlay_encap", bed.container, &from_container(&udp(REMOTE, REMOTE, [1, 2], 10)))
                    .assert(SHOT, &[(Encap, Reason::SourceNotOurs)]);
                let received = bed.run("overlay_decap", bed.underlay, &from_peer());
                received.assert(NEXT, &[(Decap, Reason::ForeignFilter)]);
                assert_eq!(received.frame, from_peer());
                for program in ["overlay_xdp", "overlay_xdp_strip"] {
                    bed.is_left(program, &from_peer(), program);
                }
            },
        );
    }
}
