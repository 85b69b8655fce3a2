//! Tests of the choice of the IPv6 address: a table of what an interface may have.
use super::*;
use crate::host::netlink::LinkKind;

/// An address: `T` in its flags is tentative, `f` a duplicate, `d` deprecated, `p` a temporary one for privacy, `e` has an end.
fn held(link: u32, address: &str, flags: &str) -> Ipv6Address {
    Ipv6Address {
        link,
        address: address.parse().unwrap(),
        is_tentative: flags.contains('T'),
        is_duplicate: flags.contains('f'),
        is_deprecated: flags.contains('d'),
        is_temporary: flags.contains('p'),
        is_permanent: !flags.contains('e'),
    }
}

/// What is chosen on eth0, which has interface index 2: `address` or `address as public address`.
fn chosen(options: &str, addresses: &[Ipv6Address]) -> Result<String, NoIpv6> {
    let mut links: Vec<Link> = ["lo", "eth0", "eth1", "dummy0"]
        .iter()
        .zip(1..)
        .map(|(name, index)| Link::example(index, name, LinkKind::Other(String::new())))
        .collect();
    links[3].kind = LinkKind::Other("dummy".into());
    let underlay =
        Underlay { name: "eth0".into(), ifindex: 2, mac: None, mtu: 1500, address: [10, 99, 0, 1].into() };
    let mut choice = Choice::default();
    let words: Vec<&str> = options.split_whitespace().collect();
    for pair in words.chunks(2) {
        match pair {
            ["--public-ipv6", address] => choice.public_ipv6 = address.parse().ok(),
            ["--iface", name] => choice.names.push((*name).to_owned()),
            other => panic!("{other:?}"),
        }
    }
    pick_ipv6(&choice, &underlay, &links, addresses).map(|Ipv6Underlay { address, public_ip }| {
        if address == public_ip { address.to_string() } else { format!("{address} as {public_ip}") }
    })
}

#[test]
fn an_address_that_stays_is_chosen() {
    type Held = (u32, &'static str, &'static str);
    let cases: &[(&str, &[Held], &str)] = &[
        ("", &[(2, "fe80::1", ""), (2, "fd99::1", "")], "fd99::1"),
        // Those of other interfaces are none, nor are those that go.
        (
            "",
            &[(3, "2001:db8::1", ""), (2, "fd99::9", "p"), (2, "fd99::8", "d"), (2, "fd99::7", "e")],
            "fd99::7",
        ),
        ("", &[(2, "fd99::1", "e"), (2, "fd99::2", "")], "fd99::2"),
        ("", &[(2, "fd99::1", "T"), (2, "fd99::3", "f"), (2, "fd99::2", "")], "fd99::2"),
        // Whatever the kernel's order, the choice is the same.
        ("", &[(2, "fd99::5", ""), (2, "fd99::4", "")], "fd99::4"),
        ("", &[(2, "fd99::4", ""), (2, "fd99::5", "")], "fd99::4"),
        ("--iface fd99::5", &[(2, "fd99::4", ""), (2, "fd99::5", "e")], "fd99::5"),
        ("--iface eth0", &[(2, "fd99::4", "")], "fd99::4"),
        ("--public-ipv6 fd99::5", &[(2, "fd99::4", ""), (2, "fd99::5", "")], "fd99::5"),
        // The operator may know better what stays.
        ("--public-ipv6 fd99::5", &[(2, "fd99::4", ""), (2, "fd99::5", "de")], "fd99::5"),
        ("--public-ipv6 fd77::1", &[(2, "fd99::4", ""), (4, "fd77::1", "")], "fd77::1"),
        // It is on no interface: a router's.
        ("--public-ipv6 2001:db8::7", &[(2, "fd99::4", "")], "fd99::4 as 2001:db8::7"),
    ];
    for (options, addresses, expected) in cases {
        let addresses: Vec<_> =
            addresses.iter().map(|&(link, address, flags)| held(link, address, flags)).collect();
        assert_eq!(chosen(options, &addresses).as_deref(), Ok(*expected), "{options} {addresses:?}");
    }
}

#[test]
fn why_there_is_none_is_told_with_every_address() {
    let absent = |addresses: &[Ipv6Address]| match chosen("", addresses) {
        Err(NoIpv6::Absent(why)) => why,
        other => panic!("{other:?}"),
    };
    let bare = absent(&[held(3, "fd99::1", "")]);
    assert!(
        bare.starts_with("interface eth0 has no IPv6 address that other hosts can rely on: give it"),
        "{bare}"
    );
    let why = absent(&[
        held(2, "fe80::1", ""),
        held(2, "fd99::1", "p"),
        held(2, "fd99::2", "d"),
        held(2, "fd99::3", "Tf"),
        held(2, "fec0::1", ""),
    ]);
    for part in [
        "but fe80::1 (which is its link's alone), fd99::1 (temporary), fd99::2 (deprecated), fd99::3 (which another host on the \
         link has, too), fec0::1 (which",
        "--public-ipv6",
    ] {
        assert!(why.contains(part), "{why}");
    }
    // Even a router's address needs one of this host that packets come from.
    assert!(matches!(chosen("--public-ipv6 2001:db8::7", &[]), Err(NoIpv6::Absent(_))));
}

#[test]
fn an_address_that_will_be_confirmed_is_worth_waiting_for() {
    for options in ["", "--public-ipv6 fd99::1"] {
        let waits = chosen(options, &[held(2, "fe80::1", ""), held(2, "fd99::1", "T")]).unwrap_err();
        assert!(
            matches!(&waits, NoIpv6::NotYet(why) if why.contains("fd99::1, an address of eth0")),
            "{waits:?}"
        );
    }
    assert!(matches!(chosen("", &[held(2, "fe80::1", "T")]), Err(NoIpv6::Absent(_))));
}

#[test]
fn an_address_that_cannot_be_had_is_refused() {
    for (address, says) in [
        (
            held(3, "fd99::1", ""),
            "--public-ipv6 fd99::1 is an address of eth1, but eth0 is the underlay interface",
        ),
        (held(2, "fd99::1", "Tf"), "--public-ipv6 fd99::1: another host on the link of eth0"),
    ] {
        let refused = chosen("--public-ipv6 fd99::1", &[address]).unwrap_err();
        assert!(matches!(&refused, NoIpv6::Refused(why) if why.starts_with(says)), "{refused:?}");
    }
}
