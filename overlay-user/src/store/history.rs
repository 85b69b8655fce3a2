//! Tells whether what the store says continues what it said before. A store that was wiped, or restored from a backup, may look
//! like the one that the agent knows. This module is pure: it calls neither kernel nor store.
use std::collections::BTreeMap;

use crate::store::{Batch, LeaseChange, LeaseEntry, Origin, Revision, Snapshot, Tally};

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

    /// The last revision that was heard of, once all keys have been read.
    pub fn revision(&self) -> Option<Revision> {
        self.keys.as_ref().and(self.origin).map(|origin| origin.revision)
    }

    /// How many keys are known.
    pub fn count(&self) -> usize {
        self.keys.as_ref().map_or(0, BTreeMap::len)
    }

    /// The key that was written last, of those that are known.
    pub fn newest(&self) -> Option<&str> {
        let newest = self.keys.as_ref()?.iter().max_by_key(|(_, modified)| **modified);
        newest.map(|(key, _)| key.as_str())
    }

    /// Why the changes after the last known revision cannot be taken for a continuation of what is known, if that is so. The
    /// store was asked for two keys: `own`, which nobody but this host should have written, and the newest known one. A store
    /// that was wiped has lost the first, and one that was restored from a backup has lost the second or an earlier one; the
    /// count shows that later.
    pub fn doubt(&self, own: &str, tally: &Tally) -> Option<String> {
        let known = self.keys.as_ref()?;
        let origin = self.origin?;
        if tally.origin.cluster != origin.cluster {
            return Some("another cluster answers".to_owned());
        }
        if tally.origin.revision < origin.revision {
            return Some(format!("revision {} went back to {}", origin.revision, tally.origin.revision));
        }
        let mut found = tally.entries.iter().flatten();
        if !found.clone().any(|entry| entry.key == own) {
            return Some(format!("lease {own} of this host is gone"));
        }
        let unknown = |entry: &&LeaseEntry| {
            entry.modified <= origin.revision && known.get(&entry.key) != Some(&entry.modified)
        };
        let entry = found.find(unknown)?;
        Some(format!("lease {} is not what was known at revision {}", entry.key, origin.revision))
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
            origin.revision = origin.revision.max(batch.revision);
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
    fn what_a_look_at_two_keys_tells_of_a_history() {
        let mut history = History::default();
        assert_eq!((history.revision(), history.newest()), (None, None));
        history.snapshot(&snapshot(10, &[("own", 3), ("b", 4), ("new", 9), ("c", 5)]));
        assert_eq!(
            (history.revision(), history.newest(), history.count()),
            (Some(Revision(10)), Some("new"), 4)
        );
        let tally = |cluster, revision, entries: &[(&str, i64)]| Tally {
            origin: Origin { cluster, revision: Revision(revision) },
            count: 4,
            entries: entries.iter().map(|(key, modified)| Some(entry(key, *modified))).collect(),
        };
        for (tally, doubt) in [
            (tally(7, 10, &[("own", 3), ("new", 9)]), None),
            (tally(7, 30, &[("own", 3), ("new", 9)]), None),
            // Either may have been written since.
            (tally(7, 30, &[("own", 20), ("new", 21)]), None),
            // The newest may have been deleted since. The count tells whether it was.
            (tally(7, 30, &[("own", 3)]), None),
            (tally(8, 30, &[("own", 3), ("new", 9)]), Some("another cluster")),
            (tally(7, 9, &[("own", 3), ("new", 9)]), Some("went back")),
            (tally(7, 30, &[("new", 9)]), Some("of this host is gone")),
            (tally(7, 30, &[("own", 2), ("new", 9)]), Some("lease own is not")),
            (tally(7, 30, &[("own", 3), ("new", 7)]), Some("lease new is not")),
        ] {
            let found = history.doubt("own", &tally);
            match doubt {
                None => assert_eq!(found, None, "{tally:?}"),
                Some(words) => assert!(found.as_ref().is_some_and(|why| why.contains(words)), "{found:?}"),
            }
        }
        // What was heard of later than the last change does not turn the history back.
        history.change(&Batch { revision: Revision(8), changes: vec![] });
        assert_eq!(history.revision(), Some(Revision(10)));
    }

    #[test]
    fn an_earlier_agents_note_knows_no_keys() {
        let history = History::new(Some(Origin { cluster: 7, revision: Revision(20) }));
        assert!(history.goes_on_in(&snapshot(20, &[("a", 3)])));
        assert!(!history.goes_on_in(&snapshot(19, &[])));
    }
}
