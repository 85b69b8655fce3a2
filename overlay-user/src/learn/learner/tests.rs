//! Tests of what follows from sequences of kernel events.
mod moves;
mod same_host;

use std::net::Ipv4Addr;

use super::*;
use crate::host::netlink::{Address, FdbEntry, Neighbour, TABLE_MAIN};

const BRIDGE: u32 = 5;
const A: Mac = mac(0xa);
const B: Mac = mac(0xb);
const C1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2));
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1));

const fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn link(index: u32, kind: LinkKind, master: Option<u32>) -> Link {
    // The other end of a container's veth is in the container's namespace.
    let peer_netns = (kind == LinkKind::Veth).then_some(0);
    let mac = Some(mac(0x80 | index as u8));
    Link { master, mac, peer_netns, ..Link::example(index, &format!("if{index}"), kind) }
}

fn bridge() -> Link {
    link(BRIDGE, LinkKind::Bridge, None)
}

fn port(index: u32) -> Event {
    Event::Link(link(index, LinkKind::Veth, Some(BRIDGE)))
}

fn address(link: u32, address: IpAddr) -> Address {
    Address { link, address, prefix_len: 24 }
}

fn neighbour(link: u32, address: IpAddr, mac: Mac) -> Event {
    Event::Neighbour(Neighbour { link, address, mac })
}

fn seen(mac: Mac, port: u32) -> Event {
    Event::Fdb(FdbEntry { bridge: BRIDGE, mac, port })
}

fn on(port: u32, mac: Mac) -> Endpoint {
    Endpoint {
        port,
        mac,
        gateway_mac: self::mac(0x80 | BRIDGE as u8),
        pinned: false,
        foreign_tc: ForeignTc::default(),
        bridge: None,
    }
}

fn config() -> LearnConfig {
    LearnConfig { subnet: "10.244.1.0/24".parse().unwrap(), bridges: vec![] }
}

/// A learner that knows a bridge without ports.
fn learner() -> Learner {
    let mut learner = Learner::new(config(), &Installed::default());
    learner.resync(HostSnapshot {
        links: vec![bridge()],
        addresses: vec![address(BRIDGE, GATEWAY)],
        ..HostSnapshot::default()
    });
    assert_eq!(learner.take_changes(), [LocalChange::Attach(BRIDGE, PortKind::Bridge)]);
    learner
}

/// A learner with C1 behind port 7, with MAC address A.
fn learned() -> Learner {
    let mut learner = learner();
    feed(&mut learner, [port(7), seen(A, 7), neighbour(BRIDGE, C1, A)]);
    assert_eq!(learner.endpoints[&C1], on(7, A));
    learner
}

fn feed(learner: &mut Learner, events: impl IntoIterator<Item = Event>) -> Vec<LocalChange> {
    for event in events {
        learner.event(event);
    }
    learner.take_changes()
}

/// The one probe that is asked for.
fn probe(learner: &mut Learner) -> Probe {
    let probes = learner.take_probes();
    assert_eq!(probes.len(), 1, "{probes:?}");
    probes[0]
}

#[test]
fn a_container_is_learned_in_whichever_order_the_kernel_tells() {
    let orders: [[Event; 3]; 3] = [
        [port(7), seen(A, 7), neighbour(BRIDGE, C1, A)],
        [port(7), neighbour(BRIDGE, C1, A), seen(A, 7)],
        [neighbour(BRIDGE, C1, A), seen(A, 7), port(7)],
    ];
    for order in orders {
        assert_eq!(
            feed(&mut learner(), order),
            [LocalChange::Attach(7, PortKind::Veth), LocalChange::PutEndpoint(C1, on(7, A))]
        );
    }
}

#[test]
fn a_bridge_that_gets_its_address_later_brings_its_containers() {
    let mut learner = Learner::new(config(), &Installed::default());
    let early = [Event::Link(bridge()), port(7), seen(A, 7), neighbour(BRIDGE, C1, A)];
    assert_eq!(feed(&mut learner, early), []);
    assert_eq!(
        feed(&mut learner, [Event::Address(address(BRIDGE, GATEWAY))]),
        [
            LocalChange::Attach(BRIDGE, PortKind::Bridge),
            LocalChange::Attach(7, PortKind::Veth),
            LocalChange::PutEndpoint(C1, on(7, A)),
        ]
    );
}

#[test]
fn addresses_that_no_container_can_have_are_not_learned() {
    for octets in [[10, 244, 1, 0], [10, 244, 1, 1], [10, 244, 1, 255], [10, 244, 2, 2], [192, 168, 0, 1]] {
        let mut learner = learner();
        let events = [port(7), seen(A, 7), neighbour(BRIDGE, octets.into(), A)];
        assert_eq!(feed(&mut learner, events), [LocalChange::Attach(7, PortKind::Veth)], "{octets:?}");
    }
}

#[test]
fn only_veths_of_our_bridges_are_attached() {
    let mut learner = learner();
    let tap = Event::Link(link(8, LinkKind::Other("tun".into()), Some(BRIDGE)));
    let foreign = Event::Link(link(9, LinkKind::Veth, Some(99)));
    let device = Event::Link(link(10, LinkKind::Vxlan(crate::host::netlink::Vxlan::default()), None));
    let base = Event::Address(address(10, IpAddr::from([10, 244, 1, 0])));
    let events = [tap, foreign, device, base, seen(A, 8), neighbour(BRIDGE, C1, A)];
    assert_eq!(feed(&mut learner, events), []);
}

#[test]
fn ageing_removes_nothing() {
    let mut learner = learned();
    let entry = FdbEntry { bridge: BRIDGE, mac: A, port: 7 };
    let events = [
        Event::NeighbourGone(BRIDGE, C1),
        Event::FdbGone(entry),
        Event::AddressGone(address(BRIDGE, GATEWAY)),
    ];
    assert_eq!(feed(&mut learner, events), []);
    assert_eq!(learner.endpoints[&C1], on(7, A));
}

#[test]
fn the_end_of_a_veth_removes_its_endpoints_before_the_port() {
    let gone = [LocalChange::RemoveEndpoint(C1), LocalChange::Detach(7)];
    assert_eq!(feed(&mut learned(), [Event::LinkGone(7)]), gone);
    // The veth was taken out of the bridge, but it still exists.
    assert_eq!(feed(&mut learned(), [Event::Link(link(7, LinkKind::Veth, None))]), gone);
}

#[test]
fn a_container_replaced_behind_a_new_veth_is_learned_there() {
    let events = [Event::LinkGone(7), port(9), seen(B, 9), neighbour(BRIDGE, C1, B)];
    assert_eq!(
        feed(&mut learned(), events),
        [
            LocalChange::RemoveEndpoint(C1),
            LocalChange::Detach(7),
            LocalChange::Attach(9, PortKind::Veth),
            LocalChange::PutEndpoint(C1, on(9, B)),
        ]
    );
}

#[test]
fn a_new_mac_behind_the_same_veth_needs_no_probe() {
    let mut learner = learned();
    let changes = feed(&mut learner, [seen(B, 7), neighbour(BRIDGE, C1, B)]);
    assert_eq!(changes, [LocalChange::PutEndpoint(C1, on(7, B))]);
    assert_eq!(learner.take_probes(), []);
}

#[test]
fn a_gratuitous_arp_steals_nothing_from_a_holder_that_answers() {
    let mut learner = learned();
    let theft = [port(8), seen(B, 8), neighbour(BRIDGE, C1, B)];
    assert_eq!(feed(&mut learner, theft), [LocalChange::Attach(8, PortKind::Veth)]);
    let asked = probe(&mut learner);
    assert_eq!((asked.port, asked.address, asked.mac), (7, C1, A));
    // The claim is repeated during the probe, but the holder is asked only once.
    feed(&mut learner, [neighbour(BRIDGE, C1, B)]);
    assert_eq!(learner.take_probes(), []);

    learner.probed(asked, true);
    assert_eq!(learner.take_changes(), []);
    let view = learner.view();
    assert_eq!((view.conflicts_total, view.conflicts.len()), (1, 1));
    assert_eq!((view.conflicts[0].holder.as_str(), view.conflicts[0].claimant.as_str()), ("if7", "if8"));

    // The claim is refused until the next round. If the next round ends in the same way, it is not counted again.
    feed(&mut learner, [neighbour(BRIDGE, C1, B)]);
    assert_eq!(learner.take_probes(), []);
    learner.retry();
    let asked = probe(&mut learner);
    learner.probed(asked, true);
    assert_eq!(learner.view().conflicts_total, 1);

    // The holder is seen again, so nobody else claims the address any more.
    feed(&mut learner, [neighbour(BRIDGE, C1, A)]);
    assert_eq!(learner.view().conflicts, []);
    assert_eq!(learner.endpoints[&C1], on(7, A));
}

#[test]
fn the_holders_mac_seen_on_another_port_is_a_claim_too() {
    let mut learner = learned();
    feed(&mut learner, [port(8), seen(A, 8)]);
    let asked = probe(&mut learner);
    learner.probed(asked, true);
    assert_eq!(learner.endpoints[&C1], on(7, A));
}

#[test]
fn a_silent_holder_loses_its_address() {
    let mut learner = learned();
    feed(&mut learner, [port(8), seen(B, 8), neighbour(BRIDGE, C1, B)]);
    let asked = probe(&mut learner);
    learner.probed(asked, false);
    assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C1, on(8, B))]);
    assert_eq!(learner.view().moves_total, 1);
    // A late answer to an old question changes nothing.
    learner.probed(asked, false);
    assert_eq!(learner.take_changes(), []);
}

#[test]
fn a_holder_that_is_gone_needs_no_probe() {
    let mut learner = learned();
    feed(&mut learner, [port(8), seen(B, 8), neighbour(BRIDGE, C1, B)]);
    let asked = probe(&mut learner);
    assert_eq!(
        feed(&mut learner, [Event::LinkGone(7)]),
        [LocalChange::RemoveEndpoint(C1), LocalChange::Detach(7), LocalChange::PutEndpoint(C1, on(8, B)),]
    );
    learner.probed(asked, false);
    assert_eq!(learner.take_changes(), []);
}

#[test]
fn a_holder_that_is_down_loses_its_address_unasked() {
    let mut learner = learned();
    // A port that is down proves nothing by itself, because the container may come up again.
    let down = Link { carrier: false, ..link(7, LinkKind::Veth, Some(BRIDGE)) };
    assert_eq!(feed(&mut learner, [Event::Link(down.clone())]), []);
    assert_eq!(learner.endpoints[&C1], on(7, A));
    let changes = feed(&mut learner, [port(8), seen(B, 8), neighbour(BRIDGE, C1, B)]);
    assert_eq!(changes, [LocalChange::Attach(8, PortKind::Veth), LocalChange::PutEndpoint(C1, on(8, B))]);
    assert_eq!((learner.take_probes(), learner.view().moves_total), (vec![], 1));

    // The claim is refused at first, and then the holder goes down.
    let mut learner = learned();
    feed(&mut learner, [port(8), seen(B, 8), neighbour(BRIDGE, C1, B)]);
    let asked = probe(&mut learner);
    learner.probed(asked, true);
    assert_eq!(feed(&mut learner, [Event::Link(down.clone())]), [LocalChange::PutEndpoint(C1, on(8, B))]);
    // A pinned endpoint stays.
    let mut learner = learned();
    learner.attach(C1, "if7", Some(A)).unwrap();
    learner.take_changes();
    let claim = [Event::Link(down), port(8), seen(B, 8), neighbour(BRIDGE, C1, B)];
    assert_eq!(feed(&mut learner, claim), [LocalChange::Attach(8, PortKind::Veth)]);
}

/// A point-to-point veth with an address of the subnet, with `address` seen behind it.
fn seen_alone(index: u32, address: IpAddr, mac: Mac) -> [Event; 3] {
    // A host route by the veth makes its containers be learned, whatever address is seen there.
    let destination = IpAddr::from([10, 244, 1, 200 + index as u8]).into();
    let route =
        Route { destination, link: Some(index), gateway: None, source: None, metric: 0, table: TABLE_MAIN };
    [Event::Link(link(index, LinkKind::Veth, None)), Event::Route(route), neighbour(index, address, mac)]
}

/// Each claimant is on a segment of its own, since the kernel keeps one neighbour entry for each address and segment.
#[test]
fn an_address_seen_on_two_segments_is_asked_about_once() {
    // The bridge is interface 5. One rival has a lower index, and one has a higher index.
    for rival in [3, 9] {
        let mut learner = learned();
        feed(&mut learner, seen_alone(rival, C1, B));
        let asked = probe(&mut learner);
        assert_eq!((asked.port, asked.mac), (7, A));
        // Others that are seen in the meantime change nothing.
        feed(&mut learner, [neighbour(BRIDGE, C1, A), neighbour(rival, C1, B)]);
        learner.probed(asked, true);
        assert_eq!((learner.take_probes(), learner.take_changes()), (vec![], vec![]), "{rival}");
        for _ in 0..3 {
            learner.retry();
            let asked = probe(&mut learner);
            learner.probed(asked, true);
            assert_eq!(learner.take_probes(), [], "{rival}");
        }
        let view = learner.view();
        assert_eq!((view.conflicts_total, view.conflicts.len()), (1, 1), "{rival}");
    }
}

#[test]
fn a_silent_holder_on_another_segment_loses_its_address_for_good() {
    for rival in [3, 9] {
        let mut learner = learned();
        feed(&mut learner, seen_alone(rival, C1, B));
        let asked = probe(&mut learner);
        learner.probed(asked, false);
        let moved = Endpoint { gateway_mac: mac(0x80 | rival as u8), ..on(rival, B) };
        assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C1, moved)], "{rival}");
        // The kernel still has the neighbour entry of the former holder, but it does not count as a claim.
        learner.retry();
        assert_eq!((learner.take_probes(), learner.view().moves_total), (vec![], 1), "{rival}");
        // It counts as a claim when the former holder is seen again.
        feed(&mut learner, [Event::NeighbourGone(BRIDGE, C1), neighbour(BRIDGE, C1, A)]);
        assert_eq!(probe(&mut learner).port, rival);
    }
}

#[test]
fn an_address_seen_on_three_segments_is_asked_about_once_too() {
    for answers in [true, false] {
        let mut learner = learned();
        feed(&mut learner, seen_alone(9, C1, B).into_iter().chain(seen_alone(3, C1, mac(0xc))));
        let asked = probe(&mut learner);
        learner.probed(asked, answers);
        if answers {
            assert_eq!((learner.take_probes(), learner.view().conflicts_total), (vec![], 1));
            learner.retry();
            let asked = probe(&mut learner);
            learner.probed(asked, true);
            assert_eq!((learner.take_probes(), learner.view().conflicts_total), (vec![], 1));
            assert_eq!(learner.endpoints[&C1], on(7, A));
        } else {
            // The first claimant has the address, and is asked when the third one claims it.
            assert_eq!(learner.endpoints[&C1].port, 9);
            let asked = probe(&mut learner);
            assert_eq!(asked.port, 9);
            learner.probed(asked, true);
            assert_eq!((learner.take_probes(), learner.endpoints[&C1].port), (vec![], 9));
        }
    }
}

#[test]
fn a_holder_replaced_while_it_was_asked_is_asked_again() {
    let mut learner = learned();
    feed(&mut learner, seen_alone(9, C1, B));
    let old = probe(&mut learner);
    let replaced = [seen(mac(0xc), 7), neighbour(BRIDGE, C1, mac(0xc))];
    assert_eq!(feed(&mut learner, replaced), [LocalChange::PutEndpoint(C1, on(7, mac(0xc)))]);
    assert_eq!(learner.take_probes(), []);
    learner.probed(old, false);
    let asked = probe(&mut learner);
    assert_eq!((asked.port, asked.mac), (7, mac(0xc)));
    learner.probed(asked, true);
    assert_eq!(learner.endpoints[&C1], on(7, mac(0xc)));
}

#[test]
fn two_containers_with_one_mac_make_no_storm_of_probes() {
    let c2 = IpAddr::from([10, 244, 1, 3]);
    let mut learner = learned();
    feed(&mut learner, [port(8), seen(A, 8), neighbour(BRIDGE, c2, A)]);
    assert_eq!((learner.endpoints[&C1].port, learner.endpoints[&c2].port), (7, 8));
    let mut asked = Vec::new();
    // Each answer passes the bridge before it is heard, so the bridge then has the MAC address on the other port.
    for _ in 0..20 {
        for probe in learner.take_probes() {
            learner.event(seen(A, probe.port));
            learner.probed(probe, true);
            asked.push(probe.address);
        }
        learner.event(seen(A, 7));
        learner.event(seen(A, 8));
    }
    assert_eq!(asked, [C1, c2]);
    assert_eq!(learner.view().conflicts_total, 2);
    assert_eq!((learner.endpoints[&C1].port, learner.endpoints[&c2].port), (7, 8));
    learner.retry();
    assert!(learner.take_probes().len() <= 2);
}

#[test]
fn claims_with_ever_other_macs_are_asked_about_once() {
    let mut learner = learned();
    feed(&mut learner, [port(8), seen(B, 8), neighbour(BRIDGE, C1, B)]);
    let asked = probe(&mut learner);
    learner.probed(asked, true);
    for last in 0x10..0x20 {
        feed(&mut learner, [seen(mac(last), 8), neighbour(BRIDGE, C1, mac(last)), neighbour(BRIDGE, C1, A)]);
    }
    feed(&mut learner, [neighbour(BRIDGE, C1, B)]);
    let view = learner.view();
    assert_eq!((learner.take_probes(), view.conflicts_total, view.conflicts.len()), (vec![], 1, 1));
    // A container that really moves is found after the next round.
    learner.retry();
    let asked = probe(&mut learner);
    learner.probed(asked, false);
    assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C1, on(8, B))]);
}

#[test]
fn an_address_that_moved_behind_a_tap_goes_to_the_stack() {
    let mut learner = learned();
    let tap = Event::Link(link(8, LinkKind::Other("tun".into()), Some(BRIDGE)));
    feed(&mut learner, [tap, seen(B, 8), neighbour(BRIDGE, C1, B)]);
    let asked = probe(&mut learner);
    learner.probed(asked, false);
    assert_eq!(learner.take_changes(), [LocalChange::RemoveEndpoint(C1)]);
}

#[test]
fn a_point_to_point_veth_is_known_by_its_route() {
    let mut learner = Learner::new(config(), &Installed::default());
    let route = Route {
        destination: "10.244.1.2/32".parse().unwrap(),
        link: Some(7),
        gateway: None,
        source: None,
        metric: 0,
        table: 254,
    };
    let veth = Event::Link(link(7, LinkKind::Veth, None));
    let changes = feed(&mut learner, [veth, Event::Route(route), neighbour(7, C1, A)]);
    let endpoint = Endpoint { gateway_mac: mac(0x87), ..on(7, A) };
    assert_eq!(changes, [LocalChange::Attach(7, PortKind::Veth), LocalChange::PutEndpoint(C1, endpoint)]);
    // The veth is not detached when its route goes for a moment.
    assert_eq!(feed(&mut learner, [Event::RouteGone(route), Event::Route(route)]), []);
}

#[test]
fn a_port_that_gave_its_bridge_its_mac_is_no_point_to_point_veth_afterwards() {
    let veth = |master| Event::Link(Link { mac: Some(mac(0x85)), ..link(7, LinkKind::Veth, master) });
    let mut taken_out = learner();
    feed(&mut taken_out, [veth(Some(BRIDGE)), seen(A, 7), neighbour(BRIDGE, C1, A)]);
    let gone = [LocalChange::RemoveEndpoint(C1), LocalChange::Detach(7)];
    assert_eq!(feed(&mut taken_out, [veth(None)]), gone);

    // The veth was a port already when the agent started, and no event told so.
    let installed = Installed {
        endpoints: [(C1, on(7, A))].into(),
        ports: [(BRIDGE, PortKind::Bridge), (7, PortKind::Veth)].into(),
        ..Installed::default()
    };
    let mut learner = Learner::new(config(), &installed);
    let Event::Link(port) = veth(Some(BRIDGE)) else { unreachable!("it is a link") };
    learner.resync(HostSnapshot {
        links: vec![bridge(), port],
        addresses: vec![address(BRIDGE, GATEWAY)],
        ..HostSnapshot::default()
    });
    learner.take_changes();
    assert_eq!(feed(&mut learner, [veth(None)]), gone);
}

#[test]
fn an_address_that_becomes_the_hosts_own_is_no_container_any_more() {
    let own = || Event::Address(address(BRIDGE, C1));
    assert_eq!(feed(&mut learned(), [own()]), [LocalChange::RemoveEndpoint(C1)]);
    // An operator's command is not undone.
    let mut learner = learned();
    learner.attach(C1, "if7", Some(A)).unwrap();
    learner.take_changes();
    assert_eq!(feed(&mut learner, [own()]), []);
}

#[test]
fn what_changes_nothing_is_not_thought_about() {
    let mut learner = learned();
    assert!(learner.take_view().is_some());
    let entry = FdbEntry { bridge: BRIDGE, mac: A, port: 9 };
    let repeated = [
        Event::Link(bridge()),
        port(7),
        Event::Address(address(BRIDGE, GATEWAY)),
        seen(A, 7),
        neighbour(BRIDGE, C1, A),
        // These are of other networks, or are gone already.
        Event::Address(address(9, IpAddr::from([192, 168, 0, 1]))),
        Event::AddressGone(address(9, C1)),
        neighbour(9, IpAddr::from([192, 168, 0, 2]), B),
        Event::NeighbourGone(9, C1),
        Event::FdbGone(entry),
    ];
    for event in repeated {
        learner.event(event.clone());
        assert_eq!(learner.take_view(), None, "{event:?}");
    }
    for event in [port(8), seen(B, 8), Event::LinkGone(8)] {
        learner.event(event.clone());
        assert!(learner.take_view().is_some(), "{event:?}");
    }
    learner.retry();
    assert!(learner.take_view().is_some());
}

#[test]
fn a_bridge_with_a_new_mac_is_a_new_gateway() {
    let mut learner = learned();
    let changed = Link { mac: Some(mac(0x77)), ..bridge() };
    let endpoint = Endpoint { gateway_mac: mac(0x77), ..on(7, A) };
    assert_eq!(feed(&mut learner, [Event::Link(changed)]), [LocalChange::PutEndpoint(C1, endpoint)]);
}

#[test]
fn a_pinned_endpoint_is_neither_moved_nor_altered_by_learning() {
    let mut learner = learner();
    feed(&mut learner, [port(7), port(8)]);
    learner.attach(C1, "if7", Some(A)).unwrap();
    let pinned = Endpoint { pinned: true, ..on(7, A) };
    assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C1, pinned)]);
    let claims = [seen(B, 8), neighbour(BRIDGE, C1, B), seen(B, 7)];
    assert_eq!(feed(&mut learner, claims), []);
    assert_eq!(learner.take_probes(), []);
    assert_eq!(learner.view().conflicts_total, 1);
    // Only a detach or the end of the link removes it.
    learner.detach(C1).unwrap();
    assert_eq!(learner.take_changes(), [LocalChange::RemoveEndpoint(C1)]);
    assert_eq!(learner.detach(C1), Err(ClaimError::Unknown(C1)));
}

#[test]
fn an_address_is_pinned_over_whoever_was_first() {
    // Nobody has the address, or its container is being restarted. The first claimant gets it.
    let mut learner = learned();
    feed(&mut learner, [port(8), seen(B, 8), neighbour(BRIDGE, C1, B)]);
    let asked = probe(&mut learner);
    learner.probed(asked, true);
    assert_eq!(learner.view().conflicts[0].claimant, "if8");
    learner.attach(C1, "if8", None).unwrap();
    assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C1, Endpoint { pinned: true, ..on(8, B) })]);
    // Now the claims of the former holder are the conflict.
    feed(&mut learner, [neighbour(BRIDGE, C1, A)]);
    let view = learner.view();
    assert_eq!((view.conflicts[0].claimant.as_str(), learner.take_probes()), ("if7", vec![]));
}

#[test]
fn a_veth_outside_our_bridges_is_attached_for_its_pinned_endpoint() {
    let mut learner = learner();
    feed(&mut learner, [Event::Link(link(9, LinkKind::Veth, Some(99)))]);
    assert_eq!(learner.attach(C1, "if9", None), Err(ClaimError::NoMac(C1)));
    learner.attach(C1, "if9", Some(A)).unwrap();
    let changes = learner.take_changes();
    assert_eq!(changes[0], LocalChange::Attach(9, PortKind::Veth));
    learner.detach(C1).unwrap();
    assert_eq!(learner.take_changes(), [LocalChange::RemoveEndpoint(C1), LocalChange::Detach(9)]);
}

#[test]
fn claims_by_name_are_refused_with_the_reason() {
    let mut learner = learned();
    let outside = IpAddr::from([10, 244, 2, 9]);
    assert!(matches!(learner.attach(C1, "nope", Some(A)), Err(ClaimError::NoInterface(_))));
    assert!(matches!(learner.attach(C1, "if5", Some(A)), Err(ClaimError::NotVeth(_))));
    assert!(matches!(learner.attach(outside, "if7", Some(A)), Err(ClaimError::NotOurs { .. })));
    assert!(matches!(learner.attach(GATEWAY, "if7", Some(A)), Err(ClaimError::NotOurs { .. })));
}

#[test]
fn what_is_installed_survives_a_restart_unless_its_port_went() {
    let (gone, pinned) = (IpAddr::from([10, 244, 1, 3]), IpAddr::from([10, 244, 1, 4]));
    let reused = IpAddr::from([10, 244, 1, 5]);
    let pinned_endpoint = Endpoint { pinned: true, gateway_mac: mac(0x89), ..on(9, B) };
    let installed = Installed {
        endpoints: [(C1, on(7, A)), (gone, on(6, B)), (pinned, pinned_endpoint), (reused, on(10, B))].into(),
        ports: [(BRIDGE, PortKind::Bridge), (7, PortKind::Veth), (6, PortKind::Veth), (9, PortKind::Veth)]
            .into(),
        ..Installed::default()
    };
    let mut learner = Learner::new(config(), &installed);
    // There is neither a neighbour nor a forwarding entry, because the fast path kept them from being refreshed.
    learner.resync(HostSnapshot {
        links: vec![
            bridge(),
            link(7, LinkKind::Veth, Some(BRIDGE)),
            link(9, LinkKind::Veth, None),
            link(10, LinkKind::Other("tun".into()), None),
        ],
        addresses: vec![address(BRIDGE, GATEWAY)],
        ..HostSnapshot::default()
    });
    let changes = learner.take_changes();
    assert_eq!(
        changes,
        [
            LocalChange::RemoveEndpoint(gone),
            LocalChange::Detach(6),
            LocalChange::RemoveEndpoint(reused),
            LocalChange::Attach(BRIDGE, PortKind::Bridge),
            LocalChange::Attach(7, PortKind::Veth),
            LocalChange::Attach(9, PortKind::Veth),
        ]
    );
}

#[test]
fn lost_events_are_made_up_for_by_a_snapshot() {
    let mut learner = learned();
    learner.resync(HostSnapshot {
        links: vec![bridge(), link(8, LinkKind::Veth, Some(BRIDGE))],
        addresses: vec![address(BRIDGE, GATEWAY)],
        neighbours: vec![Neighbour { link: BRIDGE, address: C1, mac: B }],
        fdb: vec![FdbEntry { bridge: BRIDGE, mac: B, port: 8 }],
        ..HostSnapshot::default()
    });
    let changes = learner.take_changes();
    assert!(changes.contains(&LocalChange::Detach(7)), "{changes:?}");
    assert_eq!(changes.last(), Some(&LocalChange::PutEndpoint(C1, on(8, B))));
}

#[test]
fn what_others_have_at_a_port_is_told_with_its_endpoints() {
    let mut learner = learned();
    assert_eq!((learner.veths(), learner.unseen()), (vec![7], vec![7]));
    let shaped = ForeignTc { egress: true, ingress: false };
    assert!(learner.looked(7, shaped));
    let endpoint = Endpoint { foreign_tc: shaped, ..on(7, A) };
    assert_eq!(learner.take_changes().pop(), Some(LocalChange::PutEndpoint(C1, endpoint)));
    assert!(learner.unseen().is_empty() && !learner.looked(7, shaped) && learner.take_changes().is_empty());
    // It stays when the container is replaced, and when everything is listed again.
    let replaced = Endpoint { mac: B, ..endpoint };
    let changes = feed(&mut learner, [seen(B, 7), neighbour(BRIDGE, C1, B)]);
    assert_eq!(changes, [LocalChange::PutEndpoint(C1, replaced)]);
    // Another port is another matter.
    let moved = feed(&mut learner, [port(8), Event::LinkGone(7), seen(A, 8), neighbour(BRIDGE, C1, A)]);
    assert_eq!(moved.last(), Some(&LocalChange::PutEndpoint(C1, on(8, A))));
    // An interface that got the index afterwards has not been looked at.
    feed(&mut learner, [port(7)]);
    assert_eq!(learner.unseen(), [7, 8]);
    assert!(!learner.looked(9, shaped), "there is no such interface");
}

#[test]
fn what_an_earlier_agent_found_stays_until_the_port_is_looked_at() {
    let filtered = ForeignTc { egress: false, ingress: true };
    let endpoint = Endpoint { foreign_tc: filtered, ..on(7, A) };
    let installed = Installed { endpoints: [(C1, endpoint)].into(), ..Installed::default() };
    let mut learner = Learner::new(config(), &installed);
    learner.resync(HostSnapshot {
        links: vec![bridge(), link(7, LinkKind::Veth, Some(BRIDGE))],
        addresses: vec![address(BRIDGE, GATEWAY)],
        ..HostSnapshot::default()
    });
    let puts = |changes: Vec<LocalChange>| {
        let is_put = |change: &LocalChange| matches!(change, LocalChange::PutEndpoint(..));
        changes.into_iter().filter(is_put).collect::<Vec<_>>()
    };
    assert_eq!(puts(learner.take_changes()), []);
    assert!(!learner.looked(7, ForeignTc::default()), "nothing is there, as anybody would expect");
    assert_eq!(puts(learner.take_changes()), [LocalChange::PutEndpoint(C1, on(7, A))]);
}
