//! The watch of etcd: its answers as batches, one for each revision.
use std::collections::VecDeque;

use etcd_client::{Client, Error, Event, EventType, KeyValue, WatchOptions, WatchResponse, WatchStream};

use super::{
    entries::{end_of, entry},
    errors::{classify, ended, refused, unavailable},
};
use crate::store::{Batch, Follow, LeaseChange, Revision, StoreError};

/// A watch of etcd.
pub struct EtcdFollow {
    name: String,
    subnets: String,
    stream: WatchStream,
    /// Batches that were read and not handed out yet, since one answer may hold several revisions.
    ready: VecDeque<Batch>,
    /// The connection is kept because the stream ends with the last handle of its connection.
    _connection: Client,
}

impl EtcdFollow {
    /// Asks for the changes after `revision`. The watch is not known to work before [`EtcdFollow::confirm`] has looked at the
    /// first answer.
    pub(super) async fn open(
        client: Client,
        (name, subnets): (String, String),
        revision: Revision,
    ) -> Result<(Self, Option<WatchResponse>), Error> {
        // Unless asked to, etcd never splits the changes of one revision over several answers. It is not asked to, so an
        // answer must be allowed to hold a revision that deletes very many keys.
        let mut watch = client.watch_client().max_decoding_message_size(usize::MAX);
        let options = WatchOptions::new()
            .with_range(end_of(&subnets))
            .with_start_revision(revision.0 + 1)
            .with_progress_notify();
        let mut stream = watch.watch(subnets.clone(), Some(options)).await?;
        let created = stream.message().await?;
        Ok((Self { name, subnets, stream, ready: VecDeque::new(), _connection: client }, created))
    }

    /// Fails if the first answer says that the changes after `revision` cannot be followed.
    pub(super) fn confirm(
        self,
        created: Option<WatchResponse>,
        revision: Revision,
    ) -> Result<Self, StoreError> {
        let created = created.ok_or_else(|| ended(&self.name))?;
        check(&created, &self.name)?;
        // A store whose newest revision is older than the one we know was wiped or restored. Its watch would stay silent
        // until its revisions have caught up.
        let newest = Revision(created.header().map_or(0, |header| header.revision()));
        if newest < revision {
            return Err(StoreError::Behind { store: self.name, oldest: newest });
        }
        Ok(self)
    }
}

impl Follow for EtcdFollow {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(batch);
            }
            let answer = self.stream.message().await;
            let answer =
                answer.map_err(|error| classify(&self.name, &error))?.ok_or_else(|| ended(&self.name))?;
            check(&answer, &self.name)?;
            self.ready = batches(&answer, &self.subnets);
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
