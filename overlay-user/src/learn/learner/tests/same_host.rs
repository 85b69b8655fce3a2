//! Between which ports of a bridge the programs hand frames on.
use overlay_common::MAX_ENDPOINT_BRIDGE;

use super::*;
use crate::{host::netlink::Bridging, learn::view::SameHost};

fn plain(link: Link) -> Link {
    Link { bridging: Some(Bridging::default()), ..link }
}

fn plain_port(index: u32) -> Event {
    Event::Link(plain(link(index, LinkKind::Veth, Some(BRIDGE))))
}

/// A learner with C1 behind port 7 of a bridge that only forwards, on a host where nothing else sees the frames.
fn handed_on() -> Learner {
    let mut learner = learned();
    assert!(learner.bridged_frames_are_seen_by(None));
    feed(&mut learner, [Event::Link(plain(bridge())), plain_port(7)]);
    learner.looked(7, ForeignTc::default());
    assert_eq!(learner.endpoints[&C1].bridge, Some(BRIDGE));
    learner.take_changes();
    learner
}

/// What is put after one event: the bridge of C1.
fn bridge_after(learner: &mut Learner, event: Event) -> Option<u32> {
    let changes = feed(learner, [event]);
    match changes.last() {
        Some(LocalChange::PutEndpoint(C1, endpoint)) => endpoint.bridge,
        _ => panic!("{changes:?}"),
    }
}

#[test]
fn frames_are_handed_on_once_everything_is_known_to_only_forward() {
    let mut learner = learner();
    let events = [Event::Link(plain(bridge())), plain_port(7), seen(A, 7), neighbour(BRIDGE, C1, A)];
    assert_eq!(feed(&mut learner, events).last(), Some(&LocalChange::PutEndpoint(C1, on(7, A))));
    learner.bridged_frames_are_seen_by(None);
    assert_eq!(learner.take_changes(), []);
    learner.looked(7, ForeignTc::default());
    let handed_on = Endpoint { bridge: Some(BRIDGE), ..on(7, A) };
    assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C1, handed_on)]);
    assert!(!learner.bridged_frames_are_seen_by(None), "that is no news");
    assert_eq!(learner.view().bridges[0].same_host, SameHost::default());
    // One that comes later gets it at once when its port has been looked at.
    feed(&mut learner, [plain_port(8)]);
    learner.looked(8, ForeignTc::default());
    let c2 = IpAddr::from([10, 244, 1, 3]);
    let changes = feed(&mut learner, [seen(B, 8), neighbour(BRIDGE, c2, B)]);
    let second = Endpoint { bridge: Some(BRIDGE), ..on(8, B) };
    assert_eq!(changes, [LocalChange::PutEndpoint(c2, second)]);
}

#[test]
fn whatever_does_more_to_a_frame_takes_it_back_and_says_why() {
    let odd = |settings: &[&'static str]| Some(Bridging(settings.to_vec()));
    let mut learner = handed_on();
    let filtering = Link { bridging: odd(&["vlan_filtering 1"]), ..bridge() };
    assert_eq!(bridge_after(&mut learner, Event::Link(filtering)), None);
    let why = learner.view().bridges.remove(0).same_host;
    assert_eq!(why.kept_by_bridge.as_deref(), Some("vlan_filtering 1"));
    assert_eq!(bridge_after(&mut learner, Event::Link(plain(bridge()))), Some(BRIDGE));

    let isolated = Event::BridgePort(7, Bridging(vec!["isolated on"]));
    assert_eq!(bridge_after(&mut learner, isolated), None);
    let why = learner.view().bridges.remove(0).same_host;
    assert_eq!(why.kept_by_bridge, None);
    assert_eq!(why.kept_by_ports, [("if7".to_owned(), "isolated on".to_owned())].into());
    assert_eq!(bridge_after(&mut learner, Event::BridgePort(7, Bridging::default())), Some(BRIDGE));

    assert!(learner.bridged_frames_are_seen_by(Some("a rule".into())));
    assert_eq!(learner.endpoints[&C1].bridge, None);
    assert_eq!(learner.view().bridges[0].same_host.kept_by_bridge.as_deref(), Some("a rule"));
    assert!(learner.bridged_frames_are_seen_by(None));
    assert_eq!(learner.endpoints[&C1].bridge, Some(BRIDGE));

    for foreign in [(true, false), (false, true)] {
        let (egress, ingress) = foreign;
        learner.looked(7, ForeignTc { egress, ingress });
        assert_eq!(learner.endpoints[&C1].bridge, None, "{foreign:?}");
        learner.looked(7, ForeignTc::default());
        assert_eq!(learner.endpoints[&C1].bridge, Some(BRIDGE));
    }
    learner.take_changes();

    // The bridge would forward it elsewhere.
    assert_eq!(bridge_after(&mut learner, seen(A, 9)), None);
    assert_eq!(bridge_after(&mut learner, seen(A, 7)), Some(BRIDGE));
    // That it has forgotten where, does not matter: it would ask everybody.
    let forgotten = Event::FdbGone(FdbEntry { bridge: BRIDGE, mac: A, port: 7 });
    assert_eq!(feed(&mut learner, [forgotten]), []);

    // The kernel does not tell what the bridge does.
    assert_eq!(bridge_after(&mut learner, port(7)), None);
}

#[test]
fn what_an_earlier_agent_found_stays_until_somebody_has_looked() {
    let endpoint = Endpoint { bridge: Some(BRIDGE), ..on(7, A) };
    let installed = Installed { endpoints: [(C1, endpoint)].into(), ..Installed::default() };
    let mut learner = Learner::new(config(), &installed);
    learner.resync(HostSnapshot {
        links: vec![plain(bridge()), plain(link(7, LinkKind::Veth, Some(BRIDGE)))],
        addresses: vec![address(BRIDGE, GATEWAY)],
        ..HostSnapshot::default()
    });
    let is_put = |change: &LocalChange| matches!(change, LocalChange::PutEndpoint(..));
    assert!(!learner.take_changes().iter().any(is_put));
    learner.bridged_frames_are_seen_by(None);
    learner.looked(7, ForeignTc::default());
    assert!(!learner.take_changes().iter().any(is_put), "nothing has changed");
    learner.bridged_frames_are_seen_by(Some("a rule".into()));
    assert_eq!(learner.take_changes(), [LocalChange::PutEndpoint(C1, on(7, A))]);
}

#[test]
fn a_veth_without_a_bridge_hands_nothing_on() {
    let mut learner = handed_on();
    feed(&mut learner, [Event::Link(plain(link(7, LinkKind::Veth, None)))]);
    assert!(learner.endpoints.values().all(|endpoint| endpoint.bridge.is_none()));
    // An interface index that the programs' flags have no room for.
    let far = MAX_ENDPOINT_BRIDGE + 1;
    let mut learner = handed_on();
    learner.bridges.insert(far);
    feed(
        &mut learner,
        [
            Event::Link(plain(link(far, LinkKind::Bridge, None))),
            Event::Link(plain(link(7, LinkKind::Veth, Some(far)))),
        ],
    );
    assert_eq!(learner.endpoints[&C1].bridge, None);
}
