//! The choice of the underlay device, and the kinds of links.
use overlay_user::host::{
    netlink::{LinkKind, Netlink},
    underlay::{self, Choice},
};

use super::bed::{C1, Container, bridge, in_namespace, run};

#[test]
fn the_underlay_is_found_by_the_kernels_routes() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let error = underlay::choose(&netlink, &Choice::default()).await.unwrap_err();
        assert!(error.to_string().starts_with("there is no default route"), "{error}");
        for index in [0, 1] {
            run(&format!("ip link add eth{index} type veth peer name peer{index}"));
            run(&format!("ip address add 192.168.{index}.7/24 dev eth{index}"));
            run(&format!("ip link set eth{index} up"));
            run(&format!("ip link set peer{index} up"));
        }
        run("ip route add default via 192.168.1.1");
        let chosen = underlay::choose(&netlink, &Choice::default()).await.unwrap();
        assert_eq!((chosen.name.as_str(), chosen.address), ("eth1", [192, 168, 1, 7].into()));
        let reaching = |address: [u8; 4]| Choice { can_reach: Some(address.into()), ..Choice::default() };
        let chosen = underlay::choose(&netlink, &reaching([192, 168, 0, 99])).await.unwrap();
        assert_eq!((chosen.name.as_str(), chosen.mtu), ("eth0", 1500));
        run("ip route delete default");
        let error = underlay::choose(&netlink, &reaching([8, 8, 8, 8])).await.unwrap_err();
        assert!(error.to_string().starts_with("no route leads to 8.8.8.8"), "{error}");
    });
}

#[test]
fn links_are_told_apart_by_kind() {
    in_namespace(|| async {
        bridge();
        let container = Container::start("veth1", C1);
        let links = Netlink::open().unwrap().links().await.unwrap();
        let named = |name: &str| links.iter().find(|link| link.name == name).unwrap();
        assert_eq!(named("br0").kind, LinkKind::Bridge);
        let veth1 = named("veth1");
        assert_eq!(veth1.kind, LinkKind::Veth);
        assert_eq!(veth1.master, Some(named("br0").index));
        assert!(veth1.peer.is_some() && veth1.peer_netns.is_some(), "{veth1:?}");
        drop(container);
    });
}
