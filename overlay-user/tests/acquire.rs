//! How hosts get their subnets. Every rule is tested on the store in memory, and the races on every store.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, sync::Barrier, thread, time::Duration};

use futures::future::join_all;
use overlay_lab::etcd::Etcd;
use overlay_user::{
    model::{
        backend::Backend,
        lease::{LeaseBackend, decode},
        network::NetworkConfig,
    },
    store::{
        Lifetime, Store, StoreError,
        acquire::{self, LeaseRequest, LocalLease, RenewError, acquire, renew},
        dir::DirStore,
        etcd::{EtcdOptions, EtcdStore},
        memory::{Fault, MemoryStore},
    },
};

const MAC: &str = "02:76:03:0f:23:cb";

fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text.as_bytes()).unwrap()
}

/// A network of four subnets, three of which can be leased: 10.0.1.0/24 to 10.0.3.0/24.
fn small() -> NetworkConfig {
    config(r#"{"Network":"10.0.0.0/22"}"#)
}

fn request(host: u8) -> LeaseRequest {
    LeaseRequest {
        public_ip: [192, 168, 0, host].into(),
        former_ip: None,
        backend: Backend::DEFAULT,
        vtep_mac: None,
        preferred: None,
        ipv6: None,
        time_to_live: acquire::TIME_TO_LIVE,
    }
}

fn value(host: u8) -> String {
    format!(
        r#"{{"PublicIP":"192.168.0.{host}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{MAC}"}}}}"#
    )
}

fn mac(held: &LocalLease) -> String {
    match held.lease.backend {
        LeaseBackend::Vxlan { vtep_mac, .. } => vtep_mac.to_string(),
        LeaseBackend::Other(_) => panic!("{held:?}"),
    }
}

async fn keys(store: &mut impl Store) -> Vec<String> {
    let snapshot = store.snapshot().await.unwrap();
    snapshot.entries.into_iter().map(|entry| entry.key).collect()
}

#[tokio::test]
async fn a_new_host_gets_a_free_subnet_and_keeps_it_over_restarts() {
    let mut store = MemoryStore::default();
    let first = acquire(&mut store, &small(), &request(1)).await.unwrap();
    assert!(small().plan.fits(first.lease.subnet));
    assert_eq!(first.time_to_live, Some(acquire::TIME_TO_LIVE));
    let snapshot = store.snapshot().await.unwrap();
    let [entry] = &snapshot.entries[..] else { panic!("{snapshot:?}") };
    assert_eq!(decode(&entry.key, &entry.value).unwrap(), first.lease);
    assert_eq!(entry.modified, first.modified);
    assert_eq!(entry.lifetime, Lifetime::Limited);

    // The host asks for another MAC and another subnet, but the lease that peers know takes precedence over both.
    let again = LeaseRequest {
        vtep_mac: Some("02:00:00:00:00:01".parse().unwrap()),
        preferred: small().plan.candidates().find(|&subnet| subnet != first.lease.subnet),
        ..request(1)
    };
    let second = acquire(&mut store, &small(), &again).await.unwrap();
    assert_eq!(second.lease, first.lease);
    assert!(second.modified > first.modified, "its time to live starts again");
}

#[tokio::test]
async fn the_preferred_subnet_if_it_is_free_and_fits() {
    let mut store = MemoryStore::default();
    let prefer = |host, subnet: &str| LeaseRequest {
        preferred: Some(subnet.parse().unwrap()),
        vtep_mac: Some(MAC.parse().unwrap()),
        ..request(host)
    };
    let held = acquire(&mut store, &small(), &prefer(1, "10.0.3.0/24")).await.unwrap();
    assert_eq!(held.lease.key(), "10.0.3.0-24");
    assert_eq!(held.lease.value(), value(1));
    let held = acquire(&mut store, &small(), &prefer(2, "10.0.3.0/24")).await.unwrap();
    assert_ne!(held.lease.key(), "10.0.3.0-24", "taken");
    for (host, misfit) in [(3, "10.0.0.0/24")] {
        let held = acquire(&mut store, &small(), &prefer(host, misfit)).await.unwrap();
        assert!(small().plan.fits(held.lease.subnet));
    }
}

#[tokio::test]
async fn what_overlaps_or_cannot_be_read_is_not_free() {
    let mut store = MemoryStore::default();
    store.put("10.0.1.0-25&fd00::-64", value(8), None);
    store.put("10.0.3.0-24", "nonsense", None);
    store.put("nonsense", "nonsense", None);
    let held = acquire(&mut store, &small(), &request(1)).await.unwrap();
    assert_eq!(held.lease.key(), "10.0.2.0-24");
    let none = acquire(&mut store, &small(), &request(2)).await.unwrap_err();
    let text = none.to_string();
    assert!(text.contains("all 3 subnets from 10.0.1.0 to 10.0.3.0"), "{text}");
}

#[tokio::test]
async fn a_reservation_stays_a_reservation() {
    let mut store = MemoryStore::default();
    store.put("10.0.2.0-24", r#"{"PublicIP":"192.168.0.1"}"#, None);
    let mut held = acquire(&mut store, &small(), &request(1)).await.unwrap();
    assert_eq!((held.lease.key().as_str(), held.time_to_live), ("10.0.2.0-24", None));
    assert_eq!(held.ends_at(), None);
    renew(&mut store, &mut held).await.unwrap();
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(snapshot.entries[0].lifetime, Lifetime::Reserved);
    assert_eq!(snapshot.entries[0].value, held.lease.value());

    store.put("10.9.9.0-24", r#"{"PublicIP":"192.168.0.2"}"#, None);
    let misfit = acquire(&mut store, &small(), &request(2)).await.unwrap_err();
    assert!(
        misfit.to_string().starts_with("reservation 10.9.9.0-24 for 192.168.0.2 is none of "),
        "{misfit}"
    );
    assert!(misfit.to_string().contains("/24 subnets from 10.0.1.0 to 10.0.3.0"), "{misfit}");
    assert_eq!(keys(&mut store).await.len(), 2, "and it is still there");
}

#[tokio::test]
async fn a_lease_that_no_longer_fits_is_given_back() {
    let mut store = MemoryStore::default();
    let day = Some(acquire::TIME_TO_LIVE);
    store.put("10.9.9.0-24", value(1), day);
    store.put("10.0.2.0-24&fd00::-64", value(1), day);
    let held = acquire(&mut store, &small(), &request(1)).await.unwrap();
    assert_eq!(keys(&mut store).await, [held.lease.key()]);
}

#[tokio::test]
async fn doubles_are_errors_that_name_both() {
    let mut store = MemoryStore::default();
    store.put("10.0.1.0-24", value(1), None);
    store.put("10.0.2.0-24", value(1), None);
    let twice = acquire(&mut store, &small(), &request(1)).await.unwrap_err().to_string();
    assert!(twice.contains("192.168.0.1 has two leases, 10.0.1.0-24 and 10.0.2.0-24"), "{twice}");

    store.delete("10.0.1.0-24");
    store.put("10.0.2.0-24&fd00::-64", value(2), None);
    let twice = acquire(&mut store, &small(), &request(1)).await.unwrap_err().to_string();
    assert!(twice.contains("10.0.2.0-24 and 10.0.2.0-24&fd00::-64 of host 192.168.0.2"), "{twice}");
}

#[tokio::test]
async fn a_reservation_made_since_the_last_renewal_stays_one() {
    let mut store = MemoryStore::default();
    let mut held = acquire(&mut store, &small(), &request(1)).await.unwrap();
    store.put(&held.lease.key(), held.lease.value(), None);
    renew(&mut store, &mut held).await.unwrap();
    assert_eq!(held.time_to_live, None);
    assert_eq!(store.snapshot().await.unwrap().entries[0].lifetime, Lifetime::Reserved);
}

#[tokio::test(start_paused = true)]
async fn renewal_is_guarded() {
    let mut store = MemoryStore::default();
    let mut held = acquire(&mut store, &small(), &request(1)).await.unwrap();
    let (before, key) = (held.modified, held.lease.key());
    let follow_from = store.snapshot().await.unwrap().revision;
    tokio::time::sleep(acquire::TIME_TO_LIVE / 2).await;
    renew(&mut store, &mut held).await.unwrap();
    assert_eq!((held.modified, store.snapshot().await.unwrap().revision), (before, follow_from));
    assert_eq!(store.remaining(&key), Some(acquire::TIME_TO_LIVE), "nobody hears of it, but it lives longer");

    // The renewal was made although its answer was lost: the value is the same, at a revision that the host has not
    // seen.
    store.put(&key, held.lease.value(), held.time_to_live);
    renew(&mut store, &mut held).await.unwrap();

    store.set_fault(Some(Fault::Unavailable));
    let down = renew(&mut store, &mut held).await;
    assert!(matches!(down, Err(RenewError::Store(StoreError::Unavailable { .. }))));
    store.set_fault(None);
    renew(&mut store, &mut held).await.unwrap();

    store.put(&key, value(9), None);
    let stolen = renew(&mut store, &mut held).await.unwrap_err().to_string();
    assert_eq!(stolen, format!("lease {key} is lost: host 192.168.0.9 holds it now"));
    store.delete(&key);
    let lost = renew(&mut store, &mut held).await.unwrap_err();
    assert!(matches!(lost, RenewError::Lost { holder: None, .. }), "{lost}");
    assert!(keys(&mut store).await.is_empty(), "renewing takes nothing back");
}

#[tokio::test]
async fn renewal_leaves_the_margin() {
    let mut store = MemoryStore::default();
    let short = LeaseRequest { time_to_live: Duration::from_secs(100), ..request(1) };
    let held = acquire(&mut store, &small(), &short).await.unwrap();
    let after = |margin| held.renew_at(Duration::from_secs(margin)) - held.renewed;
    assert_eq!(after(10), Duration::from_secs(90));
    assert_eq!(after(100), Duration::from_secs(50), "never at once, over and over");
    // Hosts that started together do not renew together, whatever the margin is: each draws from a tenth of what counts of it.
    for (margin, latest, tenth) in [(10, 90, 1), (50, 50, 5), (100, 50, 5), (1000, 50, 5)] {
        let (latest, tenth) = (Duration::from_secs(latest), Duration::from_secs(tenth));
        let drawn: Vec<_> =
            (0..1000).map(|_| held.draw_renewal(Duration::from_secs(margin)) - held.renewed).collect();
        assert!(drawn.iter().all(|at| (latest - tenth..=latest).contains(at)), "{margin}: {drawn:?}");
        assert!(drawn.iter().any(|at| *at < latest - tenth / 8 * 7), "{margin}: none comes early");
        assert!(drawn.iter().any(|at| *at > latest - tenth / 8), "{margin}: none comes late");
    }
}

/// A host whose address has changed rewrites its lease. Of all the leases with either address, only that of its own subnet is its
/// own: another host may have taken the former address and leased another subnet, and one that is gone may have had the new one.
#[tokio::test]
async fn a_host_with_another_address_keeps_its_lease() {
    let own = [("10.0.1.0/24", Some(acquire::TIME_TO_LIVE)), ("10.0.2.0/24", None)];
    for ((subnet, lifetime), other) in own.into_iter().flat_map(|own| [(own, 1), (own, 7)]) {
        let mut store = MemoryStore::default();
        let key = subnet.replace('/', "-");
        store.put(&key, value(1), lifetime);
        let others = "10.0.3.0-24";
        store.put(others, value(other), lifetime);
        let moved = LeaseRequest {
            former_ip: Some(request(1).public_ip),
            preferred: Some(subnet.parse().unwrap()),
            ..request(7)
        };
        let held = acquire(&mut store, &small(), &moved).await.unwrap();
        assert_eq!(
            (held.lease.key(), mac(&held)),
            (key.clone(), MAC.to_owned()),
            "peers know its MAC address"
        );
        assert_eq!(held.time_to_live.is_none(), lifetime.is_none(), "a reservation stays one");
        let entries = store.snapshot().await.unwrap().entries;
        let text = |key: &str| {
            let entry = entries.iter().find(|entry| entry.key == key).unwrap();
            String::from_utf8(entry.value.to_vec()).unwrap()
        };
        assert_eq!((entries.len(), text(&key), text(others)), (2, value(7), value(other)));

        // Without a lease of its own, the host takes its subnet again, and never another host's key.
        let mut store = MemoryStore::default();
        store.put(others, value(other), lifetime);
        let held = acquire(&mut store, &small(), &moved).await.unwrap();
        assert_eq!(held.lease.key(), key);
        let entries = store.snapshot().await.unwrap().entries;
        let stranger = entries.iter().find(|entry| entry.key == others).unwrap();
        assert_eq!(stranger.value, value(other));
    }
}

#[tokio::test]
async fn one_host_alone_refuses_company() {
    let mut store = MemoryStore::default();
    store.put("10.0.1.0-24", value(1), None);
    let one = request(1);
    acquire::refuse_other_hosts(&mut store, &one).await.unwrap();
    let moved = LeaseRequest {
        former_ip: Some(one.public_ip),
        preferred: Some("10.0.1.0/24".parse().unwrap()),
        ..request(3)
    };
    acquire::refuse_other_hosts(&mut store, &moved).await.unwrap();
    store.put("10.0.2.0-24", value(2), None);
    let other = acquire::refuse_other_hosts(&mut store, &one).await.unwrap_err();
    assert!(other.to_string().contains("10.0.2.0-24 of another host, 192.168.0.2"), "{other}");
}

/// A network with as many subnets as hosts that race for them.
fn sixteen() -> NetworkConfig {
    let config = config(r#"{"Network":"10.0.0.0/20","SubnetMin":"10.0.0.0"}"#);
    assert_eq!(config.plan.candidates().count(), 16);
    config
}

/// Has hosts on threads of their own acquire subnets, all at the same moment.
fn race<S: Store + Clone>(store: S) {
    let start = Barrier::new(16);
    let held: Vec<_> = thread::scope(|scope| {
        let host = |host| {
            let (mut store, start) = (store.clone(), &start);
            scope.spawn(move || {
                start.wait();
                alone(acquire(&mut store, &sixteen(), &request(host))).unwrap()
            })
        };
        let hosts: Vec<_> = (1..=16).map(host).collect();
        hosts.into_iter().map(|host| host.join().unwrap()).collect()
    });
    alone(check(store, &held));
}

async fn check(mut store: impl Store, held: &[LocalLease]) {
    let subnets: BTreeSet<_> = held.iter().map(|held| held.lease.subnet).collect();
    assert_eq!(subnets.len(), 16);
    let macs: BTreeSet<_> = held.iter().map(mac).collect();
    assert_eq!(macs.len(), 16);
    let late = acquire(&mut store, &sixteen(), &request(17)).await.unwrap_err().to_string();
    assert!(late.starts_with("no free subnet in ") && late.contains("all 16 subnets"), "{late}");
}

fn alone<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(work)
}

/// All hosts are on one thread, so every host looks before any host claims.
#[tokio::test]
async fn sixteen_hosts_race_in_memory() {
    let store = MemoryStore::default();
    let hosts = (1..=16).map(|host| {
        let mut store = store.clone();
        async move { acquire(&mut store, &sixteen(), &request(host)).await.unwrap() }
    });
    let held = join_all(hosts).await;
    check(store, &held).await;
}

#[test]
fn sixteen_hosts_race_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    race(DirStore::new(folder.path()));
}

#[test]
fn i10_d2_sixteen_hosts_race_in_etcd_and_none_gives_up() {
    let folder = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(folder.path()).unwrap();
    let options = EtcdOptions {
        endpoints: vec![etcd.client_url()],
        prefix: "/coreos.com/network".to_owned(),
        ..EtcdOptions::default()
    };
    race(EtcdStore::new(&options).unwrap());
    let leases = etcd.ctl(&["lease", "list"]).unwrap();
    assert!(leases.starts_with("found 16 leases"), "{leases}");
}
