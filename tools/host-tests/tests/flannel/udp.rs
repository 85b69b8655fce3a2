//! The UDP backend: our hosts beside flannel's relay, and defects of that relay which ours must not have.
use std::{io::ErrorKind, net::Ipv4Addr, time::Duration};

use overlay_common::{Hook, Reason};
use overlay_lab::{Member, PingOptions, transfer};

use super::{
    bed::{Bed, Mode, flannels, json, peers, wait_for},
    packets::{Inbox, connect, first_packet, ping_with_ttl, send_bare},
};

/// An address in a subnet that nobody has leased.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);

/// Packets that were counted under this reason, at whichever hook.
fn counted(member: &Member, reason: Reason) -> u64 {
    let counters = member.counters().unwrap();
    Hook::ALL.iter().map(|hook| counters.packets(*hook, reason)).sum()
}

#[test]
fn i3_udp_mode_is_bare_ipv4_to_and_from_flannels_relay() {
    let ingresses: [&[&str]; 3] =
        [&[], &["--ingress", "xdp", "--endpoint-gro", "on"], &["--ingress", "xdp-strip"]];
    for (flannel, agent) in flannels().iter().flat_map(|flannel| ingresses.map(|agent| (flannel, agent))) {
        let bed = Bed::with_agents(flannel, (1, 1), Mode::Udp.config(), Mode::Udp.underlay(), agent);
        bed.learn_all();
        let (ours, theirs) = (&bed.ours[0], &bed.flannel[0]);
        let (a, b) = bed.pair();
        assert_eq!(peers(ours), [theirs.peer()]);
        transfer(a, b, 4 << 20).unwrap();
        transfer(b, a, 4 << 20).unwrap();
        let carried = ours.counters().unwrap().carried();
        assert!(carried.fast_in > 1000 && carried.dropped == 0, "{agent:?}: {carried:?}");
        let tiers = json(ours, &["status"])["tiers"].clone();
        assert_eq!(tiers[0]["in_use"], !agent.is_empty(), "{agent:?}: {tiers}");

        // The TTL is decremented once on our host, and by relay and stack on flannel's.
        let capture =
            ours.host.capture("eth0", &format!("udp port 8285 and src {}", ours.host.address())).unwrap();
        let one = PingOptions { count: 1, df: true, ..PingOptions::default() };
        let ping = b.ping(a.address(), one).unwrap();
        assert!(ping.complete() && ping.output.contains("ttl=61"), "{}", ping.output);
        // In the other direction, what arrives by the fast path keeps its TTL on our host.
        let ping = a.ping(b.address(), one).unwrap();
        assert!(ping.complete() && ping.output.contains("ttl=62"), "{}", ping.output);

        let frame = first_packet(&capture.finish().unwrap());
        let (outer, inner) = frame[14..].split_at(28);
        assert_eq!(frame.len(), 14 + 28 + 84);
        assert_eq!(outer[..4], [0x45, 0, 0, 112]);
        // DF is not set and the fragment offset is 0; the TTL is 64, the protocol UDP.
        assert_eq!(outer[6..10], [0, 0, 64, 17]);
        assert_eq!(outer[12..20], [ours.host.address().octets(), theirs.host.address().octets()].concat());
        // The source port is computed from the flow, the destination port is 8285, and there is no checksum.
        assert!(outer[20] >= 0xc0, "{outer:x?}");
        assert_eq!(outer[22..28], [0x20, 0x5d, 0, 92, 0, 0]);
        assert_eq!((&inner[..4], &inner[8..10]), (&[0x45, 0, 0, 84][..], &[63, 1][..]));
        assert_eq!(inner[12..20], [a.address().octets(), b.address().octets()].concat());

        // Nobody has leased this subnet. Both TCP and ping get an answer.
        assert_eq!(connect(a, NOBODY), ErrorKind::NetworkUnreachable);
        let ping = a.ping(NOBODY, one).unwrap();
        assert!(ping.received == 0 && ping.output.contains("Net Unreachable"), "{}", ping.output);
    }
}

#[test]
fn d7_udp_mode_tells_of_a_ttl_that_ends_cuts_nothing_off_and_checks_who_sends() {
    for flannel in flannels() {
        let bed = Bed::of(Mode::Udp, &flannel, 1, 1);
        bed.learn_all();
        let (ours, theirs) = (&bed.ours[0], &bed.flannel[0]);
        let (a, b) = bed.pair();

        // On our host, the gateway answers when the TTL ends. Where it ends in flannel's relay, there is no answer.
        let gateway = |subnet: &str| subnet.replace(".0/24", ".1");
        let base = |subnet: &str| subnet.replace("/24", "");
        let exceeded = |text: &str, who: String| {
            assert!(text.contains(&format!("From {who} icmp_seq=1 Time to live")), "{text}");
        };
        exceeded(&ping_with_ttl(a, b.address(), 1), gateway(&ours.subnet));
        exceeded(&ping_with_ttl(b, a.address(), 3), base(&ours.subnet));
        assert!(ping_with_ttl(b, a.address(), 4).contains(" 0% packet loss"));

        // The packet is longer than the MTU, as from a peer whose underlay has a larger one.
        let inbox = Inbox::of(a);
        let (flannels, to) = (theirs.host.namespace(), ours.host.address());
        for payload in [1472 - 28, 1472 - 28 + 1, 4000, 60_000] {
            send_bare(flannels, to, inbox.packet(b.address(), payload));
            assert_eq!(inbox.next(Duration::from_secs(5)), Some(payload));
        }

        // The packets come first from a host that is no peer, and then from a peer with a source of another subnet of
        // the network; each whole and in outer fragments.
        let other = Ipv4Addr::new(10, 244, 0, 3);
        let own = ours.containers[1].address();
        for (from, source, reason) in [
            (bed.lab.switch(), b.address(), Reason::UnknownPeer),
            (flannels, other, Reason::PeerMismatch),
            (flannels, own, Reason::PeerMismatch),
        ] {
            for payload in [100, 4000] {
                let before = counted(ours, reason);
                send_bare(from, to, inbox.packet(source, payload));
                let what = format!("{payload} bytes of {source}");
                wait_for(&what, || counted(ours, reason) == before + 1);
            }
        }
        // This packet comes after all of these, of which none may have been delivered.
        send_bare(flannels, to, inbox.packet(b.address(), 7));
        assert_eq!(inbox.next(Duration::from_secs(5)), Some(7));
    }
}
