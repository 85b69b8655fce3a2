//! The tunnel device: it is created, adopted and repaired, and what is in its way is left alone.
use std::net::UdpSocket;

use overlay_user::{
    host::{
        device::{self, DeviceKind, DeviceSpec},
        netlink::Netlink,
    },
    model::{backend::Backend, mac::Mac},
};

use super::bed::{in_namespace, run};

fn spec() -> DeviceSpec {
    DeviceSpec {
        name: "overlay0".into(),
        kind: DeviceKind::Vxlan { port: 8472, vni: 1, mac: None },
        mtu: Backend::DEFAULT.overlay_mtu(1500),
        subnet: "10.244.1.0/24".parse().unwrap(),
        network: "10.244.0.0/16".parse().unwrap(),
        prefixes: vec!["10.244.0.0/16".parse().unwrap()],
    }
}

/// Asserts that overlay0 is as `spec()` describes it.
fn assert_stands() {
    let link = run("ip -details link show overlay0");
    let parts = [
        "NOARP",
        ",UP",
        "mtu 1450",
        "external",
        "vnifilter",
        "dstport 8472",
        "nolearning",
        "addrgenmode none",
    ];
    for part in parts {
        assert!(link.contains(part), "no {part} in {link}");
    }
    assert!(run("ip -4 address show overlay0").contains("inet 10.244.1.0/32"));
    let routes = run("ip route");
    let route = "10.244.0.0/16 dev overlay0 proto static scope link src 10.244.1.0";
    assert!(routes.contains(route), "{routes}");
    let vnis = run("bridge vni show dev overlay0");
    assert!(vnis.split_whitespace().any(|word| word == "1"), "vni 1 is not in {vnis}");
}

#[test]
fn overlay0_is_created_adopted_and_repaired() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let spec = spec();
        let created = device::ensure(&netlink, &spec).await.unwrap();
        assert!(created.vnifilter);
        assert_stands();
        assert_eq!(device::ensure(&netlink, &spec).await.unwrap(), created);
        for damage in [
            "ip link set overlay0 mtu 1200",
            "ip address delete 10.244.1.0/32 dev overlay0",
            "ip route delete 10.244.0.0/16",
            "ip link set overlay0 down",
            "bridge vni delete dev overlay0 vni 1",
            "ip link set overlay0 arp on",
        ] {
            run(damage);
            assert_eq!(device::ensure(&netlink, &spec).await.unwrap(), created, "{damage}");
            assert_stands();
        }

        let moved = DeviceSpec { subnet: "10.244.9.0/24".parse().unwrap(), ..spec.clone() };
        assert_eq!(device::ensure(&netlink, &moved).await.unwrap(), created);
        let addresses = run("ip -4 address show overlay0");
        assert!(addresses.contains("10.244.9.0/32") && !addresses.contains("10.244.1.0"), "{addresses}");
        assert!(run("ip route").contains("src 10.244.9.0"));

        // The device gets another MAC address without being taken down, as it must when a lease from earlier names one.
        let mac = Mac::random();
        let renamed = DeviceSpec { kind: DeviceKind::Vxlan { port: 8472, vni: 1, mac: Some(mac) }, ..moved };
        let adopted = device::ensure(&netlink, &renamed).await.unwrap();
        assert_eq!((adopted.ifindex, adopted.mac), (created.ifindex, Some(mac)));
        assert!(run("ip link show overlay0").contains(&mac.to_string()));

        let other_port =
            DeviceSpec { kind: DeviceKind::Vxlan { port: 4789, vni: 1, mac: created.mac }, ..spec.clone() };
        let anew = device::ensure(&netlink, &other_port).await.unwrap();
        assert_ne!(anew.ifindex, created.ifindex);
        assert_eq!(anew.mac, created.mac);

        device::remove(&netlink, "overlay0").await.unwrap();
        device::remove(&netlink, "overlay0").await.unwrap();
        assert_eq!(netlink.link_named("overlay0").await.unwrap(), None);
    });
}

#[test]
fn networks_share_the_port_by_their_vni() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        device::ensure(&netlink, &spec()).await.unwrap();
        let second = DeviceSpec {
            name: "overlay1".into(),
            kind: DeviceKind::Vxlan { port: 8472, vni: 2, mac: None },
            subnet: "10.245.1.0/24".parse().unwrap(),
            network: "10.245.0.0/16".parse().unwrap(),
            prefixes: vec!["10.245.0.0/16".parse().unwrap()],
            ..spec()
        };
        device::ensure(&netlink, &second).await.unwrap();
        device::remove(&netlink, "overlay1").await.unwrap();
        let same = DeviceSpec { kind: spec().kind, ..second };
        let error = device::ensure(&netlink, &same).await.unwrap_err().to_string();
        assert!(error.contains("vni 1 on udp port 8472 belongs to overlay0"), "{error}");
        assert_eq!(netlink.link_named("overlay1").await.unwrap(), None);
    });
}

#[test]
fn the_range_is_routed_and_what_an_agent_routed_before_is_not() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let link = device::ensure(&netlink, &spec()).await.unwrap().ifindex;
        let routes = || {
            let routes = run("ip route show dev overlay0");
            routes.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(routes(), ["10.244.0.0/16"]);
        // Somebody else's route through our device.
        run("ip route add 10.244.7.0/24 dev overlay0 metric 5");
        let range = ["10.244.64.0/18", "10.244.128.0/17"];
        let part = DeviceSpec { prefixes: range.map(|net| net.parse().unwrap()).into(), ..spec() };
        device::ensure(&netlink, &part).await.unwrap();
        device::remove_stale_routes(&netlink, &part, link).await.unwrap();
        assert_eq!(routes(), ["10.244.7.0/24", range[0], range[1]]);
        device::ensure(&netlink, &spec()).await.unwrap();
        device::remove_stale_routes(&netlink, &spec(), link).await.unwrap();
        assert_eq!(routes(), ["10.244.0.0/16", "10.244.7.0/24"]);
        // A route to all of Network that is not ours is in nobody's way.
        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        device::ensure(&netlink, &part).await.unwrap();
        device::remove_stale_routes(&netlink, &part, link).await.unwrap();
        run("ip route add 10.244.0.0/16 dev br0");
        device::ensure(&netlink, &part).await.unwrap();
        let error = device::ensure(&netlink, &spec()).await.unwrap_err().to_string();
        assert!(error.contains("10.244.0.0/16 is already routed through interface br0"), "{error}");
    });
}

#[test]
fn what_is_in_overlay0s_way_is_named_and_left_alone() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let spec = spec();
        let refusal = async || device::ensure(&netlink, &spec).await.unwrap_err().to_string();

        run("ip link add flannel.1 type vxlan id 1 dstport 8472 nolearning");
        run("ip link set flannel.1 up");
        let error = refusal().await;
        let expected = "udp port 8472 belongs to vxlan device flannel.1 (vni 1)";
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("`ip link delete flannel.1`"), "{error}");
        assert!(!run("ip link").contains("overlay0"), "a half-made device was left");
        run("ip link delete flannel.1");

        let socket = UdpSocket::bind("0.0.0.0:8472").unwrap();
        let error = refusal().await;
        assert!(error.contains("udp port 8472 is bound by process "), "{error}");
        drop(socket);

        run("ip link add overlay0 type bridge");
        let error = refusal().await;
        assert!(error.starts_with("interface overlay0 exists and is a bridge"), "{error}");
        assert!(device::remove(&netlink, "overlay0").await.is_err());
        run("ip link delete overlay0");

        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        run("ip route add 10.244.0.0/16 dev br0");
        let error = refusal().await;
        assert!(error.contains("already routed through interface br0"), "{error}");
        assert!(run("ip route").contains("10.244.0.0/16 dev br0"));
    });
}
