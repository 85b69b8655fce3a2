//! The keeper of the local lease, beside a store in memory that fails or is written by others.
use super::*;
use crate::{
    model::lease::{Lease, LeaseBackend},
    store::{
        Lifetime,
        acquire::TIME_TO_LIVE,
        memory::{Fault, MemoryStore},
    },
};

const MARGIN: Duration = Duration::from_secs(3600);

fn lease(mac: u8) -> Lease {
    Lease {
        subnet: "10.244.1.0/24".parse().unwrap(),
        public_ip: [10, 99, 0, 1].into(),
        backend: LeaseBackend::Vxlan { vni: 1, vtep_mac: crate::model::mac::Mac([2, 0, 0, 0, 0, mac]) },
        ipv6: None,
    }
}

/// A store, and the keeper of a lease that was just acquired in it.
async fn acquired() -> (MemoryStore, LeaseKeeper) {
    let mut store = MemoryStore::default();
    let (lease, time_to_live) = (lease(1), Some(TIME_TO_LIVE));
    let written = store.claim(&lease.key(), lease.value(), time_to_live).await.unwrap();
    let Written::At(modified) = written else { panic!("{written:?}") };
    let lease = LocalLease { lease, modified, time_to_live, renewed: Instant::now() };
    (store, LeaseKeeper::new(lease, MARGIN))
}

#[tokio::test(start_paused = true)]
async fn what_a_store_that_was_down_did_not_take_is_tried_as_soon_as_it_answers() {
    let (mut store, mut keeper) = acquired().await;
    for missing in [false, true] {
        if missing {
            store.delete(&keeper.key);
            keeper.snapshot(&store.snapshot().await.unwrap());
        }
        store.set_fault(Some(Fault::Unavailable));
        assert_eq!(keeper.keep(&mut store).await, LeaseWrite::Settled);
        assert_eq!(keeper.due(), Some(Instant::now() + RETRY));
        store.set_fault(None);
        tokio::time::advance(Duration::from_secs(2)).await;
        keeper.snapshot(&store.snapshot().await.unwrap());
        assert_eq!(keeper.due(), Some(Instant::now()), "missing: {missing}");
        keeper.keep(&mut store).await;
        assert_eq!(keeper.state, LeaseState::Held);
        keeper.snapshot(&store.snapshot().await.unwrap());
        let due = keeper.due().unwrap();
        let early = keeper.current.renew_at(MARGIN + MARGIN / 10);
        assert!((early..=keeper.current.renew_at(MARGIN)).contains(&due));
    }
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_alters_is_written_again_at_once_and_a_fight_is_bounded() {
    let (mut store, mut keeper) = acquired().await;
    let mut waits = Vec::new();
    for times in 1..=AT_ONCE + 2 {
        let revision = store.put(&keeper.key, lease(2).value(), Some(TIME_TO_LIVE));
        let now = Instant::now();
        // However often the value is seen, the time of the next write stays the same.
        let entry = store.snapshot().await.unwrap().entries.remove(0);
        keeper.change(&Batch { revision, changes: vec![LeaseChange::Put(entry)] });
        let due = keeper.due().unwrap();
        keeper.snapshot(&store.snapshot().await.unwrap());
        assert_eq!(keeper.due(), Some(due));
        waits.push(due - now);
        let told = keeper.status().alteration.unwrap();
        assert_eq!((told.times, told.stands), (times.into(), true));
        assert_eq!(told.what, "VtepMAC 02:00:00:00:00:02 instead of 02:00:00:00:00:01");
        tokio::time::sleep_until(due).await;
        assert_eq!(keeper.keep(&mut store).await, LeaseWrite::Settled);
        assert_eq!(store.snapshot().await.unwrap().entries[0].value, lease(1).value());
        assert!(!keeper.status().alteration.unwrap().stands);
    }
    let (at_once, later) = waits.split_at(AT_ONCE as usize);
    assert_eq!((at_once, later), (&[Duration::ZERO; AT_ONCE as usize][..], &[TURN; 2][..]));
    // Unused turns come back.
    tokio::time::advance(TURN * AT_ONCE).await;
    store.put(&keeper.key, lease(2).value(), Some(TIME_TO_LIVE));
    keeper.snapshot(&store.snapshot().await.unwrap());
    assert_eq!(keeper.due(), Some(Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn an_alteration_that_somebody_takes_back_stands_no_longer() {
    let (mut store, mut keeper) = acquired().await;
    for (mac, stands) in [(2, true), (1, false)] {
        let revision = store.put(&keeper.key, lease(mac).value(), Some(TIME_TO_LIVE));
        let entry = store.snapshot().await.unwrap().entries.remove(0);
        keeper.change(&Batch { revision, changes: vec![LeaseChange::Put(entry)] });
        let told = keeper.status().alteration.unwrap();
        assert_eq!((told.times, told.stands), (1, stands));
    }
    // The next alteration is another one.
    store.put(&keeper.key, lease(2).value(), Some(TIME_TO_LIVE));
    keeper.snapshot(&store.snapshot().await.unwrap());
    let told = keeper.status().alteration.unwrap();
    assert_eq!((told.times, told.stands), (2, true));
}

#[tokio::test(start_paused = true)]
async fn renewing_writes_nothing_unless_others_must_hear_of_it() {
    let (mut store, mut keeper) = acquired().await;
    let modified = keeper.current.modified;
    for _ in 0..10 {
        tokio::time::sleep_until(keeper.due().unwrap()).await;
        assert_eq!(keeper.keep(&mut store).await, LeaseWrite::Settled);
    }
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(snapshot.revision, modified, "nothing happened in the store in ten lives");
    assert_eq!(snapshot.entries[0].modified, modified);
    // A second host with this host's public IP has written the lease. It must hear that it is not alone.
    let written = store.put(&keeper.key, lease(1).value(), Some(TIME_TO_LIVE));
    let entry = store.snapshot().await.unwrap().entries.remove(0);
    keeper.change(&Batch { revision: written, changes: vec![LeaseChange::Put(entry)] });
    assert!(keeper.status().error.is_some());
    tokio::time::sleep_until(keeper.due().unwrap()).await;
    assert_eq!(keeper.keep(&mut store).await, LeaseWrite::Settled);
    assert!(keeper.current.modified > written);
    // It is on a shorter term than ours, so it is written, too.
    let written = store.put(&keeper.key, lease(1).value(), Some(TIME_TO_LIVE / 2));
    keeper.look(store.snapshot().await.unwrap().entries.first(), written);
    assert_eq!(keeper.keep(&mut store).await, LeaseWrite::Settled);
    assert!(keeper.current.modified > written);
}

#[tokio::test(start_paused = true)]
async fn a_reservation_made_under_a_running_host_gets_no_end() {
    for value in [lease(1).value(), r#"{"PublicIP":"10.99.0.1"}"#.into()] {
        let (mut store, mut keeper) = acquired().await;
        let modified = store.put(&keeper.key, value.clone(), None);
        let entry = LeaseEntry { key: keeper.key.clone(), value, modified, lifetime: Lifetime::Reserved };
        keeper.change(&Batch { revision: modified, changes: vec![LeaseChange::Put(entry)] });
        assert_eq!((keeper.status().expires, keeper.status().error), (None, None));
        tokio::time::sleep_until(keeper.due().unwrap()).await;
        assert_eq!(keeper.keep(&mut store).await, LeaseWrite::Settled);
        let entry = store.snapshot().await.unwrap().entries.remove(0);
        assert_eq!((entry.value, entry.lifetime), (lease(1).value(), Lifetime::Reserved));
    }
}
