//! The loop's state: the data path, what should be installed in it, and what is known to be installed; and how a batch changes
//! them.
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    time::Duration,
};

use ipnet::IpNet;
use log::{debug, error, info, warn};
use tokio::time::Instant;

use super::{
    inputs::{Exit, Input, Inputs},
    schedule::{Schedule, Unread},
};
use crate::{
    agent::{
        control::Call,
        desired::Desired,
        guard::{self, Guard, Suspicion},
        origin::Noted,
        peers::{self, PeerTable, Scope},
    },
    datapath::{Datapath, DatapathError, Installed},
    model::change::{Change, LocalChange, PeerChange},
    store::{self, Batch, Revision, history::History},
};

/// A count that the store gave, to be compared with what is known at the same revision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    pub(super) revision: Revision,
    pub(super) keys: usize,
    /// By then everything up to the revision has been heard of.
    pub(super) until: Instant,
}

/// The loop's state without the store and the local lease, so that it can work while those wait for an answer.
pub(super) struct ReconcilerState<D> {
    pub(super) inputs: Inputs,
    pub(super) datapath: D,
    pub(super) table: PeerTable,
    pub(super) guard: Guard,
    pub(super) desired: Desired,
    /// What is in force. It is read back at every audit of the maps, and updated by every successful change.
    pub(super) installed: Installed,
    /// Peers that could not be put in force or removed, and why.
    pub(super) failed: BTreeMap<IpNet, String>,
    /// How many endpoint and port changes have failed since the last repair.
    pub(super) unrepaired: usize,
    /// Whether one of these is to be tried again soon.
    soon: bool,
    /// Whether one of the host's own devices lacked a program when they were last looked at.
    bare: bool,
    /// What has been heard of the store from which the installed peers come.
    pub(super) history: History,
    /// Why all leases must be read before changes can be followed, if they must.
    pub(super) unread: Option<Unread>,
    /// How many keys the store said it has, until that has been compared.
    pub(super) count: Option<Count>,
    pub(super) schedule: Schedule,
    /// Whether what is in force could be read back the last time.
    pub(super) readable: bool,
}

impl<D: Datapath> ReconcilerState<D> {
    pub(super) fn new(
        datapath: D,
        scope: Scope,
        inputs: Inputs,
        noted: Option<Noted>,
        audit: Duration,
    ) -> Result<Self, DatapathError> {
        let installed = datapath.installed()?;
        let (origin, guard) = noted.map(|noted| (noted.origin, noted.guard)).unzip();
        Ok(Self {
            inputs,
            datapath,
            table: PeerTable::new(scope),
            guard: guard.unwrap_or_default(),
            desired: Desired::default(),
            installed,
            failed: BTreeMap::new(),
            unrepaired: 0,
            soon: false,
            bare: false,
            history: History::new(origin),
            unread: Some(Unread::at_once("the agent has started")),
            count: None,
            schedule: Schedule::new(audit, 0),
            readable: false,
        })
    }

    /// Waits for the answer to a call, and handles other inputs meanwhile.
    pub(super) async fn meanwhile<T>(&mut self, call: impl Future<Output = T>) -> Result<T, Exit> {
        tokio::pin!(call);
        loop {
            tokio::select! {
                answer = &mut call => return Ok(answer),
                input = self.inputs.next() => self.handle(input)?,
            }
        }
    }

    pub(super) fn handle(&mut self, input: Input) -> Result<(), Exit> {
        match input {
            Input::End(exit) => return Err(exit),
            Input::Beat => self.inputs.status.send_modify(|status| status.beat = Instant::now()),
            Input::Local(changes) => {
                for change in changes {
                    self.desired.decide(&change);
                    self.local_change(change);
                }
                self.publish();
            }
            Input::XdpTargets(changes) => {
                for change in changes {
                    self.carry_out(change.into());
                }
                self.publish();
            }
            Input::Asked(Call { request, answer }) => {
                // Whoever asked may have hung up; what was asked for is done all the same.
                let _ = answer.send(self.answer(request));
                self.publish();
            }
            Input::AgeFlows => self.age_flows(),
            Input::KeepPins => self.keep_pins(),
        }
        Ok(())
    }

    /// How many hosts the network has, as far as is known.
    pub(super) fn hosts(&self) -> usize {
        self.history.count()
    }

    /// Takes in the changes of one revision.
    pub(super) fn change(&mut self, batch: &Batch) {
        self.compare_before(batch);
        self.history.change(batch);
        self.compare_at(self.history.revision());
        self.heard(batch.revision, None);
        let touched = self.table.change(batch);
        for subnet in &touched {
            if self.table.get(subnet).is_some() {
                self.guard.forget(subnet);
            }
        }
        let deleted: Vec<&str> = batch
            .changes
            .iter()
            .filter_map(|change| match change {
                store::LeaseChange::Delete { key } => Some(key.as_str()),
                store::LeaseChange::Put(_) => None,
            })
            .collect();
        if deleted.len() < guard::LEAST {
            for subnet in deleted.iter().filter_map(|key| self.guard.confirm(key)).collect::<Vec<_>>() {
                self.peer_change(PeerChange::Remove(subnet));
            }
        }
        let changes = self.changes_of(&touched);
        self.apply_peers(changes, false);
        self.publish();
    }

    fn changes_of(&self, subnets: &BTreeSet<IpNet>) -> Vec<PeerChange> {
        let change = |subnet: &IpNet| {
            peers::change_of(*subnet, self.table.get(subnet).as_ref(), self.installed.peers.get(subnet))
        };
        subnets.iter().filter_map(change).collect()
    }

    /// Carries out peer changes: additions and alterations first, then the removals that the guard lets through.
    pub(super) fn apply_peers(&mut self, changes: Vec<PeerChange>, other_history: bool) {
        let before = self.installed.peers.len();
        let mut removals = Vec::new();
        for change in changes {
            match change {
                PeerChange::Remove(subnet) => removals.push(subnet),
                PeerChange::Put(..) => self.peer_change(change),
            }
        }
        let verdict = self.guard.decide(&removals, before, other_history, Instant::now());
        if let Some(why) = verdict.why {
            let why = match why {
                Suspicion::TooMany => format!("{} of {before} peers would go at once", verdict.held.len()),
                Suspicion::TooManyInTime => {
                    format!(
                        "more than half of the peers would be gone within {} min",
                        guard::WINDOW.as_secs() / 60
                    )
                }
                Suspicion::OtherHistory => "the store is another one, or was wiped or restored".to_owned(),
            };
            warn!(
                "{why}: {} removals are held back until `overlay peers --accept-deletions`",
                verdict.held.len()
            );
        }
        for subnet in &verdict.remove {
            self.peer_change(PeerChange::Remove(*subnet));
        }
        if !verdict.remove.is_empty() {
            self.retry_failed();
        }
        if let Some((subnet, why)) = self.failed.first_key_value() {
            error!("{} peers could not be brought in force, {subnet} first: {why}", self.failed.len());
        }
    }

    /// Tries the failed additions again, because the removals have made space in the table for some of them.
    fn retry_failed(&mut self) {
        let failed = std::mem::take(&mut self.failed).into_keys().collect();
        for change in self.changes_of(&failed) {
            if matches!(change, PeerChange::Put(..)) {
                self.peer_change(change);
            }
        }
    }

    pub(super) fn peer_change(&mut self, change: PeerChange) {
        let subnet = change.subnet();
        match self.apply(change.into()) {
            Ok(()) => self.failed.remove(&subnet),
            Err(error) => self.failed.insert(subnet, error.to_string()),
        };
    }

    /// Carries out a change to endpoints or ports. If it fails, [`Self::repair`] tries again.
    fn local_change(&mut self, change: LocalChange) {
        if let LocalChange::Detach(port) = change {
            // The endpoints behind the port are removed with it, even pinned ones, since an endpoint without an attached port
            // would have only half a fast path.
            let behind = self.installed.endpoints.iter().filter(|(_, endpoint)| endpoint.port == port);
            for address in behind.map(|(&address, _)| address).collect::<Vec<_>>() {
                self.desired.decide(&LocalChange::RemoveEndpoint(address));
                self.local_change(LocalChange::RemoveEndpoint(address));
            }
        }
        if let LocalChange::PutEndpoint(address, endpoint) = change
            && !self.installed.ports.contains_key(&endpoint.port)
        {
            // Without its port's programs the endpoint would have only half a fast path: packets would go in by it, and come
            // out by the stack.
            warn!("endpoint {address} waits until the programs are attached to interface {}", endpoint.port);
            self.unrepaired += 1;
            return;
        }
        self.carry_out(change.into());
    }

    /// Carries out a change to what this host has. A change that fails is counted as unrepaired.
    fn carry_out(&mut self, change: Change) {
        match self.apply(change) {
            Ok(()) => {}
            Err(DatapathError::Gone(port)) => {
                info!("{change}: interface {port} is gone");
                self.installed.ports.remove(&port);
                self.desired.forget_port(port);
            }
            Err(early @ DatapathError::Early(_)) => {
                debug!("{change}: {early}");
                self.soon = true;
                self.unrepaired += 1;
            }
            Err(failed) => {
                error!("{change}: {failed}; it will be tried again");
                self.unrepaired += 1;
            }
        }
    }

    /// Pins again what somebody has unpinned, attaches again what the host's own devices have lost, and tries again what was too
    /// early.
    fn keep_pins(&mut self) {
        let kept = self.datapath.keep_pins();
        let is_bare = kept.as_ref().is_ok_and(|kept| kept.bare);
        let bare = is_bare && !self.bare;
        self.bare = is_bare;
        if bare {
            warn!("the host's own devices have lost programs: attaching them again");
            if let Ok(found) = self.datapath.installed() {
                let remembered = std::mem::replace(&mut self.installed.ports, found.ports);
                let ports = &self.installed.ports;
                let lost = remembered.iter().filter(|(port, kind)| ports.get(port) != Some(kind)).count();
                self.inputs.status.send_modify(|status| status.datapath.repaired += lost as u64);
            }
        }
        self.report_pins(kept);
        if bare || std::mem::take(&mut self.soon) {
            self.repair();
            self.publish();
        }
    }

    /// Puts right what was decided about endpoints and ports and is not in force. What nobody decided on is left alone.
    pub(super) fn repair(&mut self) {
        self.unrepaired = 0;
        for change in self.desired.missing(&self.installed) {
            self.local_change(change);
        }
    }

    fn apply(&mut self, change: Change) -> Result<(), DatapathError> {
        self.datapath.apply(&change)?;
        self.installed.apply(&change);
        Ok(())
    }

    fn age_flows(&mut self) {
        match self.datapath.expire_flows() {
            Ok((_, left)) => self.inputs.status.send_modify(|status| status.datapath.flows = left),
            Err(failed) => error!("forget old flows: {failed}"),
        }
        if self.unrepaired > 0 {
            self.repair();
            self.publish();
        }
    }
}
