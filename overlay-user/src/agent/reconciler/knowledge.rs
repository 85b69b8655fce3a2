//! What the loop knows of the store, how it came by it, and whether that still agrees with what the store says of itself.
use log::{info, warn};
use tokio::time::{Duration, Instant};

use super::{
    schedule::Unread,
    state::{Count, ReconcilerState},
};
use crate::{
    agent::status::{Resync, ResyncKind},
    datapath::Datapath,
    model::clock::unix_now,
    store::{Batch, Revision, Tally},
};

/// A change that the store has counted reaches a follower within this time, or never.
const GRACE: Duration = Duration::from_secs(60);

impl<D: Datapath> ReconcilerState<D> {
    /// The keys that tell whether the store still tells the history that is known.
    pub(super) fn witnesses(&self, own: &str) -> Vec<String> {
        let newest = self.history.newest().filter(|newest| *newest != own);
        std::iter::once(own).chain(newest).map(str::to_owned).collect()
    }

    /// Takes in what the store says of itself. If that cannot follow from what is known, all leases must be read again.
    pub(super) fn tallied(&mut self, own: &str, tally: &Tally) {
        self.schedule.tallied();
        self.answered();
        if let Some(why) = self.history.doubt(own, tally) {
            self.distrust(why);
            return;
        }
        let until = Instant::now() + GRACE;
        self.count = Some(Count { revision: tally.origin.revision, keys: tally.count, until });
        self.compare_at(self.history.revision());
    }

    /// Compares the store's count with what is known, if that is of a later revision than the count: before these changes are
    /// taken in.
    pub(super) fn compare_before(&mut self, batch: &Batch) {
        if self.count.is_some_and(|count| count.revision < batch.revision) {
            self.compare();
        }
    }

    /// Compares the store's count with what is known, if both are of this revision.
    pub(super) fn compare_at(&mut self, revision: Option<Revision>) {
        if self.count.is_some_and(|count| Some(count.revision) == revision) {
            self.compare();
        }
    }

    /// When the store's count is compared whether or not its revision was heard of: other keys than leases may have been
    /// written last.
    pub(super) fn compare_by(&self) -> Option<Instant> {
        self.count.map(|count| count.until)
    }

    pub(super) fn compare(&mut self) {
        let Some(count) = self.count.take() else { return };
        let known = self.history.count();
        if known != count.keys {
            self.distrust(format!(
                "{known} leases were known of {} at revision {}",
                count.keys, count.revision
            ));
        }
    }

    /// Has all leases be read after a pause, because whatever made this host doubt what it knows may have made all hosts doubt
    /// it at the same moment: a store that was wiped or restored, say.
    fn distrust(&mut self, why: String) {
        let unread = Unread::rested(why, self.hosts());
        warn!("{}: reading all leases again in {:?}", unread.why, unread.due - Instant::now());
        self.unread = Some(unread);
        self.not_following();
    }

    /// Records in the status how the loop came by what it knows.
    pub(super) fn resynchronised(&mut self, kind: ResyncKind, why: String) {
        let resync = Resync { kind, why, at: unix_now() };
        self.inputs.status.send_modify(|status| status.store.resync = Some(resync));
    }

    /// Records in the status that the stream of changes is open.
    pub(super) fn following(&mut self) {
        self.inputs.status.send_modify(|status| {
            status.store.error = None;
            if !status.store.following {
                info!("following {}", status.store.name);
                status.store.following = true;
                status.store.since = unix_now();
            }
        });
    }

    /// Records in the status that the store has answered, and what else it would have an operator know.
    pub(super) fn answered(&mut self) {
        self.inputs.status.send_modify(|status| {
            status.answered = Some(Instant::now());
            status.store.heard = unix_now();
        });
    }

    /// Records in the status what an operator should know of the store.
    pub(super) fn remarked(&mut self, remark: Option<String>) {
        self.inputs.status.send_if_modified(|status| {
            let news = status.store.remark != remark;
            if news {
                if let Some(remark) = &remark {
                    warn!("{}: {remark}", status.store.name);
                }
                status.store.remark = remark;
            }
            news
        });
    }
}
