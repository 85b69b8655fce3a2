//! The local lease once this host has it: it is kept alive, claimed again when somebody deletes it, and never given up.
mod status;

use std::time::Duration;

use bytes::Bytes;
use log::{error, info, warn};
use tokio::time::Instant;

pub use self::status::{LeaseState, LeaseStatus};
use crate::{
    model::{clock::unix_at, lease},
    store::{
        Batch, LeaseChange, LeaseEntry, Revision, Snapshot, Store, StoreError, Written,
        acquire::{self, LocalLease, RenewError},
    },
};

/// How long to wait after a failed write.
const RETRY: Duration = Duration::from_secs(60);

/// Keeps this host's local lease.
#[derive(Debug)]
pub struct LeaseKeeper {
    current: LocalLease,
    key: String,
    value: Bytes,
    margin: Duration,
    state: LeaseState,
    /// When the key is written next. `None` while another host holds the key: it is written once that host's lease is gone.
    due: Option<Instant>,
    error: Option<String>,
    /// Whether the last write failed. It may have been made all the same.
    unsure: bool,
    /// Whether somebody else has altered the value since our last write.
    altered: bool,
    /// When a value that somebody else had altered was last written again.
    answered: Option<Instant>,
}

/// What came of writing the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseWrite {
    /// There is nothing more to do now.
    Settled,
    /// Somebody else wrote the key meanwhile. Only a new snapshot tells how it stands.
    Outrun,
}

impl LeaseKeeper {
    /// Begins with a lease that was just acquired, to be renewed `margin` before its end.
    pub fn new(lease: LocalLease, margin: Duration) -> Self {
        Self {
            key: lease.lease.key(),
            value: lease.lease.value(),
            due: Some(lease.renew_at(margin)),
            current: lease,
            margin,
            state: LeaseState::Held,
            error: None,
            unsure: false,
            altered: false,
            answered: None,
        }
    }

    /// When [`LeaseKeeper::keep`] is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// How the lease stands, for status and readiness.
    pub fn status(&self) -> LeaseStatus {
        LeaseStatus {
            key: self.key.clone(),
            state: self.state.clone(),
            expires: self.current.ends_at().map(unix_at),
            renews: self.due.map(unix_at),
            error: self.error.clone(),
        }
    }

    /// Takes in what all leases at one revision say about this host's key.
    pub fn snapshot(&mut self, snapshot: &Snapshot) {
        match snapshot.entries.iter().find(|entry| entry.key == self.key) {
            Some(entry) => self.seen(entry),
            None => self.gone(snapshot.revision),
        }
    }

    /// Takes in what the changes of one revision say about this host's key.
    pub fn change(&mut self, batch: &Batch) {
        // The stream of changes lags behind our own writes. What happened before the last of them no longer matters.
        if batch.revision <= self.current.modified {
            return;
        }
        for change in &batch.changes {
            match change {
                LeaseChange::Put(entry)
                    if entry.key == self.key && entry.value == self.value && !self.unsure =>
                {
                    self.imitated(entry);
                }
                LeaseChange::Put(entry) if entry.key == self.key => self.seen(entry),
                LeaseChange::Delete { key } if *key == self.key => self.gone(batch.revision),
                LeaseChange::Put(_) | LeaseChange::Delete { .. } => {}
            }
        }
    }

    /// Renews the lease, or claims the key if it is missing.
    pub async fn keep(&mut self, store: &mut impl Store) -> LeaseWrite {
        if std::mem::take(&mut self.altered) {
            self.answered = Some(Instant::now());
        }
        let (verb, done) = if self.state == LeaseState::Missing {
            ("claim", self.claim(store).await)
        } else {
            ("renew", acquire::renew(store, &mut self.current).await)
        };
        match done {
            Ok(()) => {
                info!("{verb} lease {}: done at revision {}", self.key, self.current.modified);
                self.state = LeaseState::Held;
                self.error = None;
                self.unsure = false;
                self.due = Some(self.current.renew_at(self.margin));
                LeaseWrite::Settled
            }
            Err(RenewError::Lost { .. }) => {
                self.due = Some(Instant::now() + RETRY);
                LeaseWrite::Outrun
            }
            Err(RenewError::Store(failed)) => {
                self.failed(verb, &failed);
                LeaseWrite::Settled
            }
        }
    }

    async fn claim(&mut self, store: &mut impl Store) -> Result<(), RenewError> {
        let claimed = Instant::now();
        match store.claim(&self.key, self.value.clone(), self.current.time_to_live).await? {
            Written::At(revision) => {
                self.current.modified = revision;
                self.current.renewed = claimed;
                Ok(())
            }
            Written::Lost => Err(RenewError::Lost { key: self.key.clone(), holder: None }),
        }
    }

    fn failed(&mut self, verb: &str, why: &StoreError) {
        error!("{verb} lease {}: {why}; traffic goes on, next try in {RETRY:?}", self.key);
        self.error = Some(why.to_string());
        self.unsure = true;
        self.due = Some(Instant::now() + RETRY);
    }

    /// Our own value was written again by somebody else. Most likely a second host has our public IP and renews the same
    /// lease. It answers each write of ours with one of its own, so there is a pause before the next one.
    fn imitated(&mut self, entry: &LeaseEntry) {
        self.current.modified = entry.modified;
        self.state = LeaseState::Held;
        if self.heed(entry) {
            self.due = Some(self.current.renew_at(self.margin));
            return;
        }
        let ip = self.current.lease.public_ip;
        let why = format!(
            "somebody else wrote lease {}: does another host use public IP {ip}? Give one of them another --public-ip",
            self.key
        );
        warn!("{why}");
        self.error = Some(why);
        self.due = Some(Instant::now() + RETRY);
    }

    /// Takes in whether the key is a reservation, which an operator may make of a running host's lease. Returns whether that
    /// is news.
    fn heed(&mut self, entry: &LeaseEntry) -> bool {
        let news = self.current.heed(entry.lifetime);
        if news {
            info!("lease {} is a reservation now: it gets no end any more", self.key);
        }
        news
    }

    fn seen(&mut self, entry: &LeaseEntry) {
        if entry.value == self.value {
            self.heed(entry);
            if entry.modified != self.current.modified || self.unsure {
                // The value is ours, but we do not know of the write, so its time to live may be another. Or our last
                // write failed, and the store answers again. In both cases a renewal makes sure.
                self.due = Some(Instant::now());
            }
            self.current.modified = entry.modified;
            self.state = LeaseState::Held;
            return;
        }
        self.current.modified = entry.modified;
        let lease = lease::decode(&entry.key, &entry.value);
        if lease.as_ref().is_ok_and(|lease| lease.public_ip == self.current.lease.public_ip) {
            self.heed(entry);
            // The value is written again at once, but at most once a minute. Otherwise two hosts with the same public IP and
            // different values would answer each other as fast as the store can write.
            let now = Instant::now();
            let due = self.answered.map_or(now, |last| now.max(last + RETRY));
            warn!("lease {} was altered from outside: writing it again in {:?}", self.key, due - now);
            self.state = LeaseState::Held;
            self.altered = true;
            self.due = Some(due);
            return;
        }
        let to = lease.map_or_else(
            |bad| format!("nobody legible ({})", bad.problem),
            |lease| lease.public_ip.to_string(),
        );
        let state = LeaseState::Lost { to };
        if self.state != state
            && let LeaseState::Lost { to } = &state
        {
            error!(
                "lease {} is held by {to} now: two hosts share one subnet. Traffic goes on here; stop the other host's \
                 agent and delete its key, and this host takes the lease back",
                self.key
            );
        }
        self.state = state;
        self.due = None;
    }

    fn gone(&mut self, revision: Revision) {
        // A store that was wiped counts its revisions from the start. From this revision on its changes count again.
        self.current.modified = revision;
        if self.state != LeaseState::Missing {
            warn!("lease {} was deleted or has expired: claiming it again", self.key);
            self.state = LeaseState::Missing;
            self.due = Some(Instant::now());
        } else if self.unsure {
            // Our claim failed, and now the store answers again.
            self.due = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
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
            assert_eq!(keeper.due(), Some(keeper.current.renew_at(MARGIN)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_hosts_that_alter_each_others_value_write_once_a_minute() {
        let (mut store, mut keeper) = acquired().await;
        for pause in [Duration::ZERO, RETRY] {
            store.put(&keeper.key, lease(2).value(), Some(TIME_TO_LIVE));
            let due = Instant::now() + pause;
            // However often the value is seen, the time of the next write stays the same.
            for _ in 0..2 {
                keeper.snapshot(&store.snapshot().await.unwrap());
                assert_eq!(keeper.due(), Some(due));
            }
            tokio::time::sleep_until(due).await;
            keeper.keep(&mut store).await;
            assert_eq!(store.snapshot().await.unwrap().entries[0].value, lease(1).value());
        }
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
}
