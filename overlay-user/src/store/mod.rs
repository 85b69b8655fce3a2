//! Where leases live: the trait `Store` that the reconciler depends on, and the stores that implement it.
pub mod acquire;
pub mod dir;
pub mod drained;
pub mod etcd;
pub mod history;
mod ledger;
pub mod local_lease;
pub mod memory;
mod observed;
pub mod prefix;

use std::{fmt, future::Future, time::Duration};

use bytes::Bytes;

/// A store's version number. A higher number is later, and zero is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a key lives on when nobody renews it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// It has no end: it is a reservation that an operator wrote (flannel's Documentation/reservations.md).
    Reserved,
    /// It ends when its time to live is over.
    Limited,
}

/// One key below `<prefix>/subnets/`, and its value as bytes. A value that cannot be read is not the store's concern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseEntry {
    /// The key without `<prefix>/subnets/`: `10.244.61.0-24`, or `10.244.50.0-24&fd00:244:0:4b::-64`.
    pub key: String,
    /// The value, byte for byte.
    pub value: Bytes,
    /// When the key was last written, which [`Store::renew`] and [`Store::release`] ask for.
    pub modified: Revision,
    /// Whether the key ends by itself.
    pub lifetime: Lifetime,
}

/// All keys at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision that all entries were read at, and from which the store can be followed.
    pub revision: Revision,
    /// Identity of the store. If it differs, another cluster (or folder) answers under the same address.
    pub cluster: u64,
    /// The entries, in no particular order.
    pub entries: Vec<LeaseEntry>,
}

/// Which history of a store something comes from, and how far that history had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The cluster's identity, as in [`Snapshot::cluster`].
    pub cluster: u64,
    /// The last revision heard of.
    pub revision: Revision,
}

impl Origin {
    /// Whether `later` continues this history. The cluster's identity alone does not tell: etcd computes it from its members'
    /// names and addresses, so a cluster that was wiped or restored from a backup has the same one. But its revisions went
    /// back.
    pub fn goes_on_in(&self, later: Self) -> bool {
        self.cluster == later.cluster && self.revision <= later.revision
    }
}

impl Snapshot {
    /// The history that the snapshot was taken of.
    pub fn origin(&self) -> Origin {
        Origin { cluster: self.cluster, revision: self.revision }
    }
}

/// One change below `<prefix>/subnets/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// A key was written (created, renewed or altered).
    Put(LeaseEntry),
    /// A key was deleted or expired.
    Delete {
        /// The key without `<prefix>/subnets/`.
        key: String,
    },
}

/// All changes of one revision, because the mass-delete guard looks at a revision as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The revision that made them.
    pub revision: Revision,
    /// The changes, in the store's order. A batch without any says that nothing changed up to this revision, so that a later
    /// watch may start from it.
    pub changes: Vec<LeaseChange>,
}

/// How many keys there are, and what a few of them hold, at one revision. A store answers this far more cheaply than a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// The history that was counted, and its revision.
    pub origin: Origin,
    /// How many keys there are.
    pub count: usize,
    /// The entries of the keys that were asked for, in their order; `None` where there is no such key.
    pub entries: Vec<Option<LeaseEntry>>,
}

/// The answer to a guarded write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The write was made, at this revision.
    At(Revision),
    /// The write was not made, because the key was not in the state that the guard asked for: somebody else was first.
    Lost,
}

/// How a store fails, as far as callers must tell failures apart. The details are in the text.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The history between the revision that was asked for and now is gone (compaction). A new snapshot is needed.
    #[error("history of {store} before revision {oldest} is gone")]
    Behind {
        /// Which store.
        store: String,
        /// The oldest revision still there.
        oldest: Revision,
    },
    /// Changes came faster than they were taken in, so that some were let go. A new snapshot is needed.
    #[error("{store} changed faster than its changes were taken in")]
    Overrun {
        /// Which store.
        store: String,
    },
    /// The store cannot be reached, took too long, or has no leader. It may be tried again later.
    #[error("{store} does not answer: {detail}")]
    Unavailable {
        /// Which store.
        store: String,
        /// What the client said.
        detail: String,
    },
    /// The store was reached and has no space left: it can be read, and takes no write until somebody makes space.
    #[error("{store} has no space left: {detail}")]
    Full {
        /// Which store.
        store: String,
        /// What it said, and what to do.
        detail: String,
    },
    /// The store was reached and refuses (password, certificate, permission). Trying again does not help by itself.
    #[error("{store} refuses: {detail}")]
    Refused {
        /// Which store.
        store: String,
        /// What it said, and what to do.
        detail: String,
    },
}

/// The stream of a [`Store::follow`]. Dropping it ends the watch.
pub trait Follow: Send {
    /// The next batch. An error ends the stream. This is cancel-safe.
    fn next(&mut self) -> impl Future<Output = Result<Batch, StoreError>> + Send;
}

/// A place that holds the network's config and one key per leased subnet, with flannel's keys and values.
pub trait Store: Send {
    /// What [`Store::follow`] gives.
    type Follow: Follow + 'static;

    /// Name for messages: `etcd at http://127.0.0.1:2379 below /coreos.com/network`.
    fn name(&self) -> String;
    /// What an operator should know of the store although it answers, such as clocks that do not agree.
    fn remark(&self) -> Option<String> {
        None
    }
    /// The network's config, `<prefix>/config`, undecoded. `None` if nobody wrote one.
    fn config(&mut self) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send;
    /// Writes the network's config.
    fn set_config(&mut self, value: Bytes) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Which history the store tells, and how far that has got.
    fn origin(&mut self) -> impl Future<Output = Result<Origin, StoreError>> + Send;
    /// All keys below `<prefix>/subnets/`, all pages at one revision.
    fn snapshot(&mut self) -> impl Future<Output = Result<Snapshot, StoreError>> + Send;
    /// The same from whichever part of the store costs least, which may lag behind: the snapshot may be of an earlier revision
    /// than one that was heard of already, and says nothing in that case.
    fn cheap_snapshot(&mut self) -> impl Future<Output = Result<Snapshot, StoreError>> + Send {
        self.snapshot()
    }
    /// Counts all keys below `<prefix>/subnets/`, and reads those of `keys`, at one revision. No earlier answer of the store was
    /// of a later revision.
    fn tally(&mut self, keys: &[&str]) -> impl Future<Output = Result<Tally, StoreError>> + Send;
    /// Follows every change after `revision`, in order and without a gap.
    fn follow(&mut self, revision: Revision)
    -> impl Future<Output = Result<Self::Follow, StoreError>> + Send;
    /// Creates `key` if neither it nor another key of the same IPv4 subnet is there: a lease of both families has another key
    /// than one of IPv4 alone. `time_to_live` of `None` means no end.
    fn claim(
        &mut self,
        key: &str,
        value: Bytes,
        time_to_live: Option<Duration>,
    ) -> impl Future<Output = Result<Written, StoreError>> + Send;
    /// Writes `key` again if it was last written at `modified`, with a fresh time to live.
    fn renew(
        &mut self,
        key: &str,
        value: Bytes,
        modified: Revision,
        time_to_live: Option<Duration>,
    ) -> impl Future<Output = Result<Written, StoreError>> + Send;
    /// Creates `key` in place of `old` at one revision, so that at no moment both or neither are there. It is lost if `old` was
    /// not last written at `modified`, or if there is another key of the same IPv4 subnet as `key`. Followers hear of the
    /// deletion first: a flanneld tells leases apart by their subnets, and would remove the new one with the old.
    fn replace(
        &mut self,
        old: &str,
        modified: Revision,
        key: &str,
        value: Bytes,
        time_to_live: Option<Duration>,
    ) -> impl Future<Output = Result<Written, StoreError>> + Send;
    /// Has `key` live for its time to live from now on without writing it, so that no follower hears of it. It is lost if the
    /// key was not last written at `modified`, or if it has another time to live; then only [`Store::renew`] helps.
    fn prolong(
        &mut self,
        key: &str,
        modified: Revision,
        time_to_live: Option<Duration>,
    ) -> impl Future<Output = Result<Written, StoreError>> + Send;
    /// Deletes `key` if it was last written at `modified`.
    fn release(
        &mut self,
        key: &str,
        modified: Revision,
    ) -> impl Future<Output = Result<Written, StoreError>> + Send;
}
