//! The local lease once this host has it: it is kept alive, claimed again when somebody deletes it, and never given up.
mod status;

use std::time::Duration;

use bytes::Bytes;
use log::{error, info, warn};
use tokio::time::Instant;

pub use self::status::{Alteration, LeaseState, LeaseStatus};
use crate::{
    model::{clock::unix_at, lease},
    store::{
        Batch, LeaseChange, LeaseEntry, Revision, Snapshot, Store, StoreError, Written,
        acquire::{self, LocalLease, RenewError},
    },
};

/// How long to wait after a failed write.
const RETRY: Duration = Duration::from_secs(60);
/// How often a value that somebody else has altered is written again at once, as a flanneld needs that is started on this host
/// several times in a row, before each write waits for its turn.
const AT_ONCE: u32 = 6;
/// A turn comes after each such time. Two hosts with the same public IP and different values would otherwise answer each other as
/// fast as the store can write.
const TURN: Duration = Duration::from_secs(10);

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
    /// Whether somebody else has written our own value since our last write, and must hear of us.
    imitated: bool,
    /// Whether the last claim was lost, although nobody has written this host's key as far as is known.
    refused: bool,
    /// When the turns are used up that were taken for writing an altered value again.
    turns_until: Option<Instant>,
    /// The alterations so far.
    alteration: Option<Alteration>,
}

/// What came of writing the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseWrite {
    /// There is nothing more to do now.
    Settled,
    /// Somebody else wrote the key meanwhile. Only a new look at it tells how it stands.
    Outrun,
}

impl LeaseKeeper {
    /// Begins with a lease that was just acquired, to be renewed `margin` before its end.
    pub fn new(lease: LocalLease, margin: Duration) -> Self {
        Self {
            key: lease.lease.key(),
            value: lease.lease.value(),
            due: Some(lease.draw_renewal(margin)),
            current: lease,
            margin,
            state: LeaseState::Held,
            error: None,
            unsure: false,
            imitated: false,
            refused: false,
            turns_until: None,
            alteration: None,
        }
    }

    /// This host's key below `<prefix>/subnets/`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The last revision at which this host's key is known to have been written or deleted.
    pub fn modified(&self) -> Revision {
        self.current.modified
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
            ends: self.current.ends_at(),
            renews: self.due.map(unix_at),
            error: self.error.clone(),
            alteration: self.alteration.clone(),
        }
    }

    /// Takes in what all leases at one revision say about this host's key.
    pub fn snapshot(&mut self, snapshot: &Snapshot) {
        self.look(snapshot.entries.iter().find(|entry| entry.key == self.key), snapshot.revision);
    }

    /// Takes in what a look at this host's key alone has shown, at the given revision.
    pub fn look(&mut self, entry: Option<&LeaseEntry>, revision: Revision) {
        match entry {
            Some(entry) => self.seen(entry),
            None => self.gone(revision),
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
        if self.is_altered() {
            let now = Instant::now();
            self.turns_until = Some(self.turns_until.map_or(now, |until| until.max(now)) + TURN);
        }
        let (verb, done) = if self.state == LeaseState::Missing {
            ("claim", self.claim(store).await)
        } else if self.is_altered() || self.imitated {
            ("write", acquire::rewrite(store, &mut self.current).await)
        } else {
            ("renew", acquire::renew(store, &mut self.current).await)
        };
        match done {
            Ok(()) => {
                info!("{verb} lease {}: done at revision {}", self.key, self.current.modified);
                self.state = LeaseState::Held;
                self.error = None;
                self.stands();
                (self.unsure, self.imitated, self.refused) = (false, false, false);
                self.due = Some(self.current.draw_renewal(self.margin));
                LeaseWrite::Settled
            }
            Err(RenewError::Lost { .. }) => {
                self.refused = self.state == LeaseState::Missing;
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
        self.stands();
        if self.heed(entry) {
            self.due = Some(self.current.draw_renewal(self.margin));
            return;
        }
        self.imitated = true;
        let ip = self.current.lease.public_ip;
        let why = format!(
            "somebody else wrote lease {}: does another host use public IP {ip}? Give one of them another --public-ip",
            self.key
        );
        warn!("{why}");
        self.error = Some(why);
        self.due = Some(Instant::now() + RETRY);
    }

    /// Whether somebody else has altered the value since our last write, and it stands.
    fn is_altered(&self) -> bool {
        self.alteration.as_ref().is_some_and(|alteration| alteration.stands)
    }

    /// Takes in that the store has our value, whoever wrote it.
    fn stands(&mut self) {
        if let Some(alteration) = &mut self.alteration {
            alteration.stands = false;
        }
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
        self.refused = false;
        if entry.value == self.value {
            self.stands();
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
        if let Ok(lease) = &lease
            && lease.public_ip == self.current.lease.public_ip
        {
            self.heed(entry);
            let now = Instant::now();
            let turn = self.turns_until.and_then(|until| until.checked_sub(TURN * (AT_ONCE - 1)));
            let due = turn.map_or(now, |turn| turn.max(now));
            let what = self.current.lease.difference(lease, &entry.value);
            // The same value may be looked at several times before it is written again.
            let is_news = !self.is_altered();
            if is_news {
                warn!(
                    "lease {} was altered from outside ({what}): writing it again in {:?}",
                    self.key,
                    due - now
                );
            }
            let times = self.alteration.as_ref().map_or(0, |alteration| alteration.times);
            let times = times + u64::from(is_news);
            self.alteration = Some(Alteration { what, times, last: unix_at(now), stands: true });
            self.state = LeaseState::Held;
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
        } else if self.refused {
            let why = format!(
                "the IPv4 subnet of lease {} is leased by a key of another form: delete the wrong one",
                self.key
            );
            if self.error.as_ref() != Some(&why) {
                error!("{why}; traffic goes on, next try in {RETRY:?}");
            }
            self.error = Some(why);
        }
    }
}

#[cfg(test)]
mod tests;
