//! The rules of a store as plain data: keys with revisions, expiry and a bounded history. The store in memory and the
//! folder each keep a ledger, and have no rules of their own.
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Batch, LeaseChange, LeaseEntry, Lifetime, Origin, Revision, Snapshot, Tally, Written};
use crate::model::lease;

/// How many revisions are kept for followers. A follower that is further behind must take a snapshot.
const HISTORY: usize = 1000;

/// Milliseconds since a moment that the ledger's owner chooses.
pub(super) type Millis = u64;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ledger {
    pub(super) cluster: u64,
    revision: i64,
    /// Followers that know this revision or a later one find all they miss in `history`.
    oldest: i64,
    records: BTreeMap<String, Stored>,
    history: VecDeque<Past>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    #[serde(with = "text")]
    value: Bytes,
    modified: i64,
    #[serde(flatten)]
    term: Option<Term>,
    /// How often the key was prolonged since it was written.
    #[serde(default)]
    prolonged: u64,
}

/// How long a key lives unless it is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Term {
    /// When it ends, by the clock of whoever wrote it.
    pub(super) expires: Millis,
    /// From when it was written on. Earlier agents did not note it; their leases all live for a day.
    #[serde(default = "a_day")]
    pub(super) life: Millis,
}

fn a_day() -> Millis {
    24 * 60 * 60 * 1000
}

/// What tells one writing or prolongation of a key from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: i64,
    prolonged: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Past {
    revision: i64,
    changes: Vec<Edit>,
}

/// A key's new value, or its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Edit {
    pub(super) key: String,
    pub(super) to: Option<Value>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Value {
    #[serde(with = "text")]
    pub(super) value: Bytes,
    #[serde(flatten)]
    pub(super) term: Option<Term>,
}

impl Ledger {
    pub(super) fn new(cluster: u64) -> Self {
        Self { cluster, revision: 1, oldest: 1, records: BTreeMap::new(), history: VecDeque::new() }
    }

    /// Makes all changes at one new revision.
    pub(super) fn commit(&mut self, changes: Vec<Edit>) -> Revision {
        self.revision += 1;
        for Edit { key, to } in &changes {
            match to.clone() {
                Some(Value { value, term }) => {
                    let stored = Stored { value, modified: self.revision, term, prolonged: 0 };
                    self.records.insert(key.clone(), stored);
                }
                None => drop(self.records.remove(key)),
            }
        }
        self.history.push_back(Past { revision: self.revision, changes });
        while self.history.len() > HISTORY {
            self.oldest = self.history.pop_front().map_or(self.oldest, |past| past.revision);
        }
        Revision(self.revision)
    }

    pub(super) fn put(&mut self, key: &str, value: Bytes, term: Option<Term>) -> Revision {
        let to = Some(Value { value, term });
        self.commit(vec![Edit { key: key.to_owned(), to }])
    }

    /// Deletes keys at one revision. What is deleted together must be seen together, or the mass-delete guard would take a
    /// mass deletion for many small ones.
    pub(super) fn delete(&mut self, keys: impl IntoIterator<Item = String>) -> Revision {
        let edits: Vec<_> = keys.into_iter().map(|key| Edit { key, to: None }).collect();
        if edits.is_empty() {
            return Revision(self.revision);
        }
        self.commit(edits)
    }

    /// Deletes what has expired by the one clock that all writers share, at one revision.
    pub(super) fn expire(&mut self, now: Millis) {
        let over = |record: &Stored| record.term.is_some_and(|term| term.expires <= now);
        let keys: Vec<_> =
            self.records.iter().filter(|(_, record)| over(record)).map(|(key, _)| key.clone()).collect();
        self.delete(keys);
    }

    pub(super) fn next_expiry(&self) -> Option<Millis> {
        self.records.values().filter_map(|record| Some(record.term?.expires)).min()
    }

    pub(super) fn claim(&mut self, key: &str, value: Bytes, term: Option<Term>) -> Written {
        if self.is_leased(key, None) {
            return Written::Lost;
        }
        Written::At(self.put(key, value, term))
    }

    /// Whether there is a key of the same IPv4 subnet, other than `except`.
    fn is_leased(&self, key: &str, except: Option<&str>) -> bool {
        let part = lease::ipv4_part(key);
        let from =
            self.records.range::<str, _>((Bound::Included(part), Bound::Unbounded)).map(|(key, _)| &**key);
        let mut alike = from.take_while(|key| key.starts_with(part));
        alike.any(|other| lease::ipv4_part(other) == part && Some(other) != except)
    }

    /// Creates a key in place of another one, whose deletion comes first.
    pub(super) fn replace(
        &mut self,
        old: &str,
        modified: Revision,
        key: &str,
        value: Bytes,
        term: Option<Term>,
    ) -> Written {
        if !self.is_at(old, modified) || self.is_leased(key, Some(old)) {
            return Written::Lost;
        }
        let deletion = Edit { key: old.to_owned(), to: None };
        let creation = Edit { key: key.to_owned(), to: Some(Value { value, term }) };
        Written::At(self.commit(vec![deletion, creation]))
    }

    pub(super) fn renew(
        &mut self,
        key: &str,
        value: Bytes,
        modified: Revision,
        term: Option<Term>,
    ) -> Written {
        if !self.is_at(key, modified) {
            return Written::Lost;
        }
        Written::At(self.put(key, value, term))
    }

    /// Moves a key's end, if it is where it was left and lives as long as this term. No revision tells of it.
    pub(super) fn prolong(&mut self, key: &str, modified: Revision, term: Option<Term>) -> Written {
        let life = |term: Option<Term>| term.map(|term| term.life);
        match self.records.get_mut(key) {
            Some(record) if record.modified == modified.0 && life(record.term) == life(term) => {
                record.term = term;
                record.prolonged += 1;
                Written::At(modified)
            }
            _ => Written::Lost,
        }
    }

    pub(super) fn release(&mut self, key: &str, modified: Revision) -> Written {
        if !self.is_at(key, modified) {
            return Written::Lost;
        }
        Written::At(self.delete([key.to_owned()]))
    }

    fn is_at(&self, key: &str, modified: Revision) -> bool {
        self.records.get(key).is_some_and(|record| record.modified == modified.0)
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            revision: Revision(self.revision),
            cluster: self.cluster,
            entries: self.records.iter().map(entry).collect(),
        }
    }

    pub(super) fn tally(&self, keys: &[&str]) -> Tally {
        Tally {
            origin: Origin { cluster: self.cluster, revision: Revision(self.revision) },
            count: self.records.len(),
            entries: keys.iter().map(|key| self.records.get_key_value(*key).map(entry)).collect(),
        }
    }

    /// The keys and their values.
    pub(super) fn values(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.records.iter().map(|(key, record)| (&**key, &record.value))
    }

    /// How long a key lives, if it is there and has an end.
    pub(super) fn term(&self, key: &str) -> Option<Term> {
        self.records.get(key).and_then(|record| record.term)
    }

    /// Every key that has an end, with what changes when it is written or prolonged.
    pub(super) fn limited(&self) -> impl Iterator<Item = (&str, Stamp, Term)> {
        self.records.iter().filter_map(|(key, record)| {
            let stamp = Stamp { modified: record.modified, prolonged: record.prolonged };
            Some((&**key, stamp, record.term?))
        })
    }

    /// The first batch after `revision`, if there is one yet. The error is the oldest revision that can be followed.
    pub(super) fn after(&self, revision: Revision) -> Result<Option<Batch>, Revision> {
        // A revision from the future can only come from another ledger.
        if !(self.oldest..=self.revision).contains(&revision.0) {
            return Err(Revision(self.oldest));
        }
        let past = self.history.iter().find(|past| past.revision > revision.0);
        Ok(past.map(|past| Batch {
            revision: Revision(past.revision),
            changes: past.changes.iter().cloned().map(|edit| change(edit, past.revision)).collect(),
        }))
    }

    /// Takes the last revision out of the history, as if a watch had lost it.
    pub(super) fn hide_last(&mut self) {
        self.history.pop_back();
    }

    /// Forgets the history, as etcd does when it compacts.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.oldest = self.revision;
    }
}

fn change(edit: Edit, revision: i64) -> LeaseChange {
    match edit.to {
        Some(Value { value, term }) => {
            let (modified, lifetime) = (Revision(revision), lifetime(term));
            LeaseChange::Put(LeaseEntry { key: edit.key, value, modified, lifetime })
        }
        None => LeaseChange::Delete { key: edit.key },
    }
}

fn entry((key, record): (&String, &Stored)) -> LeaseEntry {
    LeaseEntry {
        key: key.clone(),
        value: record.value.clone(),
        modified: Revision(record.modified),
        lifetime: lifetime(record.term),
    }
}

fn lifetime(term: Option<Term>) -> Lifetime {
    if term.is_some() { Lifetime::Limited } else { Lifetime::Reserved }
}

/// Writes bytes as a string, one character for each byte: readable where they are ASCII, and exact for all others.
mod text {
    use super::{Bytes, Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = bytes.iter().map(|&byte| char::from(byte)).collect();
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
        bytes.map(Bytes::from).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive_the_file() {
        let mut ledger = Ledger::new(7);
        let all: Bytes = (0..=255).collect::<Vec<u8>>().into();
        let term = Term { expires: 9, life: 5 };
        ledger.put("a", all.clone(), Some(term));
        ledger.put("b", Bytes::new(), None);
        let text = serde_json::to_string(&ledger).unwrap();
        let read: Ledger = serde_json::from_str(&text).unwrap();
        assert_eq!(read.values().collect::<Vec<_>>(), [("a", &all), ("b", &Bytes::new())]);
        assert_eq!((read.term("a"), read.term("b")), (Some(term), None));
        assert_eq!(read.after(Revision(1)), ledger.after(Revision(1)));
    }

    #[test]
    fn an_earlier_agents_ledger_is_read() {
        let text = r#"{"cluster":7,"revision":3,"oldest":1,"records":{"a":{"value":"x","modified":2,"expires":5},"b":{"value":"y","modified":3,"expires":null}},"history":[{"revision":3,"changes":[{"key":"b","to":{"value":"y","expires":null}}]}]}"#;
        let read: Ledger = serde_json::from_str(text).unwrap();
        assert_eq!(read.term("a"), Some(Term { expires: 5, life: a_day() }));
        assert_eq!(read.term("b"), None);
        assert!(read.after(Revision(2)).unwrap().is_some());
    }

    #[test]
    fn prolonging_is_no_change_but_leaves_a_stamp() {
        let term = |expires| Some(Term { expires, life: 5 });
        let mut ledger = Ledger::new(7);
        let at = ledger.put("a", Bytes::new(), term(5));
        let before: Vec<_> = ledger.limited().map(|(_, stamp, _)| stamp).collect();
        assert_eq!(ledger.prolong("a", at, term(9)), Written::At(at));
        assert_eq!((ledger.snapshot().revision, ledger.term("a")), (at, term(9)));
        assert_ne!(ledger.limited().map(|(_, stamp, _)| stamp).collect::<Vec<_>>(), before);
        assert_eq!(ledger.prolong("a", Revision(at.0 - 1), term(9)), Written::Lost);
        assert_eq!(ledger.prolong("a", at, Some(Term { expires: 9, life: 6 })), Written::Lost);
        assert_eq!(ledger.prolong("a", at, None), Written::Lost);
        assert_eq!(ledger.prolong("b", at, term(9)), Written::Lost);
    }

    #[test]
    fn what_has_expired_at_one_look_goes_at_one_revision() {
        let mut ledger = Ledger::new(7);
        for (key, expires) in [("a", Some(5)), ("b", Some(6)), ("c", Some(9)), ("d", None)] {
            ledger.put(key, Bytes::new(), expires.map(|expires| Term { expires, life: 1 }));
        }
        let start = ledger.snapshot().revision;
        ledger.expire(7);
        let delete = |key: &str| LeaseChange::Delete { key: key.to_owned() };
        assert_eq!(ledger.after(start).unwrap().unwrap().changes, [delete("a"), delete("b")]);
        let now = ledger.snapshot().revision;
        assert_eq!(now, Revision(start.0 + 1));
        ledger.expire(7);
        assert_eq!(ledger.snapshot().revision, now, "nothing expired, nothing happened");
    }

    #[test]
    fn history_is_bounded_and_says_so() {
        let mut ledger = Ledger::new(7);
        let start = ledger.snapshot().revision;
        for _ in 0..HISTORY {
            ledger.put("a", Bytes::new(), None);
        }
        assert_eq!(ledger.after(start).unwrap().unwrap().revision, Revision(start.0 + 1));
        ledger.delete(["a".to_owned()]);
        assert_eq!(ledger.after(start), Err(Revision(start.0 + 1)));
        let now = ledger.snapshot().revision;
        assert_eq!(ledger.after(now), Ok(None));
        assert!(ledger.after(Revision(now.0 + 1)).is_err());
    }
}
