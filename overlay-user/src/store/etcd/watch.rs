//! The watch of etcd: its answers as batches, one for each revision.
use std::collections::VecDeque;

use etcd_client::{Client, Error, Event, EventType, KeyValue, WatchOptions, WatchResponse, WatchStream};
use tokio::time::timeout;

use super::{
    connection::sign_of_life,
    entries::{end_of, entry},
    errors::{classify, ended, refused, unavailable},
    silence,
};
use crate::store::{Batch, Follow, LeaseChange, Revision, StoreError};

/// A watch of etcd.
pub struct EtcdFollow {
    name: String,
    subnets: String,
    stream: WatchStream,
    /// Batches that were read and not handed out yet, since one answer may hold several revisions.
    ready: VecDeque<Batch>,
    /// What has been handed out, or was known before.
    revision: Revision,
    /// How many leases there are.
    leases: usize,
    /// The stream ends with the last handle of its connection. And when the watch is silent, etcd is asked for a sign of life.
    client: Client,
}

/// What a watch begins with.
pub(super) struct Start {
    /// The store's name, for messages.
    pub(super) name: String,
    /// The prefix of all leases.
    pub(super) subnets: String,
    /// What is known already.
    pub(super) revision: Revision,
    /// How many leases there were then.
    pub(super) leases: usize,
}

impl EtcdFollow {
    /// Asks for the changes after what is known. The watch is not known to work before [`EtcdFollow::confirm`] has looked at the
    /// first answer.
    pub(super) async fn open(client: Client, start: Start) -> Result<(Self, Option<WatchResponse>), Error> {
        let Start { name, subnets, revision, leases } = start;
        // Unless asked to, etcd never splits the changes of one revision over several answers. It is not asked to, so an
        // answer must be allowed to hold a revision that deletes very many keys.
        let mut watch = client.watch_client().max_decoding_message_size(usize::MAX);
        let options = WatchOptions::new()
            .with_range(end_of(&subnets))
            .with_start_revision(revision.0 + 1)
            .with_progress_notify();
        let mut stream = watch.watch(subnets.clone(), Some(options)).await?;
        let created = stream.message().await?;
        let ready = VecDeque::new();
        Ok((Self { name, subnets, stream, ready, revision, leases, client }, created))
    }

    /// Fails if the first answer says that the changes after what is known cannot be followed.
    pub(super) fn confirm(self, created: Option<WatchResponse>) -> Result<Self, StoreError> {
        let created = created.ok_or_else(|| ended(&self.name))?;
        check(&created, &self.name)?;
        // A store whose newest revision is older than the one we know was wiped or restored. Its watch would stay silent
        // until its revisions have caught up.
        let newest = Revision(created.header().map_or(0, |header| header.revision()));
        if newest < self.revision {
            return Err(StoreError::Behind { store: self.name, oldest: newest });
        }
        Ok(self)
    }
}

impl EtcdFollow {
    /// The next answer, or `None` if there was none for so long that etcd was asked for a sign of life, and gave one.
    async fn answer(&mut self) -> Result<Option<WatchResponse>, StoreError> {
        let silence = silence::drawn(self.leases);
        let answer = match timeout(silence, self.stream.message()).await {
            Ok(answer) => answer,
            Err(_) => {
                let patience = silence::answer(self.leases);
                let client = self.client.clone();
                tokio::select! {
                    answer = self.stream.message() => answer,
                    life = timeout(patience, sign_of_life(client)) => {
                        let silent = || {
                            format!("no answer within {} s, and no change in {} s before", patience.as_secs(), silence.as_secs())
                        };
                        let life = life.map_err(|_| unavailable(&self.name, silent()))?;
                        return life.map(|()| None).map_err(|error| classify(&self.name, &error));
                    }
                }
            }
        };
        let answer = answer.map_err(|error| classify(&self.name, &error))?;
        let answer = answer.ok_or_else(|| ended(&self.name))?;
        check(&answer, &self.name)?;
        Ok(Some(answer))
    }

    /// Counts the leases on: a key's version begins at 1.
    fn count(&mut self, answer: &WatchResponse) {
        for event in answer.events() {
            match event.event_type() {
                EventType::Put if event.kv().is_some_and(|kv| kv.version() == 1) => self.leases += 1,
                EventType::Put => {}
                EventType::Delete => self.leases = self.leases.saturating_sub(1),
            }
        }
    }
}

impl Follow for EtcdFollow {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                self.revision = batch.revision;
                return Ok(batch);
            }
            match self.answer().await? {
                Some(answer) => {
                    self.count(&answer);
                    self.ready = batches(&answer, &self.subnets);
                }
                // Nothing new, which is news of etcd itself.
                None => return Ok(Batch { revision: self.revision, changes: Vec::new() }),
            }
        }
    }
}

/// The events of one answer, by revision. An answer without events is a progress notification, which says that every
/// change up to its revision has been sent.
fn batches(answer: &WatchResponse, subnets: &str) -> VecDeque<Batch> {
    let mut batches: VecDeque<Batch> = VecDeque::new();
    for (event, kv) in answer.events().iter().filter_map(|event| event.kv().map(|kv| (event, kv))) {
        let revision = Revision(kv.mod_revision());
        if batches.back().is_none_or(|batch| batch.revision != revision) {
            batches.push_back(Batch { revision, changes: Vec::new() });
        }
        if let Some(batch) = batches.back_mut() {
            batch.changes.push(change(event, kv, subnets));
        }
    }
    if let Some(header) = answer.header().filter(|_| batches.is_empty()) {
        let revision = Revision(header.revision());
        batches.push_back(Batch { revision, changes: Vec::new() });
    }
    batches
}

fn change(event: &Event, kv: &KeyValue, subnets: &str) -> LeaseChange {
    let entry = entry(kv, subnets);
    match event.event_type() {
        EventType::Put => LeaseChange::Put(entry),
        EventType::Delete => LeaseChange::Delete { key: entry.key },
    }
}

/// Fails if an answer says that the watch has ended.
fn check(answer: &WatchResponse, name: &str) -> Result<(), StoreError> {
    if answer.compact_revision() > 0 {
        return Err(StoreError::Behind {
            store: name.to_owned(),
            oldest: Revision(answer.compact_revision()),
        });
    }
    if !answer.canceled() {
        return Ok(());
    }
    let detail = format!("the watch was cancelled: {}", answer.cancel_reason());
    if answer.cancel_reason().contains("permission denied") {
        return Err(refused(name, &detail));
    }
    Err(unavailable(name, detail))
}
