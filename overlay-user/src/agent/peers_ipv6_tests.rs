//! Tests of the peer table in a network of both families: halves that are left out, and IPv6 subnets with two claims.
use super::*;
use crate::model::{backend::Backend, mac::Mac};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn scope() -> Scope {
    Scope {
        network: net("10.244.0.0/16"),
        subnet_len: 24,
        backend: Backend::DEFAULT,
        own_ip: [10, 99, 0, 1].into(),
        own_subnet: net("10.244.1.0/24"),
        ipv6: Some(Ipv6Scope {
            network: net("fd00:244::/48"),
            subnet_len: 64,
            own_ip: "fd99::1".parse().unwrap(),
            own_subnet: net("fd00:244:0:1::/64"),
        }),
    }
}

/// The peer that `dual` and `key` name.
fn peer(n: u8) -> Peer {
    Peer {
        public_ip: [10, 99, 0, n].into(),
        vtep_mac: Some(Mac([2, 0, 0, 0, 0, n])),
        ipv6: Some(PeerIpv6 {
            subnet: net(&format!("fd00:244:0:{n}::/64")),
            public_ip: format!("fd99::{n}").parse().unwrap(),
            vtep_mac: Some(Mac([6, 0, 0, 0, 0, n])),
        }),
    }
}

fn ipv4(n: u8) -> Peer {
    Peer { ipv6: None, ..peer(n) }
}

fn dual(n: u8) -> String {
    format!(
        r#"{{"PublicIP":"10.99.0.{n}","PublicIPv6":"fd99::{n}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{n:02x}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"06:00:00:00:00:{n:02x}"}}}}"#
    )
}

fn key(n: u8) -> String {
    format!("10.244.{n}.0-24&fd00:244:0:{n}::-64")
}

fn subnet(n: u8) -> IpNet {
    net(&format!("10.244.{n}.0/24"))
}

fn put(table: &mut PeerTable, key: &str, value: &str, modified: i64) -> Vec<IpNet> {
    let entry = LeaseEntry {
        key: key.to_owned(),
        value: value.to_owned().into(),
        modified: Revision(modified),
        lifetime: store::Lifetime::Limited,
    };
    change(table, vec![store::LeaseChange::Put(entry)])
}

fn change(table: &mut PeerTable, changes: Vec<store::LeaseChange>) -> Vec<IpNet> {
    table.change(&store::Batch { revision: Revision(99), changes }).into_iter().collect()
}

#[test]
fn a_peer_has_both_halves_where_this_host_has_both() {
    let mut table = PeerTable::new(scope());
    assert_eq!(put(&mut table, &key(2), &dual(2), 1), [subnet(2)]);
    put(&mut table, "10.244.3.0-24", &dual(3), 2);
    assert_eq!((table.get(&subnet(2)), table.get(&subnet(3))), (Some(peer(2)), Some(ipv4(3))));
    assert_eq!(table.skipped(), []);
    // A host without IPv6 takes nothing of it from leases, and complains of nothing.
    let mut table = PeerTable::new(Scope { ipv6: None, ..scope() });
    put(&mut table, &key(2), &dual(2), 1);
    put(&mut table, &key(3), &dual(3).replace("BackendV6Data", "X"), 1);
    assert_eq!((table.get(&subnet(2)), table.get(&subnet(3))), (Some(ipv4(2)), Some(ipv4(3))));
    assert_eq!(table.skipped(), []);
}

#[test]
fn a_half_that_cannot_be_used_leaves_the_peer_of_ipv4() {
    let mut table = PeerTable::new(scope());
    let v6 = |subnet: &str| format!("10.244.7.0-24&{subnet}");
    for (key, value, says) in [
        (v6("fd00:244:0:7::-64"), dual(7).replace("BackendV6Data", "X"), "BackendV6Data is missing"),
        (v6("fd00:244:0:7::-64"), dual(7).replace("\"fd99::7\"", "null"), "PublicIPv6 is missing"),
        (v6("fd00:244:0:7::-64"), dual(7).replace("fd99::7", "fd99::1"), "fd99::1 is this host's own IPv6"),
        (
            v6("fd00:244:0:7::-64"),
            dual(7).replace(r#""VNI":1,"VtepMAC":"06"#, r#""VNI":9,"VtepMAC":"06"#),
            "VNI is 9, not 1",
        ),
        (v6("fd00:244:0:7::1-64"), dual(7), "fd00:244:0:7::1 is not the first address of a /64"),
        (v6("fd00:245::-64"), dual(7), "fd00:245::/64 is not inside fd00:244::/48"),
        (v6("fd00:244:0:10::-60"), dual(7), "fd00:244:0:10::/60 is a /60 in a network of /64 subnets"),
        (v6("fd00:244:0:7::-80"), dual(7), "is a /80 in a network of /64 subnets"),
        (
            v6("fd00:244:0:1::-64"),
            dual(7),
            "10.99.0.7 claims fd00:244:0:1::/64, the IPv6 subnet of this host",
        ),
        (v6("fd00:244::-60"), dual(7), "fd00:244::/60 is a /60 in a network of /64 subnets"),
    ] {
        put(&mut table, &key, &value, 5);
        assert_eq!(table.get(&subnet(7)), Some(ipv4(7)), "{key}");
        let skipped = table.skipped();
        let [Skipped { key: named, why, is_ipv6_only: true }] = &skipped[..] else { panic!("{skipped:?}") };
        assert!(*named == key && why.contains(says), "{key}: {why}");
        assert_eq!(skipped[0].lacks(), "gives no peer of IPv6, only one of IPv4");
        change(&mut table, vec![store::LeaseChange::Delete { key }]);
        assert_eq!((table.len(), table.skipped().len()), (0, 0));
    }
    // What is wrong with the IPv4 half costs both.
    put(&mut table, "10.245.7.0-24&fd00:244:0:7::-64", &dual(7), 5);
    assert!(table.is_empty() && !table.skipped()[0].is_ipv6_only);
}

#[test]
fn of_two_claims_to_an_ipv6_subnet_the_later_holds_and_the_other_keeps_ipv4() {
    let mut table = PeerTable::new(scope());
    let rival = "10.244.8.0-24&fd00:244:0:7::-64";
    put(&mut table, &key(7), &dual(7), 5);
    // The other peer changes, too, although nobody wrote its lease.
    assert_eq!(put(&mut table, rival, &dual(8), 6), [subnet(7), subnet(8)]);
    let half = PeerIpv6 { subnet: net("fd00:244:0:7::/64"), ..peer(8).ipv6.unwrap() };
    let holder = Peer { ipv6: Some(half), ..peer(8) };
    assert_eq!((table.get(&subnet(7)), table.get(&subnet(8))), (Some(ipv4(7)), Some(holder)));
    let skipped = table.skipped();
    let [Skipped { key: named, why, is_ipv6_only: true }] = &skipped[..] else { panic!("{skipped:?}") };
    assert_eq!(*named, key(7));
    assert_eq!(*why, format!("fd00:244:0:7::/64 is leased twice; {rival} was written later and holds it"));
    // The loser writes again, and holds it.
    assert_eq!(put(&mut table, &key(7), &dual(7), 7), [subnet(7), subnet(8)]);
    assert_eq!((table.get(&subnet(7)), table.get(&subnet(8))), (Some(peer(7)), Some(ipv4(8))));
    // It goes, and the other has it back.
    let gone = change(&mut table, vec![store::LeaseChange::Delete { key: key(7) }]);
    assert_eq!(gone, [subnet(7), subnet(8)]);
    assert_eq!((table.get(&subnet(8)), table.skipped().len()), (Some(holder), 0));
    assert_eq!(table.wanted().map(|(subnet, ..)| subnet).collect::<Vec<_>>(), [subnet(8)]);
}

#[test]
fn a_lease_that_is_cut_into_several_entries_has_one_half() {
    let mut table = PeerTable::new(scope());
    put(&mut table, "10.244.2.0-23&fd00:244:0:2::-64", &dual(2), 1);
    assert_eq!((table.get(&subnet(2)), table.get(&subnet(3))), (Some(peer(2)), Some(ipv4(2))));
}
