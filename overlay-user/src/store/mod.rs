//! Where leases live: the trait the agent's loop depends on, in domain words. etcd and a directory of files are details.
pub mod acquire;
pub mod dir;
pub mod etcd;
pub mod history;
mod ledger;
pub mod local_lease;
pub mod memory;

use std::{fmt, future::Future, time::Duration};

use bytes::Bytes;

/// A store's version number. Higher is later; zero is before everything.
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
    /// Without an end: a reservation, put there by an operator (flannel's Documentation/reservations.md).
    Reserved,
    /// Until its time to live is over.
    Limited,
}

/// One key below `<prefix>/subnets/`, undecoded: a bad value is the loop's business, not the store's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseEntry {
    /// The key without `<prefix>/subnets/`: `10.244.61.0-24`.
    pub key: String,
    /// The value, byte for byte.
    pub value: Bytes,
    /// When the key was last written; the guard of [`Store::renew`] and [`Store::release`].
    pub modified: Revision,
    /// Whether it ends by itself.
    pub lifetime: Lifetime,
}

/// All keys at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision all entries were read at; follow from here.
    pub revision: Revision,
    /// Identity of the store; another one means another cluster (or folder) answers under the same address.
    pub cluster: u64,
    /// The entries, in no particular order.
    pub entries: Vec<LeaseEntry>,
}

/// Which history something comes from, and how far that had got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// [`Snapshot::cluster`].
    pub cluster: u64,
    /// The last revision heard of.
    pub revision: Revision,
}

impl Origin {
    /// Whether `later` continues this history. etcd computes a cluster's identity from its members' names and addresses:
    /// one that was wiped, or restored from a backup, and started as before has the same, but its revisions went back.
    pub fn goes_on_in(&self, later: Self) -> bool {
        self.cluster == later.cluster && self.revision <= later.revision
    }
}

impl Snapshot {
    /// Where it comes from.
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

/// The changes of one revision, together: the mass-delete guard looks at a revision as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The revision that made them.
    pub revision: Revision,
    /// The changes, in the store's order. None at all means that nothing changed up to this revision: what follows
    /// later may start from here.
    pub changes: Vec<LeaseChange>,
}

/// Answer of a guarded write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Done, at this revision.
    At(Revision),
    /// The key was not in the state the guard asked for: somebody else was first. Read again.
    Lost,
}

/// What the loop branches on; everything else is in the source's text.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// History between the asked revision and now is gone (compaction): snapshot again.
    #[error("history of {store} before revision {oldest} is gone")]
    Behind {
        /// Which store.
        store: String,
        /// The oldest revision still there.
        oldest: Revision,
    },
    /// Not reachable, timed out, without leader: try again later, touch nothing.
    #[error("{store} does not answer: {detail}")]
    Unavailable {
        /// Which store.
        store: String,
        /// What the client said.
        detail: String,
    },
    /// Reached, and it refuses us (password, certificate, permission): trying again will not help by itself.
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
    /// The next batch; `Err` ends the stream. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Result<Batch, StoreError>> + Send;
}

/// A place that holds the network's config and one key per leased subnet, with flannel's keys and values.
pub trait Store: Send {
    /// What [`Store::follow`] gives.
    type Follow: Follow;

    /// Name for messages: `etcd at http://127.0.0.1:2379 below /coreos.com/network`.
    fn name(&self) -> String;
    /// The network's config, `<prefix>/config`, undecoded. `None` if nobody wrote one.
    fn config(&mut self) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send;
    /// Writes the network's config.
    fn set_config(&mut self, value: Bytes) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Which history the store tells, and how far that has got.
    fn origin(&mut self) -> impl Future<Output = Result<Origin, StoreError>> + Send;
    /// All keys below `<prefix>/subnets/`, all pages at one revision.
    fn snapshot(&mut self) -> impl Future<Output = Result<Snapshot, StoreError>> + Send;
    /// Every change after `revision`, in order, none left out, or an error.
    fn follow(&mut self, revision: Revision)
    -> impl Future<Output = Result<Self::Follow, StoreError>> + Send;
    /// Creates `key` if it is not there. `time_to_live` of `None` means no end.
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
    /// Deletes `key` if it was last written at `modified`.
    fn release(
        &mut self,
        key: &str,
        modified: Revision,
    ) -> impl Future<Output = Result<Written, StoreError>> + Send;
}
