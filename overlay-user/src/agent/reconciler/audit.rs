//! How the loop brings the data path from what it really has to what the leases say: after all of them were read, and now and
//! then against what is known of them.
use std::collections::BTreeMap;

use log::{info, warn};

use super::state::ReconcilerState;
use crate::{
    agent::{peers, status::FirstApply},
    datapath::{Datapath, DatapathError, Installed},
    store::Snapshot,
};

impl<D: Datapath> ReconcilerState<D> {
    /// Brings the data path from what it really has to what all leases at one revision say.
    pub(super) fn reconcile(&mut self, snapshot: &Snapshot) -> Result<(), DatapathError> {
        let clock = std::time::Instant::now();
        let drift = self.read_back()?;
        // The history is compared only after this read. If what is in force could not be read, another history must still be
        // news to the next round, and to the next agent.
        let other_history = !self.history.goes_on_in(snapshot);
        self.history.snapshot(snapshot);
        self.count = None;
        self.unread = None;
        self.heard(snapshot.revision, Some(snapshot.cluster));
        self.table.snapshot(snapshot);
        let changes = self.put_right(drift, other_history);
        self.schedule.listed(self.hosts());
        let first = FirstApply {
            peers: self.installed.peers.len(),
            changes,
            micros: u64::try_from(clock.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        self.inputs.status.send_modify(|status| {
            if status.peers.first_apply.is_none() {
                status.peers.first_apply = Some(first);
                info!("{} peers in force after {changes} changes in {} us", first.peers, first.micros);
            }
        });
        self.publish();
        Ok(())
    }

    /// Brings the data path from what it really has to what the leases say that are known.
    pub(super) fn audit(&mut self) -> Result<(), DatapathError> {
        let drift = self.read_back()?;
        self.put_right(drift, false);
        self.schedule.audited();
        self.publish();
        Ok(())
    }

    /// Reads what is in force. Returns how many entries are not as this agent left them.
    fn read_back(&mut self) -> Result<usize, DatapathError> {
        let mended = self.datapath.mend()?;
        let remembered = std::mem::replace(&mut self.installed, self.datapath.installed()?);
        self.readable = true;
        let drift = mended + drift(&remembered, &self.installed);
        if drift > 0 {
            warn!("audit: {drift} entries of the data path were altered by another hand: putting them right");
        }
        Ok(drift)
    }

    /// Makes what was read back agree with the leases, and with what was decided about endpoints and ports. Returns how many
    /// peers had to be changed.
    fn put_right(&mut self, drift: usize, other_history: bool) -> usize {
        let (table, peers) = (&self.table, &self.installed.peers);
        self.guard.retain(|subnet| peers.contains_key(subnet), |subnet| table.get(subnet).is_some());
        self.failed.clear();
        let changes = peers::diff(&self.table, &self.installed.peers);
        let count = changes.len();
        self.apply_peers(changes, other_history);
        self.repair();
        self.inputs.status.send_modify(|status| status.datapath.repaired += drift as u64);
        count
    }
}

/// How many entries differ from what this agent wrote or adopted: those that were altered, those that are missing, and those
/// that were added.
fn drift(left: &Installed, found: &Installed) -> usize {
    fn differences<K: Ord, V: PartialEq>(left: &BTreeMap<K, V>, found: &BTreeMap<K, V>) -> usize {
        let altered = left.iter().filter(|(key, value)| found.get(key) != Some(value)).count();
        altered + found.keys().filter(|key| !left.contains_key(key)).count()
    }
    differences(&left.peers, &found.peers)
        + differences(&left.endpoints, &found.endpoints)
        + differences(&left.ports, &found.ports)
}
