//! What the loop says about itself: answers to operators, and the status that health and control servers read.
use std::{collections::BTreeSet, net::IpAddr};

use log::{error, info, warn};

use super::{schedule::Unread, state::ReconcilerState};
use crate::{
    agent::{
        control::{EndpointLine, PeerLine, Request, Response},
        peers::Skipped,
        status::FailedPeer,
    },
    datapath::{Datapath, DatapathError, PinsKept},
    model::change::PeerChange,
    model::{
        clock::unix_now,
        entries::{Endpoint, PortKind},
    },
    store::{Revision, StoreError, local_lease::LeaseKeeper},
};

impl<D: Datapath> ReconcilerState<D> {
    /// Carries out what an operator or a CNI plugin asks, and says how it went.
    pub(super) fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Status => Response::Status(Box::new(self.inputs.status.borrow().clone())),
            Request::Peers => Response::Peers(self.peer_lines()),
            Request::Endpoints => Response::Endpoints(self.endpoint_lines()),
            // The learner decides on endpoints, and its decisions reach the loop as `Input::Local`.
            Request::Attach { .. } | Request::Detach { .. } => {
                Response::Error("endpoints are not the loop's to decide on".to_owned())
            }
            Request::AcceptDeletions => self.accept_deletions(),
            Request::Resync => {
                self.unread = Some(Unread::at_once("an operator asked for it"));
                Response::Done("all leases will be read again".to_owned())
            }
        }
    }

    fn accept_deletions(&mut self) -> Response {
        let accepted = self.guard.accept();
        for subnet in &accepted {
            self.peer_change(PeerChange::Remove(*subnet));
        }
        warn!("{} removals that were held back are accepted by request", accepted.len());
        Response::Done(format!("{} removals accepted", accepted.len()))
    }

    fn peer_lines(&self) -> Vec<PeerLine> {
        let wanted = self.table.wanted().map(|(subnet, peer, revision)| PeerLine {
            subnet,
            peer,
            revision: Some(revision.0),
            installed: self.installed.peers.get(&subnet) == Some(&peer),
            held: false,
        });
        let held = self.guard.held().iter().filter_map(|subnet| {
            let peer = *self.installed.peers.get(subnet)?;
            Some(PeerLine { subnet: *subnet, peer, revision: None, installed: true, held: true })
        });
        let mut lines: Vec<_> = wanted.chain(held).collect();
        lines.sort_by_key(|line| line.subnet);
        lines
    }

    fn endpoint_lines(&self) -> Vec<EndpointLine> {
        let line = |(&address, &endpoint): (&IpAddr, &Endpoint)| EndpointLine { address, endpoint };
        self.installed.endpoints.iter().map(line).collect()
    }

    /// Records in the status that the store answered.
    pub(super) fn heard(&mut self, revision: Revision, cluster: Option<u64>) {
        self.answered();
        self.inputs.status.send_modify(|status| {
            status.store.revision = revision.0;
            if let Some(cluster) = cluster {
                status.store.cluster = cluster;
                status.store.snapshots += 1;
            }
        });
    }

    /// Records in the status which store is asked.
    pub(super) fn names(&mut self, store: &str) {
        self.inputs.status.send_modify(|status| store.clone_into(&mut status.store.name));
    }

    pub(super) fn store_failed(&mut self, error: &StoreError) {
        self.inputs.status.send_modify(|status| {
            status.store.error = Some(error.to_string());
        });
        self.not_following();
    }

    /// Records in the status that no stream of changes is open.
    pub(super) fn not_following(&mut self) {
        self.inputs.status.send_modify(|status| {
            if status.store.following {
                status.store.following = false;
                status.store.since = unix_now();
            }
        });
    }

    pub(super) fn datapath_failed(&mut self, error: &DatapathError) {
        self.readable = false;
        self.inputs.status.send_modify(|status| {
            status.datapath.attached = false;
            status.datapath.error = Some(error.to_string());
        });
    }

    /// Records in the status, and tells in the log, what a look at the pins has found.
    pub(super) fn report_pins(&mut self, kept: Result<PinsKept, DatapathError>) {
        self.inputs.status.send_if_modified(|status| {
            let state = &mut status.state;
            let error = match &kept {
                Ok(kept) => {
                    if kept.moved {
                        warn!("somebody mounted another bpf filesystem over the pins: all of them are in the new one now");
                    } else if kept.restored > 0 {
                        warn!("somebody removed pins: {} maps and links are pinned again", kept.restored);
                    }
                    state.pins_restored += kept.restored as u64;
                    None
                }
                Err(error) => Some(error.to_string()),
            };
            let bpffs = kept.as_ref().map_or(state.bpffs, |kept| kept.bpffs);
            let is_news = (&state.pins_error, state.bpffs) != (&error, bpffs);
            match (&error, &state.pins_error) {
                (Some(error), before) if before.as_ref() != Some(error) => error!("{error}"),
                (None, Some(_)) => info!("everything that should outlive the agent is pinned again"),
                _ => {}
            }
            (state.pins_error, state.bpffs) = (error, bpffs);
            is_news
        });
    }

    pub(super) fn publish_lease(&mut self, lease: &LeaseKeeper) {
        self.inputs.status.send_modify(|status| status.lease = lease.status());
    }

    /// Publishes the peers and endpoints, as they are now, in the status.
    pub(super) fn publish(&mut self) {
        let failed = self.failed.iter();
        let failed = failed.map(|(&subnet, why)| FailedPeer { subnet, why: why.clone() }).collect();
        let skipped = self.table.skipped();
        let bare = self.desired.bare(&self.installed);
        let bare = bare.first().map(|kind| match kind {
            PortKind::Device => "the tunnel device has not all of its programs",
            _ => "the underlay device has no program",
        });
        let ports = self.installed.ports.values().filter(|kind| kind.is_containers()).count();
        let receives = |endpoint: &&Endpoint| {
            self.installed.xdp_targets.contains(&endpoint.port) && !endpoint.foreign_tc.egress
        };
        let xdp_targets = self.installed.endpoints.values().filter(receives).count();
        self.inputs.status.send_modify(|status| {
            for lease in news(&status.peers.skipped, &skipped) {
                warn!("lease {} {}: {}", lease.key, lease.lacks(), lease.why);
            }
            status.peers.wanted = self.table.len();
            status.peers.installed = self.installed.peers.len();
            status.peers.failed = failed;
            status.peers.held = self.guard.held().iter().copied().collect();
            status.peers.guard = Some(self.guard.clone());
            status.peers.skipped = skipped;
            status.datapath.endpoints = self.installed.endpoints.len();
            status.datapath.ports = ports;
            status.datapath.ingress = self.installed.ingress.clone();
            status.datapath.xdp_targets = xdp_targets;
            if self.readable {
                status.datapath.attached = bare.is_none();
                status.datapath.error = bare.map(str::to_owned);
            }
            status.datapath.waiting = self.unrepaired;
        });
    }
}

/// What `now` contains and `before` did not, so that an operator hears of each bad lease once, however often it is read.
fn news<'a>(before: &[Skipped], now: &'a [Skipped]) -> Vec<&'a Skipped> {
    let before: BTreeSet<&Skipped> = before.iter().collect();
    now.iter().filter(|skipped| !before.contains(skipped)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bad_lease_is_news_once_and_again_when_its_fault_changes() {
        let skipped =
            |key: &str, why: &str| Skipped { key: key.to_owned(), why: why.to_owned(), is_ipv6_only: false };
        let before = [skipped("a", "bad"), skipped("b", "bad")];
        let now = [skipped("a", "bad"), skipped("b", "worse"), skipped("c", "bad")];
        assert_eq!(news(&before, &now), [&now[1], &now[2]]);
        assert!(news(&now, &now).is_empty());
    }
}
