//! A store in memory that can be made to fail, for tests of everything that depends on a store.
use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};

use super::{
    Batch, Follow, Origin, Revision, Snapshot, Store, StoreError, Tally, Written,
    ledger::{Edit, Ledger, Millis, Term, Value},
};

/// A handle to a store in memory. Its clones share the content, as several hosts share an etcd.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    shared: Arc<Mutex<Shared>>,
    /// Wakes followers. The number counts how often all watches were cut.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Shared {
    ledger: Ledger,
    config: Option<Bytes>,
    fault: Option<Fault>,
    /// What [`Store::cheap_snapshot`] gives instead of the truth.
    lagging: Option<Snapshot>,
    asked: Asked,
    start: Instant,
}

/// How often a store in memory was asked for what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// For all keys.
    pub snapshots: usize,
    /// For the number of keys.
    pub tallies: usize,
    /// For the changes after a revision.
    pub follows: usize,
    /// To write, prolong or delete a key.
    pub writes: usize,
}

/// How every call fails, until the fault is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The calls fail as if the network were gone.
    Unavailable,
    /// The calls fail as if the password were wrong.
    Refused,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self {
            shared: Arc::new(Mutex::new(Shared {
                ledger: Ledger::new(1),
                config: None,
                fault: None,
                lagging: None,
                asked: Asked::default(),
                start: Instant::now(),
            })),
            changed: watch::Sender::new(0),
        }
    }
}

impl MemoryStore {
    /// Makes every call fail, also those of open watches, or makes them work again.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.lock().fault = fault;
        self.wake();
    }

    /// Forgets all history, so that whoever follows from an earlier revision is behind.
    pub fn compact(&self) {
        self.lock().ledger.compact();
        self.wake();
    }

    /// Ends every open watch, as a lost connection does.
    pub fn cut_watches(&self) {
        self.changed.send_modify(|cuts| *cuts += 1);
    }

    /// Empties the store and makes it another cluster, whose revisions start anew.
    pub fn wipe(&self) {
        let mut shared = self.lock();
        shared.ledger = Ledger::new(shared.ledger.cluster + 1);
        drop(shared);
        self.wake();
    }

    /// How often the store was asked for what.
    pub fn asked(&self) -> Asked {
        self.lock().asked
    }

    /// Has a part of the store lag behind: cheap snapshots show this.
    pub fn lag(&self, behind: Snapshot) {
        self.lock().lagging = Some(behind);
    }

    /// How long a key still lives, if it is there and has an end.
    pub fn remaining(&self, key: &str) -> Option<Duration> {
        let shared = self.lock();
        let end = shared.ledger.term(key)?.expires;
        Some(Duration::from_millis(end.saturating_sub(shared.now())))
    }

    /// Writes a key without any follower hearing of it.
    pub fn put_unheard(&self, key: &str, value: impl Into<Bytes>) {
        let mut shared = self.lock();
        shared.ledger.put(key, value.into(), None);
        shared.ledger.hide_last();
    }

    /// Writes a key without any guard, as an operator may. Without a time to live it is a reservation.
    pub fn put(&self, key: &str, value: impl Into<Bytes>, time_to_live: Option<Duration>) -> Revision {
        let mut shared = self.lock();
        let term = shared.term(time_to_live);
        let revision = shared.ledger.put(key, value.into(), term);
        drop(shared);
        self.wake();
        revision
    }

    /// Makes all changes at one revision; `None` deletes.
    pub fn commit(&self, changes: impl IntoIterator<Item = (String, Option<Bytes>)>) -> Revision {
        let edit = |(key, value): (String, Option<Bytes>)| Edit {
            key,
            to: value.map(|value| Value { value, term: None }),
        };
        let changes = changes.into_iter().map(edit).collect();
        let revision = self.lock().ledger.commit(changes);
        self.wake();
        revision
    }

    /// Deletes a key without any guard.
    pub fn delete(&self, key: &str) -> Revision {
        self.commit([(key.to_owned(), None)])
    }

    fn wake(&self) {
        self.changed.send_modify(|_| ());
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no holder of the lock panics")
    }

    /// Lets other tasks run before a call, as a network would, so that what races with etcd races here, too.
    async fn reach(&self) -> Result<MutexGuard<'_, Shared>, StoreError> {
        tokio::task::yield_now().await;
        self.open()
    }

    /// The content, without what has expired; or an error if a fault is set.
    fn open(&self) -> Result<MutexGuard<'_, Shared>, StoreError> {
        let mut shared = self.lock();
        match shared.fault {
            Some(Fault::Unavailable) => {
                Err(StoreError::Unavailable { store: self.name(), detail: "made to fail".to_owned() })
            }
            Some(Fault::Refused) => {
                Err(StoreError::Refused { store: self.name(), detail: "made to refuse".to_owned() })
            }
            None => {
                let now = shared.now();
                shared.ledger.expire(now);
                Ok(shared)
            }
        }
    }

    async fn write(&self, write: impl FnOnce(&mut Shared) -> Written) -> Result<Written, StoreError> {
        let mut shared = self.reach().await?;
        shared.asked.writes += 1;
        let written = write(&mut shared);
        drop(shared);
        self.wake();
        Ok(written)
    }
}

impl Shared {
    fn now(&self) -> Millis {
        Millis::try_from(self.start.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    fn term(&self, time_to_live: Option<Duration>) -> Option<Term> {
        let millis = |time: Duration| Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX);
        let life = time_to_live.map(millis)?;
        Some(Term { expires: self.now().saturating_add(life), life })
    }
}

impl Store for MemoryStore {
    type Follow = MemoryFollow;

    fn name(&self) -> String {
        "store in memory".to_owned()
    }

    async fn config(&mut self) -> Result<Option<Bytes>, StoreError> {
        Ok(self.reach().await?.config.clone())
    }

    async fn set_config(&mut self, value: Bytes) -> Result<(), StoreError> {
        self.reach().await?.config = Some(value);
        Ok(())
    }

    async fn origin(&mut self) -> Result<Origin, StoreError> {
        Ok(self.reach().await?.ledger.snapshot().origin())
    }

    async fn snapshot(&mut self) -> Result<Snapshot, StoreError> {
        let mut shared = self.reach().await?;
        shared.asked.snapshots += 1;
        Ok(shared.ledger.snapshot())
    }

    async fn cheap_snapshot(&mut self) -> Result<Snapshot, StoreError> {
        let lagging = self.reach().await?.lagging.clone();
        match lagging {
            Some(snapshot) => Ok(snapshot),
            None => self.snapshot().await,
        }
    }

    async fn tally(&mut self, keys: &[&str]) -> Result<Tally, StoreError> {
        let mut shared = self.reach().await?;
        shared.asked.tallies += 1;
        Ok(shared.ledger.tally(keys))
    }

    async fn follow(&mut self, revision: Revision) -> Result<MemoryFollow, StoreError> {
        self.reach().await?.asked.follows += 1;
        let changed = self.changed.subscribe();
        let cuts = *changed.borrow();
        Ok(MemoryFollow { store: self.clone(), revision, changed, cuts })
    }

    async fn claim(
        &mut self,
        key: &str,
        value: Bytes,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        self.write(|shared| {
            let term = shared.term(time_to_live);
            shared.ledger.claim(key, value, term)
        })
        .await
    }

    async fn renew(
        &mut self,
        key: &str,
        value: Bytes,
        modified: Revision,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        self.write(|shared| {
            let term = shared.term(time_to_live);
            shared.ledger.renew(key, value, modified, term)
        })
        .await
    }

    async fn replace(
        &mut self,
        old: &str,
        modified: Revision,
        key: &str,
        value: Bytes,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        self.write(|shared| {
            let term = shared.term(time_to_live);
            shared.ledger.replace(old, modified, key, value, term)
        })
        .await
    }

    async fn prolong(
        &mut self,
        key: &str,
        modified: Revision,
        time_to_live: Option<Duration>,
    ) -> Result<Written, StoreError> {
        self.write(|shared| {
            let term = shared.term(time_to_live);
            shared.ledger.prolong(key, modified, term)
        })
        .await
    }

    async fn release(&mut self, key: &str, modified: Revision) -> Result<Written, StoreError> {
        self.write(|shared| shared.ledger.release(key, modified)).await
    }
}

/// The watch of a [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryFollow {
    store: MemoryStore,
    revision: Revision,
    changed: watch::Receiver<u64>,
    cuts: u64,
}

impl Follow for MemoryFollow {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        loop {
            // The change is marked as seen before the look at the ledger, so that a change after the look wakes us.
            if *self.changed.borrow_and_update() != self.cuts {
                return Err(StoreError::Unavailable {
                    store: self.store.name(),
                    detail: "the watch was cut".to_owned(),
                });
            }
            let expiry = {
                let shared = self.store.open()?;
                let behind = |oldest| StoreError::Behind { store: self.store.name(), oldest };
                if let Some(batch) = shared.ledger.after(self.revision).map_err(behind)? {
                    self.revision = batch.revision;
                    return Ok(batch);
                }
                let expires = |millis| shared.start + Duration::from_millis(millis);
                shared.ledger.next_expiry().map(expires)
            };
            let until_expiry = async {
                match expiry {
                    Some(expiry) => tokio::time::sleep_until(expiry).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.changed.changed() => {}
                () = until_expiry => {}
            }
        }
    }
}
