//! Noted connections, with the marks that tell the programs when they need not look for one.
//!
//! A mark without a note costs a look-up; a note without a mark would be a connection torn in two. So marks are set before
//! and after their note is, by whoever makes one, in both halves. Nobody clears a mark in the half that counts: the agent
//! clears the other one, marks there what the table then holds, and lets it count. A note that its reading has missed was made
//! after the clearing, and so was its mark.
use aya::maps::{Array, HashMap, MapData, MapError};
use overlay_common::{Flow, FlowKey, NOTED_BUCKETS};

use super::DatapathError;

/// The table of noted connections.
pub struct Notes {
    pub(super) flows: HashMap<MapData, FlowKey, Flow>,
    pub(super) marks: Array<MapData, u32>,
    pub(super) half: Array<MapData, u32>,
}

impl Notes {
    /// Makes a note, or replaces it.
    ///
    /// # Errors
    /// When the table is full.
    pub fn insert(&mut self, key: FlowKey, flow: Flow) -> Result<(), MapError> {
        self.mark(&key)?;
        self.flows.insert(key, flow, 0)?;
        self.mark(&key)
    }

    /// The note of a connection.
    pub fn get(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.get(key, 0).ok()
    }

    /// Every note.
    pub fn iter(&self) -> impl Iterator<Item = Result<(FlowKey, Flow), MapError>> {
        self.flows.iter()
    }

    /// Forgets a connection. Its mark stays until [`Self::renew_marks`].
    pub fn remove(&mut self, key: &FlowKey) -> Result<(), MapError> {
        self.flows.remove(key)
    }

    /// Marks every note there is: one that programs without marks have made has none.
    pub(super) fn mark_all(&mut self) -> Result<(), DatapathError> {
        for half in [0, 1] {
            self.mark_half(half)?;
        }
        Ok(())
    }

    /// Forgets the marks of connections that are forgotten.
    pub(super) fn renew_marks(&mut self) -> Result<(), DatapathError> {
        let other = 1 - (self.half.get(&0, 0).map_err(failed)? & 1);
        for bucket in 0..NOTED_BUCKETS {
            self.marks.set(other * NOTED_BUCKETS + bucket, 0, 0).map_err(failed)?;
        }
        self.mark_half(other)?;
        self.half.set(0, other, 0).map_err(failed)
    }

    fn mark_half(&mut self, half: u32) -> Result<(), DatapathError> {
        let mut marked = [false; NOTED_BUCKETS as usize];
        for key in self.flows.keys() {
            let bucket = key.map_err(failed)?.bucket();
            if !std::mem::replace(&mut marked[bucket as usize], true) {
                self.marks.set(half * NOTED_BUCKETS + bucket, 1, 0).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn mark(&mut self, key: &FlowKey) -> Result<(), MapError> {
        [0, 1].into_iter().try_for_each(|half| self.marks.set(half * NOTED_BUCKETS + key.bucket(), 1, 0))
    }
}

fn failed(error: MapError) -> DatapathError {
    DatapathError::failed("mark noted connections", &error)
}
