//! Addresses that move from one container to another, as virtual IPs do: the new holder announces the address, and the former one
//! gives it up a moment later.
use std::time::Duration;

use super::*;

/// Another address of the container that has C1.
const C2: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 3));

fn says(address: IpAddr, mac: Mac) -> Neighbour {
    Neighbour { link: BRIDGE, address, mac }
}

/// C1 is behind port 7 with MAC address A, and a container with MAC address B, behind port 8, is known to the bridge.
fn two() -> Learner {
    let mut learner = learned();
    feed(&mut learner, [port(8), seen(B, 8)]);
    learner
}

#[test]
fn a_holder_that_gives_up_right_after_it_answered_is_asked_again_within_milliseconds() {
    let mut learner = two();
    feed(&mut learner, [neighbour(BRIDGE, C1, B)]);
    assert_eq!(learner.take_pauses(), []);
    let asked = probe(&mut learner);
    learner.probed(asked, true);
    assert_eq!(learner.take_pauses(), [(C1, Duration::from_millis(20))]);

    learner.ask_again(C1);
    let asked = probe(&mut learner);
    learner.probed(asked, true);
    assert_eq!(learner.take_pauses(), [(C1, Duration::from_millis(30))]);
    assert_eq!(learner.view().conflicts_total, 1, "it is still the same claim");

    learner.ask_again(C1);
    let asked = probe(&mut learner);
    learner.probed(asked, false);
    assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C1, on(8, B))]);
    // The way back is a claim like any other, and the pauses are short again.
    feed(&mut learner, [neighbour(BRIDGE, C1, A)]);
    let asked = probe(&mut learner);
    assert_eq!(asked.port, 8);
    learner.probed(asked, true);
    assert_eq!(learner.take_pauses(), [(C1, Duration::from_millis(20))]);
    // The pause was over after the holder itself had been heard again: nobody claims the address.
    feed(&mut learner, [neighbour(BRIDGE, C1, B)]);
    learner.ask_again(C1);
    assert_eq!((learner.take_probes(), learner.take_changes()), (vec![], vec![]));
}

#[test]
fn an_announcement_is_a_claim_though_the_kernel_has_forgotten_the_address() {
    let mut learner = two();
    assert_eq!(feed(&mut learner, [Event::NeighbourGone(BRIDGE, C1)]), []);
    learner.announced([says(C1, B)]);
    let asked = probe(&mut learner);
    assert_eq!((asked.port, asked.address), (7, C1));
    learner.probed(asked, false);
    assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C1, on(8, B))]);
    // A container that announces itself is learned by that, in whichever order the bridge tells of it.
    learner.announced([says(C2, mac(0xc))]);
    assert_eq!(learner.take_changes(), []);
    assert_eq!(feed(&mut learner, [seen(mac(0xc), 8)]), [LocalChange::PutEndpoint(C2, on(8, mac(0xc)))]);
    // Other networks' are none of ours.
    learner.announced([says(IpAddr::from([192, 168, 0, 1]), B)]);
    learner.announced([says(GATEWAY, B)]);
    assert_eq!((learner.take_probes(), learner.take_changes()), (vec![], vec![]));
}

#[test]
fn whoever_announces_again_is_believed_at_once_when_the_holder_is_silent_but_only_now_and_then() {
    let mut learner = two();
    learner.announced([says(C1, B)]);
    let asked = probe(&mut learner);
    // It is repeated before there is an answer, as VRRP's daemons do.
    learner.announced([says(C1, B)]);
    assert_eq!(learner.take_probes(), []);
    learner.probed(asked, true);
    learner.announced([says(C1, B)]);
    let asked = probe(&mut learner);
    learner.probed(asked, true);
    for _ in 0..3 {
        learner.announced([says(C1, B)]);
        assert_eq!(learner.take_probes(), []);
    }
    learner.retry();
    let asked = probe(&mut learner);
    learner.probed(asked, true);
    learner.announced([says(C1, B)]);
    let asked = probe(&mut learner);
    learner.probed(asked, false);
    assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C1, on(8, B))]);
    assert_eq!(learner.view().conflicts_total, 1);
}

#[test]
fn the_holder_is_asked_about_another_of_its_addresses_too() {
    let mut learner = two();
    let c3 = IpAddr::from([10, 244, 1, 4]);
    // Two more addresses are behind port 7, one of them of another container there.
    feed(&mut learner, [neighbour(BRIDGE, C2, A), seen(mac(0xc), 7), neighbour(BRIDGE, c3, mac(0xc))]);
    learner.announced([says(C1, B)]);
    let asked = probe(&mut learner);
    assert_eq!((asked.address, asked.sibling), (C1, Some(C2)));
    // The other address moves as well, so that nothing follows from silence about it.
    learner.announced([says(C2, B)]);
    let also = probe(&mut learner);
    assert_eq!((also.address, also.sibling), (C2, None));
    learner.probed(asked, true);
    learner.ask_again(C1);
    assert_eq!(probe(&mut learner).sibling, None);
    // A container with one address has no other.
    learner.announced([says(c3, B)]);
    assert_eq!(probe(&mut learner).sibling, None);
}

#[test]
fn what_is_announced_once_ends_and_leaves_the_endpoint() {
    let mut learner = two();
    learner.announced([says(C2, B)]);
    assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C2, on(8, B))]);
    for _ in 0..4 {
        assert_eq!(learner.claimed()[&C2], [(8, B)]);
        learner.retry();
    }
    assert!(!learner.claimed().contains_key(&C2));
    assert_eq!((learner.take_probes(), learner.take_changes()), (vec![], vec![]));
    // The kernel's own entry is no longer hidden.
    learner.announced([says(C1, B)]);
    let asked = probe(&mut learner);
    learner.probed(asked, true);
    for _ in 0..4 {
        assert_eq!(learner.view().conflicts.len(), 1);
        learner.retry();
        for asked in learner.take_probes() {
            learner.probed(asked, true);
        }
    }
    assert_eq!(learner.view().conflicts, []);
    assert_eq!(learner.claimed()[&C1], [(7, A)]);
}

#[test]
fn the_former_holder_is_no_rival_when_an_announcement_ends() {
    let mut learner = two();
    learner.announced([says(C1, B)]);
    let asked = probe(&mut learner);
    learner.probed(asked, false);
    assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C1, on(8, B))]);
    for _ in 0..5 {
        learner.retry();
    }
    assert_eq!((learner.take_probes(), learner.take_changes()), (vec![], vec![]));
}

#[test]
fn an_announcement_outlives_what_the_kernel_repeats_but_not_what_it_says_anew() {
    let snapshot = |mac| HostSnapshot {
        links: vec![bridge(), link(7, LinkKind::Veth, Some(BRIDGE)), link(8, LinkKind::Veth, Some(BRIDGE))],
        addresses: vec![address(BRIDGE, GATEWAY)],
        neighbours: vec![Neighbour { link: BRIDGE, address: C1, mac }],
        fdb: [(A, 7), (B, 8), (mac_c(), 8)].map(|(mac, port)| FdbEntry { bridge: BRIDGE, mac, port }).into(),
        ..HostSnapshot::default()
    };
    let mut learner = two();
    learner.announced([says(C1, B)]);
    feed(&mut learner, [neighbour(BRIDGE, C1, A)]);
    learner.resync(snapshot(A));
    assert_eq!(learner.claimed()[&C1], [(8, B)]);
    learner.resync(snapshot(mac_c()));
    assert_eq!(learner.claimed()[&C1], [(8, mac_c())]);
    learner.announced([says(C1, B)]);
    feed(&mut learner, [neighbour(BRIDGE, C1, A)]);
    assert_eq!(learner.claimed()[&C1], [(7, A)]);
    // An address that the kernel forgets stays with whoever announced it.
    learner.announced([says(C1, B)]);
    feed(&mut learner, [Event::NeighbourGone(BRIDGE, C1)]);
    assert_eq!(learner.claimed()[&C1], [(8, B)]);
    feed(&mut learner, [Event::LinkGone(BRIDGE)]);
    assert!(!learner.claimed().contains_key(&C1));
}

fn mac_c() -> Mac {
    mac(0xc)
}

#[test]
fn whoever_alternates_announcements_changes_an_endpoint_only_so_often() {
    let mut learner = two();
    feed(&mut learner, [seen(mac_c(), 8)]);
    for _ in 0..100 {
        learner.announced([says(C2, B)]);
        learner.announced([says(C2, mac_c())]);
    }
    assert_eq!(learner.take_changes().len(), 8);
    learner.retry();
    learner.announced([says(C2, B)]);
    assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C2, on(8, B))]);
}

#[test]
fn an_announcement_counts_only_where_the_kernel_sends_packets_to_the_address() {
    let host_route = |address: IpAddr, link| {
        let (destination, link) = (address.into(), Some(link));
        Event::Route(Route { destination, link, gateway: None, source: None, metric: 0, table: TABLE_MAIN })
    };
    let mut learner = two();
    // Two containers behind veths without a bridge.
    let veths = [9, 10].map(|index| Event::Link(link(index, LinkKind::Veth, None)));
    feed(&mut learner, veths);
    let other = IpAddr::from([10, 244, 1, 20]);
    feed(&mut learner, [host_route(C2, 9), host_route(other, 10)]);
    for link in [BRIDGE, 10] {
        learner.announced([Neighbour { link, address: C2, mac: B }]);
        assert_eq!(learner.take_changes(), [], "{link}");
    }
    learner.announced([Neighbour { link: 9, address: C1, mac: B }]);
    assert_eq!((learner.take_probes(), learner.take_changes()), (vec![], vec![]));
    learner.announced([Neighbour { link: 9, address: C2, mac: B }]);
    let own = Endpoint { gateway_mac: mac(0x89), ..on(9, B) };
    assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C2, own)]);
}
