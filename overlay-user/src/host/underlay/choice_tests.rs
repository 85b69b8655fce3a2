//! Tests of the choice: a table of cases, each with what flanneld does in it.
use super::*;
use crate::host::netlink::{Address, Tun};

fn link(index: u32, name: &str) -> Link {
    let mut link = Link::example(index, name, LinkKind::Other(String::new()));
    link.mac = Some(Mac([2, 0, 0, 0, 0, index as u8]));
    if name == "lo" {
        (link.link_type, link.mtu) = (LinkType::LOOPBACK, 65536);
    }
    link
}

/// An address: `d` in its flags is deprecated, `t` has an end, `s` is secondary.
fn held(link: u32, address: &str, flags: &str) -> FlaggedAddress {
    FlaggedAddress {
        address: Address { link, address: address.parse().unwrap(), prefix_len: 24 },
        is_deprecated: flags.contains('d'),
        is_permanent: !flags.contains('t'),
        is_secondary: flags.contains('s'),
    }
}

fn held6(link: u32, address: &str) -> Ipv6Address {
    Ipv6Address {
        link,
        address: address.parse().unwrap(),
        is_tentative: false,
        is_duplicate: false,
        is_deprecated: false,
        is_temporary: false,
        is_permanent: true,
    }
}

fn way(destination: &str, links: &[u32], metric: u32) -> Way {
    Way { destination: destination.parse().unwrap(), links: links.to_vec(), metric }
}

/// A host with two NICs, of which eth0 has the default route; what else it has is not to be chosen.
fn host() -> Sight {
    let mut links = vec![
        link(1, "lo"),
        link(2, "eth0"),
        link(3, "eth1"),
        link(4, "bare0"),
        link(5, "dummy0"),
        link(6, "old0"),
        link(7, "local0"),
    ];
    links[4].kind = LinkKind::Other("dummy".into());
    Sight {
        links,
        addresses: vec![
            held(1, "127.0.0.1", ""),
            held(2, "192.168.0.7", ""),
            held(3, "169.254.7.7", ""),
            held(3, "10.9.0.5", "d"),
            held(3, "10.9.0.4", "t"),
            held(3, "10.9.0.1", ""),
            held(3, "10.9.0.2", "s"),
            held(5, "10.8.0.1", ""),
            held(6, "10.7.0.1", "d"),
            held(7, "169.254.1.1", ""),
        ],
        ipv6: vec![held6(3, "fd99::3"), held6(4, "fd99::4")],
        ways: vec![way("0.0.0.0/0", &[2], 100), way("0.0.0.0/0", &[3], 200)],
        reached: None,
    }
}

fn flags(line: &str) -> Choice {
    let mut choice = Choice::default();
    let mut words = line.split_whitespace();
    while let (Some(flag), Some(value)) = (words.next(), words.next()) {
        match flag {
            "--iface" => choice.names.push(value.to_owned()),
            "--iface-regex" => choice.patterns.push(value.to_owned()),
            "--iface-can-reach" => choice.can_reach = value.parse().ok(),
            "--public-ip" => choice.public_ip = value.parse().ok(),
            other => panic!("{other}"),
        }
    }
    choice
}

/// Interface, address that packets come from, and public IP; or why there is none.
fn chosen(line: &str, sight: &Sight) -> Result<(String, String, String), String> {
    let choice = flags(line);
    let picked = pick(&choice, sight).map_err(|error| error.to_string())?;
    let public_ip = choice.public_ip(&picked).to_string();
    Ok((picked.name, picked.address.to_string(), public_ip))
}

#[test]
fn flags_choose_as_flannels_do() {
    let own = |name: &str, address: &str| Ok((name.to_owned(), address.to_owned(), address.to_owned()));
    for (line, expected) in [
        // Without flags: the default route with the lowest metric.
        ("", own("eth0", "192.168.0.7")),
        // By name: the first address that is not deprecated; those of the link and those with an end come last.
        ("--iface eth1", own("eth1", "10.9.0.1")),
        ("--iface eth0", own("eth0", "192.168.0.7")),
        ("--iface local0", own("local0", "169.254.1.1")),
        // By address: whatever its kind is.
        ("--iface 10.9.0.2", own("eth1", "10.9.0.2")),
        ("--iface 10.9.0.5", own("eth1", "10.9.0.5")),
        ("--iface 169.254.7.7", own("eth1", "169.254.7.7")),
        // A candidate that is not there, or has no address, gives way to the next.
        ("--iface nope --iface eth0", own("eth0", "192.168.0.7")),
        ("--iface bare0 --iface eth1", own("eth1", "10.9.0.1")),
        ("--iface lo --iface eth1", own("eth1", "10.9.0.1")),
        ("--iface old0 --iface eth1", own("eth1", "10.9.0.1")),
        ("--iface 10.0.0.99 --iface eth0", own("eth0", "192.168.0.7")),
        ("--iface nope --iface-regex th1$", own("eth1", "10.9.0.1")),
        ("--iface eth0 --iface-regex eth1", own("eth0", "192.168.0.7")),
        // By pattern: addresses first, in the order of the interfaces, then names.
        ("--iface-regex ^10\\.9\\.0\\.2$", own("eth1", "10.9.0.2")),
        ("--iface-regex 192", own("eth0", "192.168.0.7")),
        ("--iface-regex ^eth", own("eth0", "192.168.0.7")),
        ("--iface-regex ^10\\.9\\.", own("eth1", "10.9.0.1")),
        ("--iface-regex ^10\\.\\d{1,3}\\.", own("eth1", "10.9.0.1")),
        ("--iface-regex 0", own("eth0", "192.168.0.7")),
        ("--iface-regex 127 --iface-regex eth1", own("eth1", "10.9.0.1")),
        ("--iface-regex ^bare --iface-regex eth1", own("eth1", "10.9.0.1")),
        ("--iface-regex ( --iface-regex eth1", own("eth1", "10.9.0.1")),
        ("--iface-regex ^lo$ --iface-regex eth1", own("eth1", "10.9.0.1")),
        // By the route: its own source address counts.
        ("--iface-can-reach 10.20.0.1", own("eth1", "10.9.0.2")),
        ("--iface nope --iface-can-reach 10.20.0.1", own("eth1", "10.9.0.2")),
        ("--iface-regex ^wg --iface-can-reach 10.20.0.1", own("eth1", "10.9.0.2")),
        ("--iface eth0 --iface-can-reach 10.20.0.1", own("eth0", "192.168.0.7")),
        ("--iface-can-reach 10.9.0.4", own("eth1", "10.9.0.4")),
        // The public IP chooses the interface that holds it, and packets come from it.
        ("--public-ip 10.9.0.1", own("eth1", "10.9.0.1")),
        ("--public-ip 10.9.0.2", own("eth1", "10.9.0.2")),
        ("--iface eth1 --public-ip 10.9.0.2", own("eth1", "10.9.0.2")),
        ("--iface eth0 --public-ip 10.9.0.2", own("eth0", "10.9.0.2")),
    ] {
        let mut sight = host();
        sight.reached = Some(Ok(Route {
            destination: "10.20.0.0/16".parse().unwrap(),
            link: Some(3),
            gateway: None,
            source: Some([10, 9, 0, 2].into()),
            metric: 0,
            table: 254,
        }));
        assert_eq!(chosen(line, &sight), expected, "{line}");
    }
}

#[test]
fn a_nats_address_leaves_the_choice_to_the_rest() {
    let nats =
        |name: &str, address: &str| Ok((name.to_owned(), address.to_owned(), "203.0.113.9".to_owned()));
    assert_eq!(chosen("--public-ip 203.0.113.9", &host()), nats("eth0", "192.168.0.7"));
    assert_eq!(chosen("--iface eth1 --public-ip 203.0.113.9", &host()), nats("eth1", "10.9.0.1"));
}

#[test]
fn of_a_default_route_with_several_next_hops_the_first_counts() {
    let mut sight = host();
    sight.ways = vec![way("0.0.0.0/0", &[3, 2], 0)];
    assert_eq!(pick(&Choice::default(), &sight).unwrap().name, "eth1");
}

#[test]
fn an_address_on_lo_or_on_a_dummy_has_the_mtu_of_the_ways_out() {
    for line in ["--iface 10.8.0.1", "--iface dummy0", "--public-ip 10.8.0.1", "--iface 10.6.0.1"] {
        let mut sight = host();
        sight.addresses.push(held(1, "10.6.0.1", ""));
        sight.links[1].mtu = 9000;
        sight.links[2].mtu = 1400;
        sight.ways = vec![way("10.0.0.0/8", &[3], 0), way("0.0.0.0/0", &[2, 3], 0)];
        let picked = pick(&flags(line), &sight).unwrap();
        assert_eq!((picked.name.as_str(), picked.mtu), ("eth0", 1400), "{line}");
        // Without a default route, whatever leads to other hosts counts.
        sight.ways.truncate(1);
        let picked = pick(&flags(line), &sight).unwrap();
        assert_eq!((picked.name.as_str(), picked.mtu), ("eth1", 1400), "{line}");
        sight.ways.clear();
        let refused = pick(&flags(line), &sight).unwrap_err().to_string();
        assert!(refused.contains("by which no packet leaves") && refused.contains("--iface"), "{refused}");
    }
}

#[test]
fn refusals_name_what_was_asked_for() {
    for (line, says) in [
        ("--iface bare0", "interface bare0 has no IPv4 address: give it one"),
        ("--iface lo", "interface lo has no IPv4 address but 127.0.0.1 (which reaches no other host)"),
        ("--iface old0", "interface old0 has no IPv4 address but 10.7.0.1 (deprecated)"),
        (
            "--iface ens9 --iface 10.0.0.9 --iface-regex ^wg",
            "no interface matches --iface ens9, --iface 10.0.0.9, --iface-regex ^wg: `ip address`",
        ),
        ("--iface ens9 --iface bare0", "lists what there is; interface bare0 has no IPv4 address"),
        ("--iface-regex (", "--iface-regex (: "),
        ("--iface-regex ^127\\.", "no interface matches --iface-regex ^127"),
        ("--iface-can-reach 192.0.2.1", "no route leads to 192.0.2.1 (--iface-can-reach): unreachable"),
        ("--iface nope --iface-can-reach 192.0.2.1", "no interface matches --iface nope"),
        ("", "there is no default route"),
        ("--public-ip 203.0.113.9", "there is no default route"),
    ] {
        let mut sight = host();
        sight.ways.clear();
        sight.reached = Some(Err("unreachable".to_owned()));
        let refused = chosen(line, &sight).unwrap_err();
        assert!(refused.contains(says), "{line}: {refused}");
    }
}

#[test]
fn a_link_without_an_ethernet_header_is_refused_by_name() {
    let of = |link_type, kind| Link { link_type, kind, ..link(5, "wg0") };
    let other = |kind: &str| LinkKind::Other(kind.to_owned());
    for (link_type, kind, says) in [
        (LinkType::NONE, other("wireguard"), "interface wg0 is of link type none (wireguard), without"),
        (LinkType::NONE, LinkKind::Tun(Tun::default()), "interface wg0 is of link type none (tun), without"),
        (LinkType(768), other("ipip"), "interface wg0 is of link type ipip (ipip), without"),
        (LinkType(513), other(""), "interface wg0 is of link type [513], without"),
    ] {
        let why = unfit(&of(link_type, kind)).unwrap();
        assert!(why.starts_with(says) && why.contains("--iface"), "{why}");
    }
    for link_type in [LinkType::ETHERNET, LinkType::LOOPBACK] {
        assert_eq!(unfit(&of(link_type, other(""))), None);
    }
}
