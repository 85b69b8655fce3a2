//! A watch that is always read, however long its reader takes over each batch: a store must not keep what a slow reader leaves.
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{sync::mpsc, task::JoinHandle};

use super::{Batch, Follow, StoreError};

/// How many batches wait for the reader. After that many, reading everything again is cheaper.
const QUEUE: usize = 4096;

/// The changes of a watch that a task of its own reads. If its reader falls too far behind, the watch ends with
/// [`StoreError::Overrun`].
#[derive(Debug)]
pub struct Drained {
    batches: mpsc::Receiver<Batch>,
    overrun: Arc<AtomicBool>,
    /// It ends with why the watch has ended.
    task: JoinHandle<StoreError>,
    store: String,
}

impl Drained {
    /// Begins to read. `store` is the store's name, for messages.
    pub fn new(follow: impl Follow + 'static, store: String) -> Self {
        Self::with_queue(follow, store, QUEUE)
    }

    fn with_queue(mut follow: impl Follow + 'static, store: String, queue: usize) -> Self {
        let (to, batches) = mpsc::channel(queue);
        let overrun = Arc::new(AtomicBool::new(false));
        let (name, full) = (store.clone(), overrun.clone());
        let task = tokio::spawn(async move {
            loop {
                let batch = match follow.next().await {
                    Ok(batch) => batch,
                    Err(error) => return error,
                };
                if to.try_send(batch).is_err() {
                    full.store(true, Ordering::Relaxed);
                    return StoreError::Overrun { store: name };
                }
            }
        });
        Self { batches, overrun, task, store }
    }

    /// Whether there are batches that the reader has not taken in yet.
    pub fn is_waiting(&self) -> bool {
        !self.batches.is_empty()
    }
}

impl Follow for Drained {
    async fn next(&mut self) -> Result<Batch, StoreError> {
        // What still waits is not worth taking in: everything will be read again.
        if self.overrun.load(Ordering::Relaxed) {
            return Err(StoreError::Overrun { store: self.store.clone() });
        }
        if let Some(batch) = self.batches.recv().await {
            return Ok(batch);
        }
        let broken = |error| StoreError::Unavailable {
            store: self.store.clone(),
            detail: format!("the task that reads the watch ended: {error}"),
        };
        Err((&mut self.task).await.unwrap_or_else(broken))
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Revision, Store as _, memory::MemoryStore};

    async fn drained(store: &MemoryStore) -> Drained {
        let mut store = store.clone();
        let now = store.snapshot().await.unwrap().revision;
        Drained::with_queue(store.follow(now).await.unwrap(), store.name(), 4)
    }

    #[tokio::test(start_paused = true)]
    async fn every_batch_comes_in_order_and_then_why_there_are_no_more() {
        let store = MemoryStore::default();
        let mut changes = drained(&store).await;
        let written: Vec<Revision> = (0..4).map(|n| store.put(&n.to_string(), "", None)).collect();
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        store.cut_watches();
        for revision in written {
            assert!(changes.is_waiting());
            assert_eq!(changes.next().await.unwrap().revision, revision);
        }
        assert!(!changes.is_waiting());
        assert!(matches!(changes.next().await, Err(StoreError::Unavailable { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_falls_behind_is_told_at_once_and_the_watch_is_closed() {
        let store = MemoryStore::default();
        let mut changes = drained(&store).await;
        for n in 0..6 {
            store.put(&n.to_string(), "", None);
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        assert!(matches!(changes.next().await, Err(StoreError::Overrun { .. })));
        assert!(changes.task.is_finished(), "nobody reads the watch any more, so it is closed");
    }
}
