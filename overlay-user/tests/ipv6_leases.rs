//! Leases of both families: what stands in the store, how IPv6 is switched on and off in a live network, and races. What depends
//! on the store is run on every store.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, sync::Barrier, thread, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use ipnet::IpNet;
use overlay_lab::etcd::Etcd;
use overlay_user::{
    model::{backend::Backend, lease::decode_halves, network::NetworkConfig},
    store::{
        Batch, Follow, LeaseChange, LeaseEntry, Lifetime, Revision, Store, StoreError, Written,
        acquire::{self, Ipv6Request, LeaseRequest, LocalLease, acquire},
        dir::DirStore,
        etcd::{EtcdOptions, EtcdStore},
        memory::MemoryStore,
    },
};
use tempfile::TempDir;

const IPV4: &str = r#""Network":"10.0.0.0/20","Backend":{"Type":"vxlan"}"#;
const MAC: &str = "02:76:03:0f:23:cb";
const HOUR: Option<Duration> = Some(Duration::from_secs(3600));

fn ipv4_only() -> NetworkConfig {
    NetworkConfig::parse(format!("{{{IPV4}}}").as_bytes()).unwrap()
}

/// The same network with IPv6: 63 subnets to lease.
fn both() -> NetworkConfig {
    with_ipv6(r#""IPv6Network":"fd00::/58""#)
}

fn with_ipv6(fields: &str) -> NetworkConfig {
    let text = format!(r#"{{{IPV4},"EnableIPv6":true,{fields}}}"#);
    NetworkConfig::parse_both_families(text.as_bytes()).unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn request(host: u8) -> LeaseRequest {
    LeaseRequest {
        public_ip: [192, 168, 0, host].into(),
        former_ip: None,
        backend: Backend::DEFAULT,
        vtep_mac: Some(MAC.parse().unwrap()),
        preferred: None,
        ipv6: Some(Ipv6Request { public_ip: format!("fd99::{host:x}").parse().unwrap(), preferred: None }),
        time_to_live: acquire::TIME_TO_LIVE,
    }
}

/// A host without an IPv6 address.
fn bare(host: u8) -> LeaseRequest {
    LeaseRequest { ipv6: None, ..request(host) }
}

fn preferring(host: u8, ipv6: &str) -> LeaseRequest {
    let asked = request(host).ipv6.unwrap();
    LeaseRequest { ipv6: Some(Ipv6Request { preferred: Some(net(ipv6)), ..asked }), ..request(host) }
}

/// A lease as flanneld writes it, with another MAC address for the device of IPv6.
fn dual_value(host: u8) -> String {
    format!(
        r#"{{"PublicIP":"192.168.0.{host}","PublicIPv6":"fd99::{host:x}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{MAC}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"02:76:03:0f:23:66"}}}}"#
    )
}

fn ipv4_value(host: u8) -> String {
    format!(
        r#"{{"PublicIP":"192.168.0.{host}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{MAC}"}}}}"#
    )
}

fn at(written: Written) -> Revision {
    match written {
        Written::At(revision) => revision,
        Written::Lost => panic!("the write lost"),
    }
}

async fn entries(store: &mut impl Store) -> Vec<LeaseEntry> {
    store.snapshot().await.unwrap().entries
}

async fn texts(store: &mut impl Store) -> Vec<(String, String)> {
    let text = |value: &Bytes| String::from_utf8(value.to_vec()).unwrap();
    entries(store).await.iter().map(|entry| (entry.key.clone(), text(&entry.value))).collect()
}

fn ipv6_of(held: &LocalLease) -> IpNet {
    held.lease.ipv6.as_ref().unwrap().subnet
}

/// The next batch with changes.
async fn next(follow: &mut impl Follow) -> Result<Batch, StoreError> {
    loop {
        let batch = tokio::time::timeout(Duration::from_secs(20), follow.next());
        let batch = batch.await.expect("a batch within 20 s")?;
        if !batch.changes.is_empty() {
            return Ok(batch);
        }
    }
}

fn etcd() -> (TempDir, Etcd, EtcdStore) {
    let folder = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(folder.path()).unwrap();
    let options = EtcdOptions {
        endpoints: vec![etcd.client_url()],
        prefix: "/coreos.com/network".to_owned(),
        ..EtcdOptions::default()
    };
    (folder, etcd, EtcdStore::new(&options).unwrap())
}

fn alone<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(work)
}

#[tokio::test]
async fn a_new_host_leases_a_subnet_of_each_family() {
    let mut store = MemoryStore::default();
    let held = acquire(&mut store, &both(), &request(1)).await.unwrap();
    assert!(both().plan.fits(held.lease.subnet) && both().ipv6.unwrap().fits(ipv6_of(&held)));
    let key = format!("{}-24&{}-64", held.lease.subnet.addr(), ipv6_of(&held).addr());
    // overlay0 serves both families, and has one MAC address.
    let value = dual_value(1).replace("02:76:03:0f:23:66", MAC);
    assert_eq!(texts(&mut store).await, [(key, value)]);
    // It is found again, and nothing is drawn.
    let again = acquire(&mut store, &both(), &request(1)).await.unwrap();
    assert_eq!(again.lease, held.lease);
    // Its IPv6 address is no identity: another one is written into the same lease.
    let public_ip = "fd99::77".parse().unwrap();
    let ipv6 = Some(Ipv6Request { public_ip, ..request(1).ipv6.unwrap() });
    let moved = acquire(&mut store, &both(), &LeaseRequest { ipv6, ..request(1) }).await.unwrap();
    assert_eq!((moved.lease.key(), moved.lease.ipv6.unwrap().public_ip), (held.lease.key(), public_ip));
    assert_eq!(entries(&mut store).await.len(), 1);
}

#[tokio::test]
async fn each_family_has_its_own_preference_and_its_own_draw() {
    let mut store = MemoryStore::default();
    store.put("10.0.7.0-24&fd00:0:0:7::-64", dual_value(7), HOUR);
    let prefer = |host, subnet: &str, ipv6: &str| LeaseRequest {
        preferred: Some(net(subnet)),
        ..preferring(host, ipv6)
    };
    let held = acquire(&mut store, &both(), &prefer(1, "10.0.5.0/24", "fd00:0:0:9::/64")).await.unwrap();
    assert_eq!(held.lease.key(), "10.0.5.0-24&fd00:0:0:9::-64");
    // Another host's IPv6 subnet, or one outside of the config, is no reason to lose the IPv4 subnet.
    for (host, ipv6) in [(2, "fd00:0:0:7::/64"), (3, "fd00:0:1::/64"), (4, "fd00:0:0:8::/65")] {
        let held =
            acquire(&mut store, &both(), &prefer(host, &format!("10.0.{host}.0/24"), ipv6)).await.unwrap();
        assert_eq!(held.lease.subnet, net(&format!("10.0.{host}.0/24")));
        assert_ne!(ipv6_of(&held), net(ipv6));
        assert!(both().ipv6.unwrap().fits(ipv6_of(&held)));
    }
    // And the other way around.
    let held = acquire(&mut store, &both(), &prefer(5, "10.0.7.0/24", "fd00:0:0:20::/64")).await.unwrap();
    assert_ne!(held.lease.subnet, net("10.0.7.0/24"));
    assert_eq!(ipv6_of(&held), net("fd00:0:0:20::/64"));
}

/// F1: a flanneld without EnableIPv6 ends over any key with an IPv6 subnet. F3: one of both families ends over such a key without
/// an IPv6 address.
#[tokio::test]
async fn f1_f3_no_ipv6_subnet_where_the_config_has_none_or_the_host_has_no_address() {
    for (config, request) in
        [(ipv4_only(), preferring(1, "fd00:0:0:9::/64")), (ipv4_only(), bare(1)), (both(), bare(1))]
    {
        let mut store = MemoryStore::default();
        let held = acquire(&mut store, &config, &request).await.unwrap();
        assert_eq!(held.lease.ipv6, None);
        let key = format!("{}-24", held.lease.subnet.addr());
        assert_eq!(texts(&mut store).await, [(key, ipv4_value(1))]);
    }
}

/// F2 and F3: whatever this host writes has all of IPv6 or nothing of it.
#[tokio::test]
async fn f2_f3_what_is_written_is_whole() {
    for backend in ["vxlan", "host-gw"] {
        let mut store = MemoryStore::default();
        let request = LeaseRequest { backend: Backend::named(backend).unwrap(), ..request(1) };
        let held = acquire(&mut store, &both(), &request).await.unwrap();
        let [(key, value)] = &texts(&mut store).await[..] else { panic!() };
        let (lease, bad) = decode_halves(key, value.as_bytes()).unwrap();
        assert_eq!((&lease, bad), (&held.lease, None));
        assert!(lease.ipv6.is_some());
        assert_eq!(value.contains("BackendV6Data"), backend == "vxlan", "{value}");
    }
}

/// F4: flanneld deletes a lease of the other form, and draws a new IPv4 subnet under running containers. Here one revision takes
/// the key of one form away and brings that of the other, with the same IPv4 subnet and MAC address.
async fn switch_on_and_off(mut a: impl Store, mut b: impl Store) {
    let first = acquire(&mut a, &ipv4_only(), &bare(1)).await.unwrap();
    let other = acquire(&mut b, &ipv4_only(), &bare(2)).await.unwrap();
    let revision = b.snapshot().await.unwrap().revision;
    let mut follow = b.follow(revision).await.unwrap();
    let old = first.lease.key();

    let on = acquire(&mut a, &both(), &request(1)).await.unwrap();
    assert_eq!((on.lease.subnet, &on.lease.backend), (first.lease.subnet, &first.lease.backend));
    let batch = next(&mut follow).await.unwrap();
    assert_eq!(batch.revision, on.modified);
    // The deletion comes first: a flanneld that heard it last would take it for the end of the new lease.
    let [LeaseChange::Delete { key }, LeaseChange::Put(entry)] = &batch.changes[..] else {
        panic!("{batch:?}")
    };
    assert_eq!((key, &entry.key, entry.lifetime), (&old, &on.lease.key(), Lifetime::Limited));
    assert_eq!(entry.value, on.lease.value());

    let mut kept = on.clone();
    acquire::renew(&mut a, &mut kept).await.unwrap();
    assert_eq!(kept.modified, on.modified, "the key is renewed under its new name");

    let off = acquire(&mut a, &ipv4_only(), &request(1)).await.unwrap();
    assert_eq!(off.lease, first.lease);
    let batch = next(&mut follow).await.unwrap();
    let [LeaseChange::Delete { key }, LeaseChange::Put(entry)] = &batch.changes[..] else {
        panic!("{batch:?}")
    };
    assert_eq!((key, &entry.key), (&on.lease.key(), &old));

    // On again: the record knows the IPv6 subnet that the containers had.
    let again = acquire(&mut a, &both(), &preferring(1, &ipv6_of(&on).to_string())).await.unwrap();
    assert_eq!(again.lease, on.lease);
    // A host that has lost its IPv6 address meanwhile goes on with IPv4.
    let lost = acquire(&mut a, &both(), &bare(1)).await.unwrap();
    assert_eq!(lost.lease, first.lease);
    let keys: BTreeSet<_> = entries(&mut a).await.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, [old, other.lease.key()].into());
}

#[tokio::test]
async fn f4_switching_ipv6_keeps_the_ipv4_subnet_in_memory() {
    let store = MemoryStore::default();
    switch_on_and_off(store.clone(), store).await;
}

#[tokio::test]
async fn f4_switching_ipv6_keeps_the_ipv4_subnet_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    switch_on_and_off(DirStore::new(folder.path()), DirStore::new(folder.path())).await;
}

#[tokio::test]
async fn f4_switching_ipv6_keeps_the_ipv4_subnet_in_etcd() {
    let (_folder, etcd, store) = etcd();
    switch_on_and_off(store.clone(), store).await;
    let leases = etcd.ctl(&["lease", "list"]).unwrap();
    assert!(leases.starts_with("found 2 leases"), "one for each key: {leases}");
}

/// What every store must do when one key takes another's place.
async fn replacing(mut store: impl Store) {
    let value = || Bytes::from_static(b"x");
    let (ipv4, dual, other) = ("10.0.1.0-24", "10.0.1.0-24&fd00:0:0:1::-64", "10.0.1.0-24&fd00:0:0:2::-64");
    let made = at(store.claim(ipv4, value(), HOUR).await.unwrap());
    // The same IPv4 subnet under another key is taken. What merely begins alike is not.
    assert_eq!(store.claim(dual, value(), HOUR).await.unwrap(), Written::Lost);
    at(store.claim("10.0.1.0-25", value(), HOUR).await.unwrap());
    let neighbour = at(store.claim("10.0.16.0-24&fd00::-64", value(), HOUR).await.unwrap());
    assert_eq!(store.claim("10.0.16.0-24", value(), HOUR).await.unwrap(), Written::Lost);

    for (old, modified, key) in [
        (ipv4, Revision(made.0 - 1), dual),
        ("10.0.9.0-24", made, dual),
        ("10.0.16.0-24&fd00::-64", neighbour, dual),
    ] {
        let lost = store.replace(old, modified, key, value(), HOUR).await.unwrap();
        assert_eq!(lost, Written::Lost, "{old} {key}");
    }
    let before = entries(&mut store).await;
    let replaced = at(store.replace(ipv4, made, dual, value(), HOUR).await.unwrap());
    assert!(replaced > neighbour);
    let last = at(store.replace(dual, replaced, other, value(), None).await.unwrap());
    let after = entries(&mut store).await;
    assert_eq!(after.len(), before.len());
    let entry = after.iter().find(|entry| entry.key == other).unwrap();
    assert_eq!((entry.modified, entry.lifetime), (last, Lifetime::Reserved));
    assert!(after.iter().all(|entry| entry.key != ipv4 && entry.key != dual));
    // A subnet that moves has its new place guarded as well.
    let moved = store.replace(other, last, "10.0.16.0-24", value(), HOUR).await.unwrap();
    assert_eq!(moved, Written::Lost);
    let moved = store.replace(other, last, "10.0.17.0-24", value(), HOUR).await.unwrap();
    assert!(matches!(moved, Written::At(_)));
}

#[tokio::test]
async fn one_key_takes_anothers_place_in_every_store() {
    replacing(MemoryStore::default()).await;
    let folder = tempfile::tempdir().unwrap();
    replacing(DirStore::new(folder.path())).await;
    let (_folder, etcd, store) = etcd();
    replacing(store).await;
    let leases = etcd.ctl(&["lease", "list"]).unwrap();
    assert!(leases.starts_with("found 3 leases"), "those of replaced keys are revoked: {leases}");
}

/// What another handle reads of a folder after one file took another's place is a lease with an end, as it was.
#[tokio::test]
async fn a_folder_keeps_lifetimes_where_files_change_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = DirStore::new(folder.path());
    let on = async |config, request: LeaseRequest| {
        acquire(&mut DirStore::new(folder.path()), &config, &request).await.unwrap()
    };
    on(ipv4_only(), bare(1)).await;
    let held = on(both(), request(1)).await;
    let entries = entries(&mut store).await;
    assert_eq!((entries.len(), entries[0].lifetime), (1, Lifetime::Limited));
    let files = std::fs::read_dir(folder.path().join("subnets")).unwrap();
    let names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names, [held.lease.key().as_str()]);
}

#[tokio::test]
async fn another_ipv6_network_moves_the_ipv6_subnet_alone() {
    let mut store = MemoryStore::default();
    let before = acquire(&mut store, &both(), &request(1)).await.unwrap();
    let config = with_ipv6(r#""IPv6Network":"fd77::/48","IPv6SubnetLen":60"#);
    let after = acquire(&mut store, &config, &request(1)).await.unwrap();
    assert_eq!(after.lease.subnet, before.lease.subnet);
    assert_eq!(after.lease.backend, before.lease.backend);
    assert!(config.ipv6.unwrap().fits(ipv6_of(&after)));
    assert_eq!(entries(&mut store).await.len(), 1);
    // Another IPv4 network moves the IPv4 subnet alone.
    let text = br#"{"Network":"10.9.0.0/16","EnableIPv6":true,"IPv6Network":"fd77::/48","IPv6SubnetLen":60,"Backend":{"Type":"vxlan"}}"#;
    let config = NetworkConfig::parse_both_families(text).unwrap();
    let moved = acquire(&mut store, &config, &request(1)).await.unwrap();
    assert!(config.plan.fits(moved.lease.subnet));
    assert_eq!(ipv6_of(&moved), ipv6_of(&after));
    assert_eq!(entries(&mut store).await.len(), 1);
}

#[tokio::test]
async fn a_reservation_stays_one_in_either_form() {
    // An operator reserves both subnets, and leaves the rest to the host.
    let mut store = MemoryStore::default();
    let key = "10.0.7.0-24&fd00:0:0:7::-64";
    store.put(key, r#"{"PublicIP":"192.168.0.7"}"#, None);
    let held = acquire(&mut store, &both(), &request(7)).await.unwrap();
    assert_eq!((held.lease.key().as_str(), held.time_to_live), (key, None));
    assert!(decode_halves(key, &entries(&mut store).await[0].value).unwrap().0.ipv6.is_some());
    // IPv6 off and on: it has no end in either form.
    let off = acquire(&mut store, &ipv4_only(), &request(7)).await.unwrap();
    assert_eq!((off.lease.key().as_str(), off.time_to_live), ("10.0.7.0-24", None));
    let on = acquire(&mut store, &both(), &preferring(7, "fd00:0:0:7::/64")).await.unwrap();
    assert_eq!((on.lease.key().as_str(), on.time_to_live), (key, None));
    assert_eq!(entries(&mut store).await[0].lifetime, Lifetime::Reserved);

    // What a host cannot keep of a reservation is for its operator to say.
    let why = acquire(&mut store, &both(), &bare(7)).await.unwrap_err().to_string();
    assert!(why.contains(key) && why.contains("this host has no IPv6 address on the underlay"), "{why}");
    let config = with_ipv6(r#""IPv6Network":"fd77::/48""#);
    let why = acquire(&mut store, &config, &request(7)).await.unwrap_err().to_string();
    assert!(
        why.contains(key) && why.contains("none of the network config's /64 subnets from fd77:"),
        "{why}"
    );
    assert_eq!(entries(&mut store).await[0].key, key, "it is left alone");
}

#[tokio::test]
async fn two_hosts_with_the_same_addresses_of_either_family_are_found() {
    for (theirs, ipv4) in [("10.0.0.0-22", true), ("10.0.9.0-24&fd00::-62", false)] {
        let mut store = MemoryStore::default();
        let ours = "10.0.1.0-24&fd00:0:0:1::-64";
        store.put(ours, dual_value(1), HOUR);
        store.put(theirs, dual_value(2), HOUR);
        let why = acquire(&mut store, &both(), &preferring(1, "fd00:0:0:1::/64")).await.unwrap_err();
        let says =
            format!("our lease {ours} and {theirs} of host 192.168.0.2 are for the same addresses: delete");
        assert!(why.to_string().starts_with(&says), "{why}");
        if !ipv4 {
            // An IPv6 subnet that no container here has had yet is given up for another: its lease was written the moment before
            // this host's agent ended.
            let held = acquire(&mut store, &both(), &request(1)).await.unwrap();
            assert_eq!(held.lease.subnet, net("10.0.1.0/24"));
            assert!(!net("fd00::/62").contains(&ipv6_of(&held)));
        }
    }
    // One host with two leases, in whichever form.
    let mut store = MemoryStore::default();
    store.put("10.0.1.0-24", ipv4_value(1), HOUR);
    store.put("10.0.1.0-24&fd00:0:0:1::-64", dual_value(1), HOUR);
    let why = acquire(&mut store, &both(), &request(1)).await.unwrap_err().to_string();
    assert!(why.starts_with("public IP 192.168.0.1 has two leases"), "{why}");
}

#[tokio::test]
async fn a_network_without_a_free_ipv6_subnet_says_so() {
    let config = with_ipv6(r#""IPv6Network":"fd00::/124""#);
    let mut store = MemoryStore::default();
    // Nobody can read this value, but its addresses are taken.
    store.put("10.0.9.0-24&fd00::-64", "?", HOUR);
    let why = acquire(&mut store, &config, &request(1)).await.unwrap_err().to_string();
    assert!(
        why.starts_with("no free subnet in fd00::/124: all 3 subnets from fd00::4 to fd00::c are leased"),
        "{why}"
    );
    assert!(why.ends_with("or widen IPv6Network, IPv6SubnetMin or IPv6SubnetMax"), "{why}");
    assert_eq!(entries(&mut store).await.len(), 1, "and leases nothing");
}

/// Has hosts acquire subnets at the same moment. Keys begin with the IPv4 subnet, so only that is guarded by the store.
async fn are_apart(mut store: impl Store, held: &[LocalLease]) {
    let subnets: BTreeSet<_> = held.iter().map(|held| held.lease.subnet).collect();
    let ipv6: BTreeSet<_> = held.iter().map(ipv6_of).collect();
    assert_eq!((subnets.len(), ipv6.len()), (held.len(), held.len()));
    let keys: BTreeSet<_> = entries(&mut store).await.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, held.iter().map(|held| held.lease.key()).collect());
}

fn race<S: Store + Clone>(store: &S) {
    let start = Barrier::new(12);
    let held: Vec<_> = thread::scope(|scope| {
        let host = |host| {
            let (mut store, start) = (store.clone(), &start);
            scope.spawn(move || {
                start.wait();
                alone(acquire(&mut store, &both(), &request(host))).unwrap()
            })
        };
        let hosts: Vec<_> = (1..=12).map(host).collect();
        hosts.into_iter().map(|host| host.join().unwrap()).collect()
    });
    alone(are_apart(store.clone(), &held));
}

/// All hosts are on one thread, so every host looks before any host claims. There are hardly more IPv6 subnets than hosts, so
/// that many draw the same one.
#[tokio::test]
async fn hosts_race_for_both_families_in_memory() {
    let config = with_ipv6(r#""IPv6Network":"fd00::/60""#);
    assert_eq!(config.ipv6.unwrap().count(), 15);
    let store = MemoryStore::default();
    let hosts = (1..=12).map(|host| {
        let (mut store, config) = (store.clone(), config.clone());
        async move { acquire(&mut store, &config, &request(host)).await.unwrap() }
    });
    let held = join_all(hosts).await;
    are_apart(store, &held).await;
}

#[test]
fn hosts_race_for_both_families_in_a_folder_and_in_etcd() {
    let folder = tempfile::tempdir().unwrap();
    race(&DirStore::new(folder.path()));
    let (_folder, etcd, store) = etcd();
    race(&store);
    let leases = etcd.ctl(&["lease", "list"]).unwrap();
    assert!(leases.starts_with("found 12 leases"), "{leases}");
}
