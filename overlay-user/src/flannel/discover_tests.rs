//! Tests of what is taken over and what is refused, on a host that flannel runs with two peers.
use super::*;

const MACS: [&str; 3] = ["02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"];

fn mac(host: usize) -> Mac {
    MACS[host - 1].parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn public_ip(host: usize) -> IpAddr {
    IpAddr::from([10, 99, 0, host as u8])
}

fn lease(host: usize) -> (String, Lease) {
    let backend = LeaseBackend::Vxlan { vni: 1, vtep_mac: mac(host) };
    let lease = Lease {
        subnet: net(&format!("10.244.{host}.0/24")),
        public_ip: public_ip(host),
        backend,
        ipv6: None,
    };
    (lease.key(), lease)
}

fn expected() -> Expected {
    Expected {
        network: net("10.244.0.0/16"),
        backend: Backend::DEFAULT,
        underlay: Underlay { name: "eth0".into(), ifindex: 2, mac: None, mtu: 1500, address: public_ip(1) },
        public_ip: public_ip(1),
        leases: (1..=3).map(lease).collect(),
    }
}

fn tunnel(name: &str, vni: u32, port: u16) -> ClassicTunnel {
    ClassicTunnel {
        local: Some(public_ip(1)),
        underlay: Some("eth0".into()),
        ..ClassicTunnel::example(name, vni, port)
    }
}

fn route(destination: &str, gateway: [u8; 4], interface: &str) -> GatewayRoute {
    let onlink = interface != "eth0";
    let (destination, interface) = (net(destination), interface.to_owned());
    GatewayRoute { destination, gateway: gateway.into(), interface, onlink, protocol: 3 }
}

/// What is seen on a host that reaches host 2 through flannel's device, and host 3 by a plain route.
fn sight() -> Sight {
    Sight {
        tunnels: vec![(7, tunnel("flannel.1", 1, 8472))],
        addresses: vec![(2, net("10.99.0.1/24")), (7, net("10.244.1.0/32"))],
        neighbours: vec![StaticNeighbour { address: [10, 244, 2, 0].into(), mac: mac(2) }],
        forwarding: vec![Forwarding { mac: mac(2), to: public_ip(2) }],
        routes: vec![
            route("0.0.0.0/0", [10, 99, 0, 254], "eth0"),
            route("10.244.2.0/24", [10, 244, 2, 0], "flannel.1"),
            route("10.244.3.0/24", [10, 99, 0, 3], "eth0"),
        ],
        blackholes: vec![BlackholeRoute { destination: net("10.99.7.0/24"), protocol: 3 }],
        rules: Rules::default(),
        subnet_env: Some("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n".into()),
    }
}

#[track_caller]
fn refused(sight: Sight, expected: &Expected, says: &[&str]) {
    let error = discover(sight, expected).unwrap_err().to_string();
    for said in says {
        assert!(error.contains(said), "`{said}` is not in: {error}");
    }
}

#[test]
fn a_host_of_one_piece_is_taken_over_whole() {
    let found = discover(sight(), &expected()).unwrap();
    assert_eq!((found.link, found.mac, found.lease.subnet), (Some(7), Some(mac(1)), net("10.244.1.0/24")));
    assert_eq!(found.flannel.addresses, [net("10.244.1.0/32")]);
    assert_eq!(found.flannel.routes, sight().routes[1..]);
    let direct: Vec<_> = found.flannel.direct_routes().map(|route| route.destination).collect();
    assert_eq!(direct, [net("10.244.3.0/24")]);
    assert_eq!(found.notes, Vec::<String>::new());
    // What was found equals what would be made from the leases alone.
    let peers: Vec<_> = [2, 3].map(|host| lease(host).1).into();
    let made = Flannel::of_leases(Some(tunnel("flannel.1", 1, 8472)), "eth0", &lease(1).1, &peers, |it| {
        it == public_ip(3)
    });
    let subnet_env = sight().subnet_env;
    assert_eq!(Flannel { subnet_env, ..made }, found.flannel);
}

#[test]
fn the_blackhole_route_to_the_own_subnet_is_flannels() {
    assert_eq!(discover(sight(), &expected()).unwrap().flannel.blackhole, None);
    let mut with = sight();
    let route = BlackholeRoute { destination: net("10.244.1.0/24"), protocol: 3 };
    with.blackholes.push(route);
    assert_eq!(discover(with, &expected()).unwrap().flannel.blackhole, Some(route));
}

#[test]
fn what_the_leases_do_not_say_is_noted() {
    let mut altered = sight();
    altered.forwarding[0].to = public_ip(9);
    altered.routes.push(route("10.244.9.0/24", [10, 244, 9, 0], "flannel.1"));
    let notes = discover(altered, &expected()).unwrap().notes;
    assert!(notes[0].starts_with("10.244.2.0/24 of 10.99.0.2 is not in flannel's tables"), "{notes:?}");
    assert!(notes[1].starts_with("10.244.9.0/24 is in flannel's routes"), "{notes:?}");
    assert_eq!(notes.len(), 2);
}

#[test]
fn without_flannel_there_is_nothing_to_take_over() {
    let none = Sight::default();
    refused(none, &expected(), &["no flannel here", "flannel.1 (vni 1, port 8472", "`overlay agent` joins"]);
    let other = Sight { tunnels: vec![(7, tunnel("flannel.7", 7, 4789))], ..Sight::default() };
    refused(other, &expected(), &["but flannel.7 (vni 7, port 4789)", "another network's"]);
}

#[test]
fn what_does_not_fit_together_is_named() {
    let altered = |alter: fn(&mut Sight, &mut Expected), says: &[&str]| {
        let (mut sight, mut expected) = (sight(), expected());
        alter(&mut sight, &mut expected);
        refused(sight, &expected, says);
    };
    altered(
        |_, expected| expected.backend = Backend::Vxlan { vni: 1, port: 4789, mtu: None, direct: false },
        &["flannel.1 has vni 1 and port 8472", "vni 1 and port 4789"],
    );
    altered(|_, expected| drop(expected.leases.remove(0)), &["no lease carries 10.99.0.1", "--public-ip"]);
    altered(
        |_, expected| expected.leases[1].1.public_ip = public_ip(1),
        &["10.99.0.1 has two leases, 10.244.1.0-24 and 10.244.2.0-24"],
    );
    altered(
        |sight, _| sight.tunnels[0].1.mac = mac(3),
        &["MAC address 02:00:00:00:00:03", "02:00:00:00:00:01"],
    );
    altered(
        |sight, _| sight.tunnels[0].1.local = Some(public_ip(8)),
        &["sends from 10.99.0.8", "--iface 10.99.0.8"],
    );
    altered(
        |sight, _| sight.tunnels.push((8, tunnel("vxlan9", 9, 8472))),
        &["vxlan9 (vni 9) has udp port 8472 too"],
    );
    altered(|sight, _| sight.tunnels.push((8, tunnel("flannel-v6.1", 1, 8473))), &["IPv6", "flannel-v6.1"]);
    altered(
        |sight, _| sight.addresses[1].1 = net("10.244.5.0/32"),
        &["flannel.1 has 10.244.5.0/32", "10.244.1.0/24"],
    );
    altered(|sight, _| sight.addresses.truncate(1), &["flannel.1 has no address"]);
    altered(
        |sight, _| sight.subnet_env = Some("FLANNEL_SUBNET=10.244.8.1/24\n".into()),
        &["subnet.env says 10.244.8.0/24", "10.244.1.0/24"],
    );
    altered(
        |sight, _| sight.subnet_env = Some("FLANNEL_NETWORK=10.8.0.0/16\n".into()),
        &["Network 10.8.0.0/16", "10.244.0.0/16"],
    );
    altered(
        |sight, _| sight.routes[2].gateway = [10, 99, 0, 77].into(),
        &["10.244.3.0/24 is routed via 10.99.0.77", "10.99.0.3", "ip route delete"],
    );
    altered(
        |_, expected| expected.leases[0].1.backend = LeaseBackend::Other("host-gw".into()),
        &["10.244.1.0-24 is not of flannel's vxlan backend"],
    );
    altered(
        |_, expected| expected.leases[0].0 += "&fd00::-64",
        &["10.244.1.0-24&fd00::-64 is for IPv6 as well"],
    );
}

#[test]
fn host_gw_leaves_routes_alone() {
    let host_gw = |(key, lease): (String, Lease)| {
        (key, Lease { backend: LeaseBackend::Other("host-gw".into()), ..lease })
    };
    let expected = Expected {
        backend: Backend::HostGw,
        leases: (1..=3).map(|host| host_gw(lease(host))).collect(),
        ..expected()
    };
    let routes =
        vec![route("10.244.2.0/24", [10, 99, 0, 2], "eth0"), route("10.244.3.0/24", [10, 99, 0, 3], "eth0")];
    let sight = Sight { routes: routes.clone(), ..Sight::default() };
    let found = discover(sight, &expected).unwrap();
    assert_eq!((found.link, found.mac, found.notes.len()), (None, None, 0));
    assert_eq!((found.flannel.device.clone(), found.flannel.routes.clone()), (None, routes));
    let leases: Vec<_> = expected.leases.iter().map(|(_, lease)| lease.clone()).collect();
    let made = Flannel::of_leases(None, "eth0", &leases[0], &leases[1..], |_| true);
    assert_eq!(made, found.flannel);
    refused(Sight::default(), &expected, &["no flannel here", "host-gw"]);
    let other = Expected { leases: (1..=3).map(lease).collect(), ..expected };
    refused(Sight::default(), &other, &["10.244.1.0-24 is not of flannel's host-gw backend"]);
}
