//! This host's own lease once it has one: kept alive, taken back when somebody deletes it, never given up.
use std::{net::Ipv4Addr, time::Duration};

use bytes::Bytes;
use log::{error, info, warn};
use tokio::time::Instant;

use crate::{
    lease::{self, Lease},
    status::{LeaseState, LeaseStatus, unix_at},
    store::{Batch, Change, Entry, Revision, Snapshot, Store, StoreError, Written},
};

/// How long to wait after a failed write.
const RETRY: Duration = Duration::from_secs(60);

/// The own lease.
#[derive(Debug)]
pub struct Own {
    key: String,
    value: Bytes,
    public_ip: Ipv4Addr,
    modified: Revision,
    time_to_live: Option<Duration>,
    margin: Duration,
    expires: Option<Instant>,
    state: LeaseState,
    /// When to write next; `None` is never by itself.
    due: Option<Instant>,
    error: Option<String>,
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
    /// A lease that was just acquired. `time_to_live` of `None` is a reservation; else it is renewed `margin` before
    /// its end, counted from `renewed`.
    pub fn new(
        lease: &Lease,
        modified: Revision,
        time_to_live: Option<Duration>,
        renewed: Instant,
        margin: Duration,
    ) -> Self {
        let mut own = Self {
            key: lease.key(),
            value: lease.value(),
            public_ip: lease.public_ip,
            modified,
            time_to_live,
            margin,
            expires: None,
            state: LeaseState::Held,
            due: None,
            error: None,
        };
        own.written(modified, renewed);
        own
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
            expires: self.expires.map(unix_at),
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
        if batch.revision <= self.modified {
            return;
        }
        for change in &batch.changes {
            match change {
                Change::Put(entry) if entry.key == self.key => self.seen(entry),
                Change::Delete { key } if *key == self.key => self.gone(batch.revision),
                Change::Put(_) | Change::Delete { .. } => {}
            }
        }
    }

    /// Renews or claims the key, whichever is due.
    pub async fn keep(&mut self, store: &mut impl Store) -> Kept {
        let (verb, answer) = if self.state == LeaseState::Missing {
            (
                "claim",
                store
                    .claim(&self.key, self.value.clone(), self.time_to_live)
                    .await,
            )
        } else {
            let value = self.value.clone();
            (
                "renew",
                store
                    .renew(&self.key, value, self.modified, self.time_to_live)
                    .await,
            )
        };
        self.answered(verb, answer)
    }

    fn answered(&mut self, verb: &str, answer: Result<Written, StoreError>) -> Kept {
        match answer {
            Ok(Written::At(revision)) => {
                info!("{verb} lease {}: done at revision {revision}", self.key);
                self.written(revision, Instant::now());
                Kept::Settled
            }
            Ok(Written::Lost) => {
                self.due = Some(Instant::now() + RETRY);
                Kept::Outrun
            }
            Err(failed) => {
                error!(
                    "{verb} lease {}: {failed}; traffic goes on, next try in {RETRY:?}",
                    self.key
                );
                self.error = Some(failed.to_string());
                self.due = Some(Instant::now() + RETRY);
                Kept::Settled
            }
        }
    }

    fn written(&mut self, revision: Revision, at: Instant) {
        self.modified = revision;
        self.state = LeaseState::Held;
        self.error = None;
        self.expires = self.time_to_live.map(|left| at + left);
        self.due = self
            .time_to_live
            .map(|left| at + left.saturating_sub(self.margin).max(left / 10));
    }

    fn seen(&mut self, entry: &Entry) {
        if entry.value == self.value {
            if entry.modified != self.modified {
                // Our value, not our write: whether its time to live is ours too, only a renewal makes sure.
                self.due = Some(Instant::now());
            }
            self.modified = entry.modified;
            self.state = LeaseState::Held;
            return;
        }
        self.modified = entry.modified;
        let lease = lease::decode(&entry.key, &entry.value);
        if lease
            .as_ref()
            .is_ok_and(|lease| lease.public_ip == self.public_ip)
        {
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
        self.modified = revision;
        if self.state != LeaseState::Missing {
            warn!("lease {} was deleted or has expired: claiming it again", self.key);
            self.state = LeaseState::Missing;
            self.due = Some(Instant::now());
        }
    }
}
