//! A data path that only remembers what it was told, for tests of the loop. Tests can make it full, make it fail, and change
//! what it holds.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Datapath, DatapathError, Installed};
use crate::model::change::{Change, LocalChange, PeerChange};

/// A data path that only remembers what it was told. Clones share one state, so that a test can look at it while the loop
/// owns a clone.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<MemoryState>>);

/// What is in force, what was done, and which faults to play.
#[derive(Debug, Default)]
pub struct MemoryState {
    /// What is in force.
    pub installed: Installed,
    /// Every successful change, in order.
    pub applied: Vec<Change>,
    /// How many peers fit. `None` means that there is no limit.
    pub capacity: Option<u32>,
    /// If this is set, every call fails with this text.
    pub failing: Option<String>,
    /// Interfaces that count as gone.
    pub gone: Vec<u32>,
    /// How many stack flows there are.
    pub flows: usize,
}

impl Memory {
    /// The state, for a test to read and to change.
    pub fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryState {
    fn check(&self, action: &str) -> Result<(), DatapathError> {
        match &self.failing {
            Some(detail) => Err(DatapathError::Failed { action: action.to_owned(), detail: detail.clone() }),
            None => Ok(()),
        }
    }
}

impl Datapath for Memory {
    fn installed(&self) -> Result<Installed, DatapathError> {
        let state = self.state();
        state.check("read the maps")?;
        Ok(state.installed.clone())
    }

    fn apply(&mut self, change: &Change) -> Result<(), DatapathError> {
        let mut state = self.state();
        state.check(&format!("apply {change:?}"))?;
        let in_force = state.installed.peers.len();
        match *change {
            Change::Peer(PeerChange::Put(subnet, _)) => {
                if let Some(capacity) = state.capacity
                    && in_force >= capacity as usize
                    && !state.installed.peers.contains_key(&subnet)
                {
                    return Err(DatapathError::full("peers", capacity));
                }
            }
            Change::Local(LocalChange::PutEndpoint(_, endpoint))
                if !state.installed.ports.contains_key(&endpoint.port) =>
            {
                return Err(DatapathError::Gone(endpoint.port));
            }
            Change::Local(LocalChange::Attach(port, _)) if state.gone.contains(&port) => {
                return Err(DatapathError::Gone(port));
            }
            _ => {}
        }
        state.installed.apply(change);
        state.applied.push(*change);
        Ok(())
    }

    fn expire_flows(&mut self) -> Result<(usize, usize), DatapathError> {
        let state = self.state();
        state.check("read the flows")?;
        Ok((0, state.flows))
    }
}
