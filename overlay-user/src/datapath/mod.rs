//! What carries packets: the trait the agent's loop depends on, in domain words. eBPF is a detail.
mod crash;
pub mod dry_run;
pub mod ebpf;
pub mod error;
mod index;
mod keys;
pub mod layouts;
pub mod lifetimes;
pub mod links;
pub mod load;
pub mod losses;
pub mod memory;
pub mod programs_log;
pub mod relay;
mod slots;
pub mod stack_flows;
pub mod state;
pub mod tables;
pub mod xdp;
pub mod xdp_fitness;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

pub use self::error::DatapathError;
use crate::model::{
    change::{Change, LocalChange, PeerChange, XdpTargetChange},
    entries::{Endpoint, Peer, PortKind},
    ingress::Ingress,
};

/// What is in force now, read back from where it is in force (the kernel's maps), not remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Peers by subnet.
    pub peers: BTreeMap<IpNet, Peer>,
    /// Endpoints by address.
    pub endpoints: BTreeMap<IpAddr, Endpoint>,
    /// Ports by interface index.
    pub ports: BTreeMap<u32, PortKind>,
    /// What XDP does.
    pub ingress: Ingress,
    /// Interfaces that XDP may redirect frames to.
    pub xdp_targets: BTreeSet<u32>,
}

impl Installed {
    /// Makes it what is in force after a change.
    pub fn apply(&mut self, change: &Change) {
        match *change {
            Change::Peer(PeerChange::Put(subnet, peer)) => {
                self.peers.insert(subnet, peer);
            }
            Change::Peer(PeerChange::Remove(subnet)) => {
                self.peers.remove(&subnet);
            }
            Change::Local(LocalChange::PutEndpoint(address, endpoint)) => {
                self.endpoints.insert(address, endpoint);
            }
            Change::Local(LocalChange::RemoveEndpoint(address)) => {
                self.endpoints.remove(&address);
            }
            Change::Local(LocalChange::Attach(port, kind)) => {
                self.ports.insert(port, kind);
            }
            Change::Local(LocalChange::Detach(port)) => {
                self.ports.remove(&port);
            }
            Change::XdpTarget(XdpTargetChange { port, takes: true }) => {
                self.xdp_targets.insert(port);
            }
            Change::XdpTarget(XdpTargetChange { port, takes: false }) => {
                self.xdp_targets.remove(&port);
            }
        }
    }
}

/// What carries packets between the containers here and the peers. Calls are single system calls, hence not async.
pub trait Datapath: Send {
    /// Puts right where parts of it contradict each other; returns how many entries that were. Before anything of it is
    /// read back: it is then what the tables say.
    fn mend(&mut self) -> Result<usize, DatapathError> {
        Ok(0)
    }
    /// Reads back what is in force.
    fn installed(&self) -> Result<Installed, DatapathError>;
    /// Makes one change. On error nothing of it is in force.
    fn apply(&mut self, change: &Change) -> Result<(), DatapathError>;
    /// Forgets stack flows that the stack's connection tracking has forgotten too; returns how many went and how many stay.
    fn expire_flows(&mut self) -> Result<(usize, usize), DatapathError>;
}
