//! One contract for every store, which is run on the one in memory, on a folder and on a real etcd; then what only etcd
//! does.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use nix::fcntl::{Flock, FlockArg};
use overlay_lab::etcd::{Etcd, Tls};
use overlay_user::store::{
    Batch, Follow, LeaseChange, Lifetime, Revision, Store, StoreError, Written,
    dir::DirStore,
    etcd::{EtcdOptions, EtcdStore},
    memory::{Fault, MemoryStore},
};
use tempfile::TempDir;

const KEY: &str = "10.244.1.0-24";
const HOUR: Option<Duration> = Some(Duration::from_secs(3600));

fn etcd() -> (TempDir, Etcd) {
    let folder = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(folder.path()).unwrap();
    (folder, etcd)
}

fn options(etcd: &Etcd) -> EtcdOptions {
    EtcdOptions {
        endpoints: vec![etcd.client_url()],
        prefix: "/coreos.com/network".to_owned(),
        ..EtcdOptions::default()
    }
}

fn at(written: Written) -> Revision {
    match written {
        Written::At(revision) => revision,
        Written::Lost => panic!("the write lost"),
    }
}

/// The next batch that has changes, for which it waits a short time.
async fn next(follow: &mut impl Follow) -> Result<Batch, StoreError> {
    loop {
        let batch = tokio::time::timeout(Duration::from_secs(20), follow.next());
        let batch = batch.await.expect("a batch within 20 s")?;
        if !batch.changes.is_empty() {
            return Ok(batch);
        }
    }
}

fn put_of(batch: &Batch) -> (&str, &[u8], Revision) {
    match &batch.changes[..] {
        [LeaseChange::Put(entry)] => (&entry.key, &entry.value, entry.modified),
        other => panic!("{other:?}"),
    }
}

fn lifetime_of(batch: &Batch) -> Lifetime {
    match &batch.changes[..] {
        [LeaseChange::Put(entry)] => entry.lifetime,
        other => panic!("{other:?}"),
    }
}

fn deleted(batch: &Batch) -> &str {
    match &batch.changes[..] {
        [LeaseChange::Delete { key }] => key,
        other => panic!("{other:?}"),
    }
}

async fn lifetime(store: &mut impl Store, key: &str) -> Lifetime {
    let snapshot = store.snapshot().await.unwrap();
    let entry = snapshot.entries.into_iter().find(|entry| entry.key == key);
    entry.expect("the key is there").lifetime
}

/// What every store must do, seen from two hosts.
async fn contract(mut a: impl Store, mut b: impl Store) {
    assert_eq!(a.config().await.unwrap(), None);
    a.set_config(Bytes::from_static(b"{}")).await.unwrap();
    assert_eq!(b.config().await.unwrap(), Some(Bytes::from_static(b"{}")));

    let empty = b.snapshot().await.unwrap();
    assert!(empty.entries.is_empty(), "the config is no lease");
    let mut follow = b.follow(empty.revision).await.unwrap();

    // A key can be claimed once.
    let made = at(a.claim(KEY, Bytes::from_static(b"one"), HOUR).await.unwrap());
    assert!(made > empty.revision);
    let lost = b.claim(KEY, Bytes::from_static(b"two"), HOUR).await.unwrap();
    assert_eq!(lost, Written::Lost);
    let snapshot = b.snapshot().await.unwrap();
    assert_eq!(snapshot.cluster, empty.cluster);
    assert!(snapshot.revision >= made);
    assert_eq!(b.origin().await.unwrap(), snapshot.origin());
    let [entry] = &snapshot.entries[..] else { panic!("{snapshot:?}") };
    assert_eq!((&*entry.key, &*entry.value, entry.modified), (KEY, &b"one"[..], made));
    assert_eq!(entry.lifetime, Lifetime::Limited);
    assert_eq!(b.cheap_snapshot().await.unwrap(), snapshot);
    let tally = b.tally(&[KEY, "10.9.9.0-24"]).await.unwrap();
    assert_eq!((tally.origin, tally.count), (snapshot.origin(), 1));
    assert_eq!(tally.entries, [Some(entry.clone()), None]);
    assert_eq!(b.tally(&[]).await.unwrap().entries, []);

    // A key is prolonged without being written, if it is as it is thought to be.
    assert_eq!(a.prolong(KEY, made, HOUR).await.unwrap(), Written::At(made));
    assert_eq!(b.snapshot().await.unwrap(), snapshot, "nobody else hears of it");
    let other = Some(Duration::from_secs(7200));
    for (key, modified, time_to_live) in [
        (KEY, Revision(made.0 - 1), HOUR),
        (KEY, made, other),
        (KEY, made, None),
        ("10.9.9.0-24", made, HOUR),
    ] {
        assert_eq!(a.prolong(key, modified, time_to_live).await.unwrap(), Written::Lost);
    }

    // Only a revision that has been seen can be renewed or released.
    let stale = Revision(made.0 - 1);
    let value = Bytes::from_static(b"three");
    assert_eq!(b.renew(KEY, value.clone(), stale, HOUR).await.unwrap(), Written::Lost);
    let renewed = at(a.renew(KEY, value, made, HOUR).await.unwrap());
    assert!(renewed > made);
    assert_eq!(b.release(KEY, made).await.unwrap(), Written::Lost);
    at(a.release(KEY, renewed).await.unwrap());
    assert_eq!(a.release(KEY, renewed).await.unwrap(), Written::Lost);
    let gone = a.renew(KEY, Bytes::new(), renewed, HOUR).await.unwrap();
    assert_eq!(gone, Written::Lost, "renewing makes no key");

    // Every change comes in order, with its revision.
    let first = next(&mut follow).await.unwrap();
    assert_eq!((put_of(&first), lifetime_of(&first)), ((KEY, &b"one"[..], made), Lifetime::Limited));
    assert_eq!(put_of(&next(&mut follow).await.unwrap()), (KEY, &b"three"[..], renewed));
    let delete = next(&mut follow).await.unwrap();
    assert_eq!(deleted(&delete), KEY);
    assert!(delete.revision > renewed);
    // A follower that starts later sees the same changes.
    let mut late = a.follow(made).await.unwrap();
    assert_eq!(next(&mut late).await.unwrap().revision, renewed);
    assert_eq!(next(&mut late).await.unwrap(), delete);

    // A reservation remains a reservation.
    let reserved = at(a.claim(KEY, Bytes::from_static(b"r"), None).await.unwrap());
    assert_eq!(lifetime(&mut b, KEY).await, Lifetime::Reserved);
    let mut follow = b.follow(Revision(reserved.0 - 1)).await.unwrap();
    assert_eq!(lifetime_of(&next(&mut follow).await.unwrap()), Lifetime::Reserved);
    assert_eq!(a.prolong(KEY, reserved, None).await.unwrap(), Written::At(reserved));
    assert_eq!(a.prolong(KEY, reserved, HOUR).await.unwrap(), Written::Lost);
    let again = a.renew(KEY, Bytes::from_static(b"r"), reserved, None).await.unwrap();
    assert_eq!(lifetime(&mut b, KEY).await, Lifetime::Reserved);
    at(a.release(KEY, at(again)).await.unwrap());

    // Expiry is a deletion that followers see, and a renewal delays it.
    let now = b.snapshot().await.unwrap().revision;
    let mut follow = b.follow(now).await.unwrap();
    let second = Some(Duration::from_secs(1));
    let start = Instant::now();
    let kept = at(a.claim("10.244.3.0-24", Bytes::new(), second).await.unwrap());
    at(a.renew("10.244.3.0-24", Bytes::new(), kept, HOUR).await.unwrap());
    at(a.claim("10.244.2.0-24", Bytes::new(), second).await.unwrap());
    for _ in 0..3 {
        put_of(&next(&mut follow).await.unwrap());
    }
    assert_eq!(deleted(&next(&mut follow).await.unwrap()), "10.244.2.0-24");
    assert!(start.elapsed() >= Duration::from_secs(1));
    let left = b.snapshot().await.unwrap().entries;
    assert_eq!(left.len(), 1);
    at(b.release("10.244.3.0-24", left[0].modified).await.unwrap());
}

/// Of many hosts that claim one key at the same time, one gets it.
async fn race<S: Store + Clone>(store: &S) {
    let claims = (0..16).map(|n: usize| {
        let mut store = store.clone();
        async move { store.claim(KEY, n.to_string().into(), HOUR).await.unwrap() }
    });
    let won = join_all(claims).await;
    let won: Vec<_> = won.into_iter().enumerate().filter(|(_, w)| *w != Written::Lost).collect();
    let [(winner, written)] = won[..] else { panic!("{won:?}") };
    let snapshot = store.clone().snapshot().await.unwrap();
    assert_eq!(*snapshot.entries[0].value, *winner.to_string().as_bytes());
    at(store.clone().release(KEY, at(written)).await.unwrap());
}

/// Tests snapshots of more than two pages, and followers that are behind the store's history, which began before
/// `start`.
async fn many_and_behind<S: Store + Clone>(store: &S, start: Revision, count: usize) {
    let mut store = store.clone();
    let snapshot = store.snapshot().await.unwrap();
    let mut keys: Vec<_> = snapshot.entries.iter().map(|entry| entry.key.clone()).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count);
    assert_eq!(snapshot.entries.len(), count);
    assert!(snapshot.entries.iter().all(|entry| entry.modified <= snapshot.revision));
    let behind = match store.follow(start).await {
        Ok(mut follow) => next(&mut follow).await,
        Err(error) => Err(error),
    };
    match behind {
        Err(StoreError::Behind { oldest, .. }) => assert!(oldest > start && oldest <= snapshot.revision),
        other => panic!("{other:?}"),
    }
    // From the snapshot's revision on, following works.
    let mut follow = store.follow(snapshot.revision).await.unwrap();
    let made = at(store.claim("10.9.9.0-24", Bytes::new(), None).await.unwrap());
    assert_eq!(next(&mut follow).await.unwrap().revision, made);
    // One cannot follow from a revision of another, longer history.
    let future = Revision(made.0 + 1000);
    let future = match store.follow(future).await {
        Ok(mut follow) => next(&mut follow).await,
        Err(error) => Err(error),
    };
    assert!(matches!(future, Err(StoreError::Behind { .. })), "{future:?}");
}

fn key(n: usize) -> String {
    format!("10.{}.{}.0-24", n / 256, n % 256)
}

#[tokio::test]
async fn memory_store() {
    let store = MemoryStore::default();
    contract(store.clone(), store.clone()).await;
    race(&store).await;
    let start = store.clone().snapshot().await.unwrap().revision;
    store.commit((0..1200).map(|n| (key(n), Some(Bytes::new()))));
    store.compact();
    many_and_behind(&store, start, 1200).await;
}

#[tokio::test]
async fn memory_store_fails_on_demand() {
    let store = MemoryStore::default();
    let start = store.clone().snapshot().await.unwrap().revision;
    let mut follow = store.clone().follow(start).await.unwrap();
    let both = store.commit([(key(1), Some(Bytes::new())), (key(2), Some(Bytes::new()))]);
    let batch = next(&mut follow).await.unwrap();
    assert_eq!((batch.revision, batch.changes.len()), (both, 2), "one revision is one batch");
    store.cut_watches();
    assert!(matches!(next(&mut follow).await, Err(StoreError::Unavailable { .. })));
    store.set_fault(Some(Fault::Refused));
    let refused = store.clone().snapshot().await;
    assert!(matches!(refused, Err(StoreError::Refused { .. })));
    store.set_fault(None);
    let before = store.clone().snapshot().await.unwrap();
    store.wipe();
    assert_ne!(store.clone().snapshot().await.unwrap().cluster, before.cluster);
}

#[tokio::test]
async fn dir_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = DirStore::new(folder.path());
    contract(store.clone(), DirStore::new(folder.path())).await;
    race(&store).await;
    // These are more changes than the store's history holds.
    let start = store.clone().snapshot().await.unwrap().revision;
    for n in 0..1200 {
        fs::write(folder.path().join("subnets").join(key(n)), "").unwrap();
    }
    many_and_behind(&store, start, 1200).await;
}

#[tokio::test]
async fn dir_store_is_edited_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let subnets = folder.path().join("subnets");
    let mut store = DirStore::new(folder.path());
    let start = store.snapshot().await.unwrap().revision;
    let mut follow = store.follow(start).await.unwrap();

    let file = subnets.join(KEY);
    fs::write(&file, "by hand").unwrap();
    let put = next(&mut follow).await.unwrap();
    assert_eq!(put_of(&put).1, b"by hand");
    assert_eq!(lifetime(&mut store, KEY).await, Lifetime::Reserved);
    fs::remove_file(&file).unwrap();
    assert_eq!(deleted(&next(&mut follow).await.unwrap()), KEY);

    // A lease that an agent claimed is an ordinary file, and keeps its lifetime when it is edited.
    at(store.claim(KEY, Bytes::from_static(b"claimed"), HOUR).await.unwrap());
    assert_eq!(fs::read(&file).unwrap(), b"claimed");
    next(&mut follow).await.unwrap();
    fs::write(&file, "edited").unwrap();
    assert_eq!(put_of(&next(&mut follow).await.unwrap()).1, b"edited");
    assert_eq!(lifetime(&mut store, KEY).await, Lifetime::Limited);

    fs::write(folder.path().join(".ledger.json"), "{").unwrap();
    let damaged = store.snapshot().await.unwrap_err().to_string();
    assert!(damaged.contains(".ledger.json is damaged"), "{damaged}");
}

/// A claim waits a while for a lock that another holds. The time is paused.
#[tokio::test(start_paused = true)]
async fn a_lock_that_is_never_let_go_is_named_and_blocks_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".lock");
    // Earlier agents made the lock file with these permissions.
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut store = DirStore::new(folder.path());
    let start = store.snapshot().await.unwrap().revision;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut follow = store.follow(start).await.unwrap();

    let hold = || Flock::lock(fs::File::open(&path).unwrap(), FlockArg::LockExclusive).unwrap();
    let lock = hold();
    let let_go = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        lock.unlock().unwrap();
    };
    let (made, ()) = tokio::join!(store.claim(KEY, Bytes::new(), HOUR), let_go);
    at(made.unwrap());
    next(&mut follow).await.unwrap();

    let _lock = hold();
    let names = |error: StoreError| match error {
        StoreError::Unavailable { detail, .. } => {
            assert!(detail.contains(path.to_str().unwrap()), "{detail}")
        }
        other => panic!("{other}"),
    };
    names(store.snapshot().await.unwrap_err());
    names(follow.next().await.unwrap_err());
}

/// Three hosts share a folder, and the clock of one is 25 hours ahead. The time that leases live is paused.
#[tokio::test(start_paused = true)]
async fn no_hosts_clock_ends_a_lease_in_a_folder() {
    const LIFE: Duration = Duration::from_secs(600);
    let folder = tempfile::tempdir().unwrap();
    let mut one = DirStore::new(folder.path());
    let other = DirStore::new(folder.path());
    let mut ahead = DirStore::new(folder.path())
        .with_clock(|| std::time::SystemTime::now() + Duration::from_secs(25 * 3600));
    let start = one.snapshot().await.unwrap().revision;
    let mut watches = Vec::new();
    for store in [&one, &other, &ahead] {
        let mut follow = store.clone().follow(start).await.unwrap();
        watches.push(tokio::spawn(async move {
            let mut deleted = Vec::new();
            while deleted.len() < 2 {
                let batch = follow.next().await.unwrap();
                deleted.extend(batch.changes.into_iter().filter_map(|change| match change {
                    LeaseChange::Delete { key } => Some((key, tokio::time::Instant::now())),
                    LeaseChange::Put(_) => None,
                }));
            }
            deleted
        }));
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let first = at(one.claim(&key(1), Bytes::new(), Some(LIFE)).await.unwrap());
    at(ahead.claim(&key(2), Bytes::new(), Some(LIFE)).await.unwrap());
    let claimed = tokio::time::Instant::now();
    // Each host that is alive keeps its lease, and hears of the clocks.
    tokio::time::sleep(LIFE / 2).await;
    assert_eq!(one.snapshot().await.unwrap().entries.len(), 2);
    for (store, words) in [
        (&other, "holds lease 10.0.2.0-24 is 25 h ahead of this host's"),
        (&ahead, "holds lease 10.0.1.0-24 is 25 h behind this host's"),
    ] {
        let remark = store.remark().unwrap();
        assert!(remark.contains(words), "{remark}");
    }
    assert_eq!(one.prolong(&key(1), first, Some(LIFE)).await.unwrap(), Written::At(first));
    // Both die. Each lease ends when its time is over, which every host sees by itself.
    for watch in watches {
        let [(one, early), (two, late)] = watch.await.unwrap().try_into().unwrap();
        assert_eq!((one, two), (key(2), key(1)));
        for (end, lives) in [(early, LIFE), (late, LIFE * 3 / 2)] {
            let lived = end - claimed;
            assert!((lives..lives + Duration::from_secs(2)).contains(&lived), "{lived:?}");
        }
    }
}

#[tokio::test]
async fn files_that_are_gone_at_one_look_are_one_revision() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = DirStore::new(folder.path());
    for n in 0..6 {
        at(store.claim(&key(n), Bytes::new(), HOUR).await.unwrap());
    }
    let start = store.snapshot().await.unwrap().revision;
    let mut follow = store.follow(start).await.unwrap();
    for n in 0..6 {
        fs::remove_file(folder.path().join("subnets").join(key(n))).unwrap();
    }
    assert_eq!(next(&mut follow).await.unwrap().changes.len(), 6);
    assert!(store.snapshot().await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn etcd_store() {
    let (_folder, etcd) = etcd();
    let store = EtcdStore::new(&options(&etcd)).unwrap();
    contract(store.clone(), EtcdStore::new(&options(&etcd)).unwrap()).await;
    race(&store).await;
    assert_eq!(leases(&etcd), 0, "every etcd lease was revoked with its key");
    // flannel's own prefix would match these keys of a neighbour.
    etcd.ctl(&["put", "/coreos.com/network/subnetsX/10.244.9.0-24", "x"]).unwrap();
    let start = store.clone().snapshot().await.unwrap().revision;
    let fill = (0..16).map(|lane: usize| {
        let mut store = store.clone();
        async move {
            for n in (lane..1200).step_by(16) {
                at(store.claim(&key(n), Bytes::new(), None).await.unwrap());
            }
        }
    });
    join_all(fill).await;
    etcd.compact().unwrap();
    many_and_behind(&store, start, 1200).await;
}

/// How many etcd leases there are.
fn leases(etcd: &Etcd) -> usize {
    let list = etcd.ctl(&["lease", "list"]).unwrap();
    list.lines().filter(|line| !line.starts_with("found")).count()
}

#[tokio::test]
async fn etcd_leases_do_not_pile_up() {
    let (_folder, etcd) = etcd();
    let mut store = EtcdStore::new(&options(&etcd)).unwrap();
    let mut modified = at(store.claim(KEY, Bytes::new(), HOUR).await.unwrap());
    for _ in 0..3 {
        assert_eq!(store.claim(KEY, Bytes::new(), HOUR).await.unwrap(), Written::Lost);
        modified = at(store.renew(KEY, Bytes::new(), modified, HOUR).await.unwrap());
        assert_eq!(leases(&etcd), 1);
    }
    // An etcd lease that holds an operator's key as well must not be revoked.
    let grant = etcd.ctl(&["lease", "grant", "3600"]).unwrap();
    let id = format!("--lease={}", grant.split_whitespace().nth(1).unwrap());
    etcd.ctl(&["put", &id, "/other", "x"]).unwrap();
    etcd.ctl(&["put", &id, "/coreos.com/network/subnets/10.244.1.0-24", ""]).unwrap();
    let modified = store.snapshot().await.unwrap().entries[0].modified;
    at(store.renew(KEY, Bytes::new(), modified, HOUR).await.unwrap());
    assert!(etcd.ctl(&["get", "/other"]).unwrap().contains("/other"));
}

/// Waits until some of the time of the only etcd lease is over, and prolongs the key that is on it. Returns the lease's number.
async fn is_prolonged(etcd: &Etcd, store: &mut EtcdStore, made: Revision) -> String {
    let list = etcd.ctl(&["lease", "list"]).unwrap();
    let id = list.lines().find(|line| !line.starts_with("found")).unwrap().to_owned();
    let remaining = || {
        let text = etcd.ctl(&["lease", "timetolive", &id, "--write-out", "json"]).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["ttl"].as_i64().unwrap()
    };
    let waited = Instant::now();
    while remaining() > 3596 {
        assert!(waited.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let before = remaining();
    assert_eq!(store.prolong(KEY, made, HOUR).await.unwrap(), Written::At(made));
    assert!(remaining() > before, "{} after {before}", remaining());
    id
}

#[tokio::test]
async fn prolonging_starts_the_time_of_an_etcd_lease_anew() {
    let (_folder, etcd) = etcd();
    let mut store = EtcdStore::new(&options(&etcd)).unwrap();
    let made = at(store.claim(KEY, Bytes::new(), HOUR).await.unwrap());
    let id = is_prolonged(&etcd, &mut store, made).await;
    // Without its lease, the key is gone.
    etcd.ctl(&["lease", "revoke", &id]).unwrap();
    assert_eq!(store.prolong(KEY, made, HOUR).await.unwrap(), Written::Lost);
}

#[tokio::test]
async fn values_as_large_as_etcd_takes_them_are_read() {
    let (_folder, etcd) = etcd();
    let mut store = EtcdStore::new(&options(&etcd)).unwrap();
    for n in 0..3 {
        at(store.claim(&key(n), vec![b'x'; 1_400_000].into(), None).await.unwrap());
    }
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(snapshot.entries.iter().map(|entry| entry.value.len()).collect::<Vec<_>>(), [1_400_000; 3]);
}

#[tokio::test]
async fn one_revision_of_etcd_is_one_batch() {
    let (_folder, etcd) = etcd();
    let mut store = EtcdStore::new(&options(&etcd)).unwrap();
    for n in 0..50 {
        at(store.claim(&key(n), Bytes::new(), None).await.unwrap());
    }
    let start = store.snapshot().await.unwrap().revision;
    let mut follow = store.follow(start).await.unwrap();
    etcd.ctl(&["del", "--prefix", "/coreos.com/network/subnets/"]).unwrap();
    let batch = next(&mut follow).await.unwrap();
    assert_eq!(batch.changes.len(), 50);
    // This is read again later, from the history.
    at(store.claim(KEY, Bytes::new(), None).await.unwrap());
    let mut late = store.follow(start).await.unwrap();
    assert_eq!(next(&mut late).await.unwrap(), batch);
    assert_eq!(put_of(&next(&mut late).await.unwrap()).0, KEY);
}

/// How soon the kernel will probe this process's idle connection to etcd: the timer of keepalive, as proc(5) has it.
async fn probed_after(etcd: &Etcd) -> Duration {
    let url = etcd.client_url();
    let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
    // etcd has a connection to itself, too.
    let is_ours = |inode: &str| {
        let mut open = fs::read_dir("/proc/self/fd").unwrap();
        let name = format!("socket:[{inode}]");
        open.any(|fd| fs::read_link(fd.unwrap().path()).is_ok_and(|to| to == Path::new(&name)))
    };
    for _ in 0..100 {
        let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
        for socket in sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()) {
            let (to, state, timer, inode) = (socket[2], socket[3], socket[5].split_once(':'), socket[9]);
            // State 01 is an established connection, and timer 02 is keepalive's. It counts hundredths of seconds.
            if let (true, "01", Some(("02", left))) = (to.ends_with(&format!(":{port:04X}")), state, timer)
                && is_ours(inode)
            {
                return Duration::from_millis(10 * u64::from_str_radix(left, 16).unwrap());
            }
        }
        // What was sent last is not acknowledged yet.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the kernel does not probe the connection");
}

#[tokio::test]
async fn etcd_hangs_stops_and_comes_back() {
    let (folder, mut etcd) = etcd();
    let mut store = EtcdStore::new(&options(&etcd)).unwrap();
    let made = at(store.claim(KEY, Bytes::new(), HOUR).await.unwrap());
    let mut follow = store.follow(made).await.unwrap();

    // A silent watch costs etcd nothing but a sign of life now and then; its kernel shows that its machine is there.
    let probed = probed_after(&etcd).await;
    assert!(probed <= Duration::from_secs(10), "{probed:?}");
    let life = tokio::time::timeout(Duration::from_secs(60), follow.next()).await.expect("a sign of life");
    assert_eq!(life.unwrap(), Batch { revision: made, changes: Vec::new() });

    etcd.pause().unwrap();
    let start = Instant::now();
    let hangs = store.snapshot().await;
    assert!(matches!(hangs, Err(StoreError::Unavailable { .. })), "{hangs:?}");
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    let cut = next(&mut follow).await;
    assert!(matches!(cut, Err(StoreError::Unavailable { .. })), "{cut:?}");
    etcd.resume().unwrap();
    let before = store.snapshot().await.unwrap();
    assert_eq!(before.entries.len(), 1);

    let mut follow = store.follow(made).await.unwrap();
    etcd.stop().unwrap();
    let cut = next(&mut follow).await;
    assert!(matches!(cut, Err(StoreError::Unavailable { .. })), "{cut:?}");
    let down = store.config().await;
    assert!(matches!(down, Err(StoreError::Unavailable { .. })), "{down:?}");
    etcd.restart().unwrap();
    assert_eq!(store.snapshot().await.unwrap().entries, before.entries);
    let mut follow = store.follow(made).await.unwrap();
    at(store.renew(KEY, Bytes::new(), made, HOUR).await.unwrap());
    assert_eq!(put_of(&next(&mut follow).await.unwrap()).0, KEY);

    // A store that was wiped is younger than what has been seen.
    etcd.stop().unwrap();
    fs::remove_dir_all(folder.path().join("etcd")).unwrap();
    etcd.restart().unwrap();
    // The first request may still use the connection from before.
    let _ = store.config().await;
    let wiped = store.follow(made).await.err();
    assert!(matches!(wiped, Some(StoreError::Behind { .. })), "{wiped:?}");
}

#[tokio::test]
async fn dead_endpoints_are_passed_over() {
    let (_folder, etcd) = etcd();
    let mut options = options(&etcd);
    // Port 1 refuses connections; the other listens and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = format!("http://{}", listener.local_addr().unwrap());
    options.endpoints.splice(0..0, ["http://127.0.0.1:1".to_owned(), mute]);
    let mut store = EtcdStore::new(&options).unwrap();
    for _ in 0..10 {
        store.snapshot().await.unwrap();
    }
    options.endpoints.truncate(1);
    let none = EtcdStore::new(&options).unwrap().snapshot().await;
    assert!(matches!(none, Err(StoreError::Unavailable { .. })), "{none:?}");
}

#[tokio::test]
async fn etcd_refuses() {
    let (_folder, etcd) = etcd();
    let open = options(&etcd);
    let login = |name: &str, password: &str| EtcdOptions {
        username: Some(name.to_owned()),
        password: Some(password.to_owned()),
        ..open.clone()
    };
    let refusal = async |options: EtcdOptions| match EtcdStore::new(&options).unwrap().snapshot().await {
        Err(error @ StoreError::Refused { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let unwanted = refusal(login("root", "secret")).await;
    assert!(unwanted.contains("leave out --etcd-username"), "{unwanted}");
    for command in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "stranger:secret"],
        &["auth", "enable"],
    ] {
        etcd.ctl(command).unwrap();
    }
    let wrong = refusal(login("root", "guess")).await;
    assert!(wrong.contains("check --etcd-username and --etcd-password"), "{wrong}");
    let none = refusal(open.clone()).await;
    assert!(none.contains("give --etcd-username"), "{none}");
    let stranger = refusal(login("stranger", "secret")).await;
    assert!(stranger.contains("grant-permission"), "{stranger}");
    let watch = EtcdStore::new(&login("stranger", "secret")).unwrap().follow(Revision(1)).await.err();
    assert!(matches!(watch, Some(StoreError::Refused { .. })), "{watch:?}");
    let mut store = EtcdStore::new(&login("root", "secret")).unwrap();
    at(store.claim(KEY, Bytes::new(), HOUR).await.unwrap());
}

/// Makes a certificate for 127.0.0.1 that is signed by its own key, and that key, as PEM files.
fn certificate(folder: &Path, name: &str) -> Tls {
    let (cert, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=overlay test", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&cert)
        .arg("-keyout")
        .arg(&key)
        .output()
        .expect("openssl is installed (Debian's package openssl)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let ca = cert.clone();
    Tls { ca, cert, key }
}

#[tokio::test]
async fn etcd_with_tls() {
    let folder = tempfile::tempdir().unwrap();
    let ours = certificate(folder.path(), "ours");
    let other = certificate(folder.path(), "other");
    let etcd = Etcd::start_with_tls(folder.path(), ours.clone()).unwrap();
    let snapshot = async |ca: &Tls, own: Option<&Tls>| {
        let options = EtcdOptions {
            cafile: Some(ca.ca.clone()),
            certfile: own.map(|own| own.cert.clone()),
            keyfile: own.map(|own| own.key.clone()),
            ..options(&etcd)
        };
        EtcdStore::new(&options).unwrap().snapshot().await
    };
    snapshot(&ours, Some(&ours)).await.unwrap();
    let stranger = snapshot(&other, Some(&ours)).await.unwrap_err();
    assert!(matches!(stranger, StoreError::Refused { .. }), "{stranger}");
    assert!(stranger.to_string().contains("check --etcd-cafile"), "{stranger}");
    for own in [None, Some(&other)] {
        let error = snapshot(&ours, own).await.unwrap_err().to_string();
        assert!(error.contains("--etcd-certfile and --etcd-keyfile"), "{error}");
    }
}

#[tokio::test]
async fn one_member_with_a_wrong_certificate_is_passed_over_and_renewed_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let ours = certificate(folder.path(), "ours");
    let other = certificate(folder.path(), "other");
    let place = |name| {
        let path = folder.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let good = Etcd::start_with_tls(&place("good"), ours.clone()).unwrap();
    let bad = Etcd::start_with_tls(&place("bad"), other.clone()).unwrap();
    let mut options = EtcdOptions {
        endpoints: vec![bad.client_url(), good.client_url()],
        cafile: Some(ours.ca),
        certfile: Some(ours.cert.clone()),
        keyfile: Some(ours.key.clone()),
        ..options(&good)
    };
    let made = at(EtcdStore::new(&options).unwrap().claim(KEY, Bytes::new(), HOUR).await.unwrap());
    // If none answers, the refusal is reported, because an operator can do something about it.
    options.endpoints[1] = "https://127.0.0.1:1".to_owned();
    let refused = EtcdStore::new(&options).unwrap().snapshot().await;
    assert!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");

    let [cert, key] = ["renewed.pem", "renewed.key"].map(|name| folder.path().join(name));
    fs::copy(&other.cert, &cert).unwrap();
    fs::copy(&other.key, &key).unwrap();
    options.endpoints = vec![good.client_url()];
    (options.certfile, options.keyfile) = (Some(cert.clone()), Some(key.clone()));
    let mut store = EtcdStore::new(&options).unwrap();
    store.snapshot().await.unwrap_err();
    fs::remove_file(&cert).unwrap();
    let gone = store.snapshot().await.unwrap_err();
    assert!(matches!(gone, StoreError::Unavailable { .. }), "{gone}");
    assert!(gone.to_string().contains("read --etcd-certfile"), "{gone}");
    fs::copy(&ours.cert, &cert).unwrap();
    fs::copy(&ours.key, &key).unwrap();
    assert_eq!(store.snapshot().await.unwrap().entries[0].modified, made);
}

#[test]
fn etcd_options_are_checked_before_use() {
    let wrong = |change: fn(&mut EtcdOptions)| {
        let mut options =
            EtcdOptions { endpoints: vec!["https://127.0.0.1:2379".to_owned()], ..EtcdOptions::default() };
        change(&mut options);
        format!("{:#}", EtcdStore::new(&options).err().expect("an error"))
    };
    assert!(wrong(|o| o.endpoints.clear()).contains("--etcd-endpoints"));
    assert!(wrong(|o| o.cafile = Some("/none".into())).contains("read --etcd-cafile /none"));
    assert!(wrong(|o| o.keyfile = Some("/none".into())).contains("give both"));
    let plain = wrong(|o| {
        o.endpoints.push("http://127.0.0.1:2379".to_owned());
        o.cafile = Some("/none".into());
    });
    assert!(plain.contains("write https://"), "{plain}");
}

/// An etcd whose database is full answers, and takes no write. The words say so, and what helps.
#[tokio::test]
async fn an_etcd_without_space_left_is_not_one_that_does_not_answer() {
    let (_folder, etcd) = etcd();
    let mut store = EtcdStore::new(&options(&etcd)).unwrap();
    store.set_config(Bytes::from_static(b"{}")).await.unwrap();
    let made = at(store.claim(KEY, Bytes::from_static(b"one"), HOUR).await.unwrap());
    let mut admin = etcd_client::Client::connect([etcd.client_url()], None).await.unwrap();
    let alarm = (etcd_client::AlarmAction::Activate, etcd_client::AlarmType::Nospace);
    admin.alarm(alarm.0, alarm.1, None).await.unwrap();
    for written in [
        store.set_config(Bytes::from_static(b"{ }")).await.map(drop),
        store.claim("10.244.2.0-24", Bytes::from_static(b"one"), HOUR).await.map(drop),
        store.renew(KEY, Bytes::from_static(b"one"), made, HOUR).await.map(drop),
    ] {
        let error = written.unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("has no space left") && text.contains("etcdctl alarm disarm"), "{text}");
    }
    assert_eq!(store.config().await.unwrap(), Some(Bytes::from_static(b"{}")), "it can be read");
    // A sign of life writes nothing, so the leases that are there live on.
    is_prolonged(&etcd, &mut store, made).await;
    admin.alarm(etcd_client::AlarmAction::Deactivate, alarm.1, None).await.unwrap();
    store.set_config(Bytes::from_static(b"{ }")).await.unwrap();
}
