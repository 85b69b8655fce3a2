//! What carries packets, as a trait that the agent's loop depends on. Only one of its implementations knows eBPF.
mod bpffs;
mod crash;
pub mod dry_run;
pub mod ebpf;
pub mod error;
mod fnv;
mod index;
pub mod ipv6;
mod keys;
pub mod layouts;
pub mod lifetimes;
pub mod links;
pub mod load;
pub mod losses;
pub mod memory;
mod newcomers;
mod pin_keeper;
mod pinned_links;
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

pub(crate) use self::bpffs::is_bpffs;
pub use self::error::DatapathError;
use crate::model::{
    change::{Change, LocalChange, PeerChange, XdpTargetChange},
    entries::{Endpoint, Peer, PortKind},
    ingress::Ingress,
};

/// What is in force now. It is read back from where it is in force (the kernel's maps), and not remembered.
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
    /// Makes in this picture the same change that was made in the data path.
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

/// What a look at the pins has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinsKept {
    /// How many maps, links and marks were pinned again.
    pub restored: usize,
    /// Whether another bpf file system has taken the place of the one that held the pins. They are in the new one now.
    pub moved: bool,
    /// Whether one of the host's own devices has lost a program.
    pub bare: bool,
    /// The number of the bpf file system that holds the pins, if anything is pinned.
    pub bpffs: Option<u64>,
}

/// What carries packets between this host's containers and its peers. The calls are not async, because they are a few
/// system calls that do not wait.
pub trait Datapath: Send {
    /// Repairs entries where the tables contradict each other, and returns how many that were. It is called before anything
    /// is read back, so that what is read is what the programs see.
    fn mend(&mut self) -> Result<usize, DatapathError> {
        Ok(0)
    }
    /// Reads back what is in force.
    fn installed(&self) -> Result<Installed, DatapathError>;
    /// Makes one change. After an error no part of the change is in force.
    fn apply(&mut self, change: &Change) -> Result<(), DatapathError>;
    /// Looks cheaply whether what should outlive the agent is still there, and whether the host's own devices have their
    /// programs, and makes again what somebody has removed. It is called every few seconds.
    fn keep_pins(&mut self) -> Result<PinsKept, DatapathError> {
        Ok(PinsKept::default())
    }
    /// Forgets stack flows that the stack's connection tracking has forgotten too; returns how many went and how many stay.
    fn expire_flows(&mut self) -> Result<(usize, usize), DatapathError>;
}

/// The data path of an owner who goes on with it afterwards.
impl<D: Datapath> Datapath for &mut D {
    fn mend(&mut self) -> Result<usize, DatapathError> {
        D::mend(self)
    }

    fn installed(&self) -> Result<Installed, DatapathError> {
        D::installed(self)
    }

    fn apply(&mut self, change: &Change) -> Result<(), DatapathError> {
        D::apply(self, change)
    }

    fn keep_pins(&mut self) -> Result<PinsKept, DatapathError> {
        D::keep_pins(self)
    }

    fn expire_flows(&mut self) -> Result<(usize, usize), DatapathError> {
        D::expire_flows(self)
    }
}
