//! Tests of the peer table: every reason to skip a lease, subnets with two claims, leases that expand into several entries, and
//! the difference in both directions.
use std::net::IpAddr;

use bytes::Bytes;

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
        own_ip: IpAddr::from([10, 99, 0, 1]),
        own_subnet: net("10.244.1.0/24"),
        ipv6: None,
    }
}

fn peer(n: u8) -> Peer {
    Peer { public_ip: IpAddr::from([10, 99, 0, n]), vtep_mac: Some(Mac([2, 0, 0, 0, 0, n])), ipv6: None }
}

fn entry(key: &str, value: &str, modified: i64) -> LeaseEntry {
    LeaseEntry {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        modified: Revision(modified),
        lifetime: crate::store::Lifetime::Limited,
    }
}

fn lease(key: &str, n: u8, modified: i64) -> LeaseEntry {
    let value = format!(
        r#"{{"PublicIP":"10.99.0.{n}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{n:02x}"}}}}"#
    );
    entry(key, &value, modified)
}

fn put(table: &mut PeerTable, entry: LeaseEntry) -> BTreeSet<IpNet> {
    table.change(&store::Batch { revision: entry.modified, changes: vec![store::LeaseChange::Put(entry)] })
}

fn delete(table: &mut PeerTable, key: &str) -> BTreeSet<IpNet> {
    let changes = vec![store::LeaseChange::Delete { key: key.to_owned() }];
    table.change(&store::Batch { revision: Revision(99), changes })
}

#[test]
fn leases_that_give_no_peer_are_named_and_the_others_still_count() {
    let [from_1, from_3, from_9] = [1, 3, 9].map(|n| lease("", n, 1).value);
    let text = |value| str::from_utf8(value).unwrap();
    let cases = [
        ("10.244.3.0-24", "{", "not JSON"),
        ("nonsense", r#"{"PublicIP":"10.99.0.3"}"#, "not of the form"),
        ("10.244.4.0-24", r#"{"PublicIP":"10.99.0.3","BackendType":"host-gw"}"#, "host-gw"),
        ("10.244.5.0-24", r#"{"PublicIP":"10.99.0.3"}"#, "BackendType is missing"),
        ("10.245.5.0-24", text(&from_3), "not inside"),
        ("10.244.6.0-25", text(&from_3), "/25"),
        ("10.244.7.0-24", text(&from_1), "own public IP"),
        ("10.244.1.0-24", text(&from_9), "subnet of this host"),
        (
            "10.244.8.0-24",
            r#"{"PublicIP":"10.99.0.3","BackendType":"vxlan","BackendData":{"VNI":2,"VtepMAC":"02:00:00:00:00:03"}}"#,
            "VNI is 2, not 1",
        ),
    ];
    let mut entries: Vec<LeaseEntry> = cases.iter().map(|(key, value, _)| entry(key, value, 1)).collect();
    entries.push(lease("10.244.2.0-24", 2, 1));
    let mut table = PeerTable::new(scope());
    table.snapshot(&store::Snapshot { revision: Revision(5), cluster: 1, entries });
    assert_eq!(table.wanted().collect::<Vec<_>>(), [(net("10.244.2.0/24"), peer(2), Revision(1))]);
    let skipped = table.skipped();
    assert_eq!(skipped.len(), cases.len(), "{skipped:?}");
    for (key, _, why) in cases {
        let found = skipped.iter().find(|skipped| skipped.key == key).unwrap();
        assert!(found.why.contains(why), "{key}: {}", found.why);
    }
    // A good value under the same key ends the complaint.
    put(&mut table, lease("10.244.3.0-24", 3, 6));
    assert!(!table.skipped().iter().any(|skipped| skipped.key == "10.244.3.0-24"));
    assert_eq!(table.len(), 2);
}

#[test]
fn own_lease_is_neither_a_peer_nor_a_complaint() {
    let mut table = PeerTable::new(scope());
    assert!(put(&mut table, lease("10.244.1.0-24", 1, 1)).is_empty());
    assert!(table.is_empty() && table.skipped().is_empty());
}

#[test]
fn the_last_writer_holds_a_subnet_and_the_loser_comes_back_when_it_goes() {
    let mut table = PeerTable::new(scope());
    let subnet = net("10.244.2.0/24");
    put(&mut table, lease("10.244.2.0-24&fd00::-64", 3, 7));
    put(&mut table, lease("10.244.2.0-24", 2, 5));
    assert_eq!(table.get(&subnet), Some(peer(3)));
    assert_eq!(table.skipped()[0].key, "10.244.2.0-24");
    assert_eq!(delete(&mut table, "10.244.2.0-24&fd00::-64"), BTreeSet::from([subnet]));
    assert_eq!(table.get(&subnet), Some(peer(2)));
    assert!(table.skipped().is_empty());
}

#[test]
fn a_shorter_lease_expands_around_the_own_subnet() {
    let mut table = PeerTable::new(scope());
    let touched = put(&mut table, lease("10.244.0.0-22", 2, 1));
    let expected = [net("10.244.0.0/24"), net("10.244.2.0/24"), net("10.244.3.0/24")];
    assert_eq!(touched, BTreeSet::from(expected));
    assert_eq!(table.len(), 3);
    assert_eq!(delete(&mut table, "10.244.0.0-22").len(), 3);
    assert!(table.is_empty());
    let narrow = Scope { subnet_len: 30, ..scope() };
    let mut table = PeerTable::new(narrow);
    put(&mut table, lease("10.244.0.0-16", 2, 1));
    assert!(table.is_empty() && table.skipped().len() == 1);
}

#[test]
fn deleting_an_unknown_key_touches_nothing() {
    assert!(delete(&mut PeerTable::new(scope()), "10.244.9.0-24").is_empty());
}

#[test]
fn difference_goes_both_ways_and_a_changed_peer_is_one_put() {
    let mut table = PeerTable::new(scope());
    put(&mut table, lease("10.244.2.0-24", 2, 1));
    put(&mut table, lease("10.244.3.0-24", 3, 1));
    put(&mut table, lease("10.244.4.0-24", 4, 1));
    let mut installed = BTreeMap::from([
        (net("10.244.2.0/24"), peer(2)),
        (net("10.244.3.0/24"), Peer { vtep_mac: Some(Mac([2; 6])), ..peer(3) }),
        (net("10.244.0.0/24"), peer(9)),
    ]);
    assert_eq!(
        diff(&table, &installed),
        [
            PeerChange::Put(net("10.244.3.0/24"), peer(3)),
            PeerChange::Put(net("10.244.4.0/24"), peer(4)),
            PeerChange::Remove(net("10.244.0.0/24")),
        ]
    );
    installed = table.wanted().map(|(subnet, peer, _)| (subnet, peer)).collect();
    assert!(diff(&table, &installed).is_empty());
}
