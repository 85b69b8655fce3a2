//! The rules of a store as plain data: keys with revisions, expiry and a bounded history. The store in memory and the
//! folder each keep a ledger, and have no rules of their own.
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Batch, LeaseChange, LeaseEntry, Lifetime, Revision, Snapshot, Written};

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
    expires: Option<Millis>,
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
    pub(super) expires: Option<Millis>,
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
                Some(Value { value, expires }) => {
                    let modified = self.revision;
                    self.records.insert(key.clone(), Stored { value, modified, expires });
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

    pub(super) fn put(&mut self, key: &str, value: Bytes, expires: Option<Millis>) -> Revision {
        let to = Some(Value { value, expires });
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

    /// Deletes what has expired, at one revision, so that the mass-delete guard sees it together: if many keys expire between
    /// two looks, the clock may have been set.
    pub(super) fn expire(&mut self, now: Millis) -> Vec<String> {
        let over = |record: &Stored| record.expires.is_some_and(|expires| expires <= now);
        let keys: Vec<_> =
            self.records.iter().filter(|(_, record)| over(record)).map(|(key, _)| key.clone()).collect();
        self.delete(keys.clone());
        keys
    }

    pub(super) fn next_expiry(&self) -> Option<Millis> {
        self.records.values().filter_map(|record| record.expires).min()
    }

    pub(super) fn claim(&mut self, key: &str, value: Bytes, expires: Option<Millis>) -> Written {
        if self.records.contains_key(key) {
            return Written::Lost;
        }
        Written::At(self.put(key, value, expires))
    }

    pub(super) fn renew(
        &mut self,
        key: &str,
        value: Bytes,
        modified: Revision,
        expires: Option<Millis>,
    ) -> Written {
        if !self.is_at(key, modified) {
            return Written::Lost;
        }
        Written::At(self.put(key, value, expires))
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
        let entry = |(key, record): (&String, &Stored)| LeaseEntry {
            key: key.clone(),
            value: record.value.clone(),
            modified: Revision(record.modified),
            lifetime: lifetime(record.expires),
        };
        Snapshot {
            revision: Revision(self.revision),
            cluster: self.cluster,
            entries: self.records.iter().map(entry).collect(),
        }
    }

    /// The keys and their values.
    pub(super) fn values(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.records.iter().map(|(key, record)| (&**key, &record.value))
    }

    /// When a key expires, if it is there and has an end.
    pub(super) fn expiry(&self, key: &str) -> Option<Millis> {
        self.records.get(key).and_then(|record| record.expires)
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

    /// Forgets the history, as etcd does when it compacts.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.oldest = self.revision;
    }
}

fn change(edit: Edit, revision: i64) -> LeaseChange {
    match edit.to {
        Some(Value { value, expires }) => {
            let (modified, lifetime) = (Revision(revision), lifetime(expires));
            LeaseChange::Put(LeaseEntry { key: edit.key, value, modified, lifetime })
        }
        None => LeaseChange::Delete { key: edit.key },
    }
}

fn lifetime(expires: Option<Millis>) -> Lifetime {
    if expires.is_some() { Lifetime::Limited } else { Lifetime::Reserved }
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
        ledger.put("a", all.clone(), Some(9));
        let text = serde_json::to_string(&ledger).unwrap();
        let read: Ledger = serde_json::from_str(&text).unwrap();
        assert_eq!(read.values().collect::<Vec<_>>(), [("a", &all)]);
        assert_eq!(read.expiry("a"), Some(9));
        assert_eq!(read.after(Revision(1)), ledger.after(Revision(1)));
    }

    #[test]
    fn what_has_expired_at_one_look_goes_at_one_revision() {
        let mut ledger = Ledger::new(7);
        for (key, expires) in [("a", Some(5)), ("b", Some(6)), ("c", Some(9)), ("d", None)] {
            ledger.put(key, Bytes::new(), expires);
        }
        let start = ledger.snapshot().revision;
        assert_eq!(ledger.expire(7), ["a", "b"]);
        let delete = |key: &str| LeaseChange::Delete { key: key.to_owned() };
        assert_eq!(ledger.after(start).unwrap().unwrap().changes, [delete("a"), delete("b")]);
        let now = ledger.snapshot().revision;
        assert_eq!(now, Revision(start.0 + 1));
        assert!(ledger.expire(7).is_empty());
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
