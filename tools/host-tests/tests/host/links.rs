//! The choice of the underlay device, and the kinds of links.
use overlay_user::host::{
    netlink::{LinkKind, Netlink},
    underlay::{self, Choice, NoIpv6},
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
        let chosen = underlay::choose(&netlink, &Choice::default()).await.unwrap().underlay;
        assert_eq!((chosen.name.as_str(), chosen.address), ("eth1", [192, 168, 1, 7].into()));
        let reaching = |address: [u8; 4]| Choice { can_reach: Some(address.into()), ..Choice::default() };
        let chosen = underlay::choose(&netlink, &reaching([192, 168, 0, 99])).await.unwrap().underlay;
        assert_eq!((chosen.name.as_str(), chosen.mtu), ("eth0", 1500));
        run("ip route delete default");
        let error = underlay::choose(&netlink, &reaching([8, 8, 8, 8])).await.unwrap_err();
        assert!(error.to_string().starts_with("no route leads to 8.8.8.8"), "{error}");
    });
}

/// What the kernel says of IPv6 addresses, and which of them is taken. (Which goes before which is a table of its own.)
#[test]
fn the_ipv6_address_is_one_that_stays() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        run("ip link add eth0 type veth peer name peer0");
        run("ip address add 192.168.0.7/24 dev eth0");
        run("ip link set eth0 up");
        // Without a carrier, the kernel does not begin to look for duplicates.
        run("ip -6 address add fd99::1/64 dev eth0");
        let named = |name: &str| Choice { names: vec![name.into()], ..Choice::default() };
        let underlay = underlay::choose(&netlink, &named("eth0")).await.unwrap().underlay;
        let choose = async |choice: &Choice| {
            let chosen = underlay::choose_ipv6(&netlink, choice, &underlay).await;
            chosen.map_err(|error| error.downcast::<NoIpv6>().unwrap())
        };
        let refused = choose(&Choice::default()).await.unwrap_err();
        assert!(matches!(refused, NoIpv6::NotYet(_)), "{refused}");
        assert!(netlink.ipv6_addresses().await.unwrap().iter().any(|one| one.is_tentative));

        run("ip -6 address delete fd99::1/64 dev eth0");
        run("ip link set peer0 up");
        run("ip -6 address add fd99::2/64 dev eth0 nodad preferred_lft 0");
        run("sysctl -qw net.ipv6.conf.eth0.use_tempaddr=2 net.ipv6.conf.eth0.accept_dad=0");
        run("ip -6 address add fd99::5/64 dev eth0 nodad mngtmpaddr valid_lft 9000 preferred_lft 9000");
        let addresses = netlink.ipv6_addresses().await.unwrap();
        let of = |address: &str| addresses.iter().find(|one| one.address.to_string() == address).unwrap();
        assert!(of("fd99::2").is_deprecated && !of("fd99::5").is_permanent && of("::1").is_permanent);
        assert!(addresses.iter().any(|one| one.is_temporary), "{addresses:?}");
        let taken = async |choice: &Choice| choose(choice).await.unwrap().address.to_string();
        assert_eq!(taken(&Choice::default()).await, "fd99::5");
        run("ip -6 address add fd99::9/64 dev eth0 nodad");
        assert_eq!(taken(&Choice::default()).await, "fd99::9");
        // An interface can be named by its address of either family, which then is the one that is taken.
        let by_address = named("fd99::5");
        let again = underlay::choose(&netlink, &by_address).await.unwrap().underlay;
        assert_eq!(again, underlay);
        assert_eq!(taken(&by_address).await, "fd99::5");

        run("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1");
        let refused = choose(&Choice::default()).await.unwrap_err();
        assert!(
            matches!(&refused, NoIpv6::Absent(why) if why.contains("eth0 has no IPv6 address")),
            "{refused}"
        );
        let again = underlay::choose(&netlink, &named("eth0")).await.unwrap().underlay;
        assert_eq!(again, underlay, "IPv4 does without IPv6");
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
