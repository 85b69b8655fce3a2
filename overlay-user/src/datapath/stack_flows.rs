//! Stack flows, with the marks that tell the programs when they need not look for one.
//!
//! A mark without a stack flow costs a look-up. A stack flow without a mark would be a connection torn in two. So whoever makes
//! a stack flow sets its mark before and after it, in both halves. Nobody clears a mark in the half that counts: the agent
//! clears the other half, marks there what the table then holds, and lets it count. A stack flow that its reading has missed
//! was made after the clearing, and so was its mark.
use std::{net::Ipv4Addr, time::Duration};

use aya::{
    Pod,
    maps::{Array, HashMap, MapData, MapError},
};
use nix::time::{ClockId, clock_gettime};
use overlay_common::{
    Addr4, Address, FLOW_BACKWARD, FLOW_BEGUN_BACKWARD, FLOW_FORWARD, Flow, FlowKey, MARK_BUCKETS,
    is_promoted,
};

use super::DatapathError;

/// The table of connections that the stack has seen, in one family. They keep to it until they are promoted.
pub struct StackFlows<A = Addr4>
where
    FlowKey<A>: Pod,
{
    pub(super) flows: HashMap<MapData, FlowKey<A>, Flow>,
    pub(super) marks: Array<MapData, u32>,
    pub(super) half: Array<MapData, u32>,
    pub(super) epoch: Array<MapData, u32>,
}

impl StackFlows {
    /// Makes a connection a stack flow as the programs do when the stack hands over its first packet: for one that the stack
    /// carried before there were programs.
    ///
    /// # Errors
    /// When the table is full.
    pub fn record(
        &mut self,
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
        protocol: u8,
        answered: bool,
    ) -> Result<(), DatapathError> {
        let end = |(address, port): (Ipv4Addr, u16)| (Addr4::from(address), port.to_be_bytes());
        let (source, destination) = (end(from), end(to));
        let key = FlowKey::new(source.0, destination.0, [source.1, destination.1], protocol);
        let is_forward = key.addresses[0] == source.0;
        let first = if is_forward { FLOW_FORWARD } else { FLOW_BACKWARD | FLOW_BEGUN_BACKWARD };
        let state = if answered { first | FLOW_FORWARD | FLOW_BACKWARD } else { first };
        let flow = Flow { seen_ns: now()?.as_nanos() as u64, state, reserved: 0 };
        self.insert(key, flow).map_err(|error| DatapathError::failed("record a stack flow", &error))
    }
}

impl<A: Address> StackFlows<A>
where
    FlowKey<A>: Pod,
{
    /// Makes a connection a stack flow, or replaces what is known of it.
    ///
    /// # Errors
    /// When the table is full.
    pub fn insert(&mut self, key: FlowKey<A>, flow: Flow) -> Result<(), MapError> {
        self.mark(&key)?;
        self.flows.insert(key, flow, 0)?;
        self.mark(&key)
    }

    /// What is known of a connection, if it is a stack flow.
    pub fn get(&self, key: &FlowKey<A>) -> Option<Flow> {
        self.flows.get(key, 0).ok()
    }

    /// The promotion epoch.
    ///
    /// # Errors
    /// When its map cannot be read.
    pub fn epoch(&self) -> Result<u32, DatapathError> {
        self.epoch.get(&0, 0).map_err(|error| DatapathError::failed("read the promotion epoch", &error))
    }

    /// Begins another promotion epoch: whatever is promoted keeps to the stack again, until the stack has carried it in both
    /// directions once more.
    ///
    /// # Errors
    /// When its map cannot be written.
    pub fn begin_epoch(&mut self, epoch: u32) -> Result<(), DatapathError> {
        self.epoch.set(0, epoch, 0).map_err(|error| DatapathError::failed("begin a promotion epoch", &error))
    }

    /// Every stack flow.
    pub fn iter(&self) -> impl Iterator<Item = Result<(FlowKey<A>, Flow), MapError>> {
        self.flows.iter()
    }

    /// The stack flows that take the fast path, because they are promoted.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn promoted(&self) -> Result<Vec<(FlowKey<A>, Flow)>, DatapathError> {
        let epoch = self.epoch()?;
        let read = |error| DatapathError::failed("read the stack flows", &error);
        let flows = self.iter().map(|entry| entry.map_err(read));
        flows
            .filter(|entry| entry.as_ref().map_or(true, |(_, flow)| is_promoted(flow.state, epoch)))
            .collect()
    }

    /// Forgets a stack flow. Its mark stays until [`Self::renew_marks`].
    pub fn remove(&mut self, key: &FlowKey<A>) -> Result<(), MapError> {
        self.flows.remove(key)
    }

    /// Marks every stack flow there is: one that programs without marks have made has none.
    pub(super) fn mark_all(&mut self) -> Result<(), DatapathError> {
        for half in [0, 1] {
            self.mark_half(half)?;
        }
        Ok(())
    }

    /// Forgets the marks of stack flows that are forgotten.
    pub(super) fn renew_marks(&mut self) -> Result<(), DatapathError> {
        let other = 1 - (self.half.get(&0, 0).map_err(failed)? & 1);
        for bucket in 0..MARK_BUCKETS {
            self.marks.set(other * MARK_BUCKETS + bucket, 0, 0).map_err(failed)?;
        }
        self.mark_half(other)?;
        self.half.set(0, other, 0).map_err(failed)
    }

    fn mark_half(&mut self, half: u32) -> Result<(), DatapathError> {
        let mut marked = [false; MARK_BUCKETS as usize];
        for key in self.flows.keys() {
            let bucket = key.map_err(failed)?.bucket();
            if !std::mem::replace(&mut marked[bucket as usize], true) {
                self.marks.set(half * MARK_BUCKETS + bucket, 1, 0).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn mark(&mut self, key: &FlowKey<A>) -> Result<(), MapError> {
        [0, 1].into_iter().try_for_each(|half| self.marks.set(half * MARK_BUCKETS + key.bucket(), 1, 0))
    }
}

fn failed(error: MapError) -> DatapathError {
    DatapathError::failed("mark stack flows", &error)
}

/// The clock by which programs stamp stack flows.
pub(crate) fn now() -> Result<Duration, DatapathError> {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .map_err(|error| DatapathError::failed("read the clock", &error))
}
