//! This host's own lease once it has one: kept alive, taken back when somebody deletes it, never given up.
use std::time::Duration;

use bytes::Bytes;
use log::{error, info, warn};
use tokio::time::Instant;

use crate::{
    acquire::{self, Held, RenewError},
    lease,
    status::{LeaseState, LeaseStatus, unix_at},
    store::{Batch, Change, Entry, Revision, Snapshot, Store, StoreError, Written},
};

/// How long to wait after a failed write.
const RETRY: Duration = Duration::from_secs(60);

/// The own lease.
#[derive(Debug)]
pub struct Own {
    held: Held,
    key: String,
    value: Bytes,
    margin: Duration,
    state: LeaseState,
    /// When to write next; `None` is not before the key is free.
    due: Option<Instant>,
    error: Option<String>,
    /// The last write failed, which does not prove that it was not made.
    unsure: bool,
}

/// What a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nothing more to do now.
    Settled,
    /// Somebody else wrote the key meanwhile: only a new snapshot tells what holds.
    Outrun,
}

impl Own {
    /// A lease that was just acquired, to be renewed `margin` before its end.
    pub fn new(held: Held, margin: Duration) -> Self {
        Self {
            key: held.lease.key(),
            value: held.lease.value(),
            due: Some(held.renew_at(margin)),
            held,
            margin,
            state: LeaseState::Held,
            error: None,
            unsure: false,
        }
    }

    /// When [`Own::keep`] is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// For status and readiness.
    pub fn status(&self) -> LeaseStatus {
        LeaseStatus {
            key: self.key.clone(),
            state: self.state.clone(),
            expires: self.held.ends_at().map(unix_at),
            renews: self.due.map(unix_at),
            error: self.error.clone(),
        }
    }

    /// What all leases at one revision say about the own key.
    pub fn snapshot(&mut self, snapshot: &Snapshot) {
        match snapshot.entries.iter().find(|entry| entry.key == self.key) {
            Some(entry) => self.seen(entry),
            None => self.gone(snapshot.revision),
        }
    }

    /// What the changes of one revision say about it.
    pub fn change(&mut self, batch: &Batch) {
        // The stream lags behind our own writes: what is older than the last one is history.
        if batch.revision <= self.held.modified {
            return;
        }
        for change in &batch.changes {
            match change {
                Change::Put(entry) if entry.key == self.key && entry.value == self.value && !self.unsure => {
                    self.imitated(entry.modified);
                }
                Change::Put(entry) if entry.key == self.key => self.seen(entry),
                Change::Delete { key } if *key == self.key => self.gone(batch.revision),
                Change::Put(_) | Change::Delete { .. } => {}
            }
        }
    }

    /// Renews or claims the key, whichever is due.
    pub async fn keep(&mut self, store: &mut impl Store) -> Kept {
        let (verb, done) = if self.state == LeaseState::Missing {
            ("claim", self.claim(store).await)
        } else {
            ("renew", acquire::renew(store, &mut self.held).await)
        };
        match done {
            Ok(()) => {
                info!("{verb} lease {}: done at revision {}", self.key, self.held.modified);
                self.state = LeaseState::Held;
                self.error = None;
                self.unsure = false;
                self.due = Some(self.held.renew_at(self.margin));
                Kept::Settled
            }
            Err(RenewError::Lost { .. }) => {
                self.due = Some(Instant::now() + RETRY);
                Kept::Outrun
            }
            Err(RenewError::Store(failed)) => {
                self.failed(verb, &failed);
                Kept::Settled
            }
        }
    }

    async fn claim(&mut self, store: &mut impl Store) -> Result<(), RenewError> {
        let claimed = Instant::now();
        match store.claim(&self.key, self.value.clone(), self.held.time_to_live).await? {
            Written::At(revision) => {
                self.held.modified = revision;
                self.held.renewed = claimed;
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

    /// Our value, written by another hand after us. Most likely a second host has our public IP, renews the same lease,
    /// and answers every write of ours with its own: hence the pause.
    fn imitated(&mut self, modified: Revision) {
        let ip = self.held.lease.public_ip;
        let why = format!(
            "somebody else wrote lease {}: does another host use public IP {ip}? Give one of them another --public-ip",
            self.key
        );
        warn!("{why}");
        self.error = Some(why);
        self.held.modified = modified;
        self.state = LeaseState::Held;
        self.due = Some(Instant::now() + RETRY);
    }

    fn seen(&mut self, entry: &Entry) {
        if entry.value == self.value {
            if entry.modified != self.held.modified {
                // Our value, not our write: whether its time to live is ours too, only a renewal makes sure.
                self.due = Some(Instant::now());
            }
            self.held.modified = entry.modified;
            self.state = LeaseState::Held;
            return;
        }
        self.held.modified = entry.modified;
        let lease = lease::decode(&entry.key, &entry.value);
        if lease.as_ref().is_ok_and(|lease| lease.public_ip == self.held.lease.public_ip) {
            warn!("lease {} was altered from outside: writing it again", self.key);
            self.state = LeaseState::Held;
            self.due = Some(Instant::now());
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
        // Also after a wiped store, whose revisions start again: from here on its news count.
        self.held.modified = revision;
        if self.state != LeaseState::Missing {
            warn!("lease {} was deleted or has expired: claiming it again", self.key);
            self.state = LeaseState::Missing;
            self.due = Some(Instant::now());
        }
    }
}
