//! Tells whether what the store says continues what it said before. A store that was wiped, or restored from a backup, may look
//! like the one that the agent knows. This module is pure: it calls neither kernel nor store.
use std::collections::BTreeMap;

use crate::store::{Batch, LeaseChange, Origin, Revision, Snapshot};

/// What was heard of the store so far.
#[derive(Debug, Default)]
pub struct History {
    origin: Option<Origin>,
    /// When each key was last written, as of the origin's revision. `None` until this agent has read all keys once.
    keys: Option<BTreeMap<String, Revision>>,
}

impl History {
    /// Begins with what an earlier agent heard of the store, if anything.
    pub fn new(origin: Option<Origin>) -> Self {
        Self { origin, keys: None }
    }

    /// Whether a snapshot is of the same history. It is not if it comes from another cluster, or if its revision is lower than
    /// the last known one. Nor is it if a key was last written at a revision that we have passed, and we know nothing of that
    /// write: then the store began to count anew, and has passed our revision meanwhile. A key that is missing proves nothing.
    pub fn goes_on_in(&self, snapshot: &Snapshot) -> bool {
        let Some(origin) = self.origin else { return true };
        let contradicts = |keys: &BTreeMap<String, Revision>| {
            let mut old = snapshot.entries.iter().filter(|entry| entry.modified <= origin.revision);
            old.any(|entry| keys.get(&entry.key) != Some(&entry.modified))
        };
        origin.goes_on_in(snapshot.origin()) && !self.keys.as_ref().is_some_and(contradicts)
    }

    /// Takes in all keys at one revision.
    pub fn snapshot(&mut self, snapshot: &Snapshot) {
        self.origin = Some(snapshot.origin());
        let keys = snapshot.entries.iter().map(|entry| (entry.key.clone(), entry.modified));
        self.keys = Some(keys.collect());
    }

    /// Takes in the changes of one revision.
    pub fn change(&mut self, batch: &Batch) {
        if let Some(origin) = &mut self.origin {
            origin.revision = batch.revision;
        }
        let Some(keys) = &mut self.keys else { return };
        for change in &batch.changes {
            match change {
                LeaseChange::Put(entry) => {
                    keys.insert(entry.key.clone(), entry.modified);
                }
                LeaseChange::Delete { key } => {
                    keys.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{LeaseEntry, Lifetime};

    fn entry(key: &str, modified: i64) -> LeaseEntry {
        let value = bytes::Bytes::new();
        LeaseEntry { key: key.to_owned(), value, modified: Revision(modified), lifetime: Lifetime::Limited }
    }

    fn snapshot(revision: i64, entries: &[(&str, i64)]) -> Snapshot {
        let entries = entries.iter().map(|(key, modified)| entry(key, *modified)).collect();
        Snapshot { revision: Revision(revision), cluster: 7, entries }
    }

    #[test]
    fn only_what_contradicts_is_another_history() {
        let mut history = History::default();
        assert!(history.goes_on_in(&snapshot(1, &[("a", 1)])), "nothing is known yet");
        history.snapshot(&snapshot(10, &[("a", 3), ("b", 9)]));
        let put = LeaseChange::Put(entry("c", 12));
        let deleted = LeaseChange::Delete { key: "b".to_owned() };
        history.change(&Batch { revision: Revision(12), changes: vec![put, deleted] });
        history.change(&Batch { revision: Revision(20), changes: vec![] });

        for (later, goes_on) in [
            (snapshot(20, &[("a", 3), ("c", 12)]), true),
            (snapshot(30, &[("a", 25), ("d", 21)]), true),
            (snapshot(30, &[]), true),
            (snapshot(19, &[("a", 3), ("c", 12)]), false),
            (snapshot(30, &[("a", 4), ("c", 12)]), false),
            (snapshot(30, &[("a", 3), ("b", 9)]), false),
            (snapshot(30, &[("d", 20)]), false),
            (Snapshot { cluster: 8, ..snapshot(30, &[("a", 3)]) }, false),
        ] {
            assert_eq!(history.goes_on_in(&later), goes_on, "{later:?}");
        }
    }

    #[test]
    fn an_earlier_agents_note_knows_no_keys() {
        let history = History::new(Some(Origin { cluster: 7, revision: Revision(20) }));
        assert!(history.goes_on_in(&snapshot(20, &[("a", 3)])));
        assert!(!history.goes_on_in(&snapshot(19, &[])));
    }
}
