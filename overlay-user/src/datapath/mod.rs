//! What carries packets: the trait the agent's loop depends on, in domain words. eBPF is a detail.
mod crash;
pub mod dry_run;
pub mod ebpf;
pub mod error;
pub mod flows;
mod index;
pub mod layouts;
pub mod links;
pub mod load;
pub mod losses;
pub mod memory;
pub mod notes;
pub mod programs_log;
pub mod relay;
mod slots;
pub mod state;
pub mod tables;
pub mod xdp;
pub mod xdp_fitness;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

pub use self::error::DatapathError;
use crate::model::{
    entries::{Endpoint, Peer, PortKind},
    ingress::Ingress,
};

/// What is in force now, read back from where it is in force (the kernel's maps), not remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Peers by subnet.
    pub peers: BTreeMap<Ipv4Net, Peer>,
    /// Endpoints by address.
    pub endpoints: BTreeMap<Ipv4Addr, Endpoint>,
    /// Ports by interface index.
    pub ports: BTreeMap<u32, PortKind>,
    /// What XDP does.
    pub ingress: Ingress,
    /// Interfaces that XDP may hand frames to.
    pub receivers: BTreeSet<u32>,
}

impl Installed {
    /// What is in force after a change.
    pub fn note(&mut self, change: &Change) {
        match *change {
            Change::PutPeer(subnet, peer) => {
                self.peers.insert(subnet, peer);
            }
            Change::RemovePeer(subnet) => {
                self.peers.remove(&subnet);
            }
            Change::PutEndpoint(address, endpoint) => {
                self.endpoints.insert(address, endpoint);
            }
            Change::RemoveEndpoint(address) => {
                self.endpoints.remove(&address);
            }
            Change::Attach(port, kind) => {
                self.ports.insert(port, kind);
            }
            Change::Detach(port) => {
                self.ports.remove(&port);
            }
            Change::Receives(port, true) => {
                self.receivers.insert(port);
            }
            Change::Receives(port, false) => {
                self.receivers.remove(&port);
            }
        }
    }
}

/// One change to what is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds or alters a peer, without a moment in which it is not there.
    PutPeer(Ipv4Net, Peer),
    /// Removes a peer.
    RemovePeer(Ipv4Net),
    /// Adds or moves an endpoint. Its port must be attached before.
    PutEndpoint(Ipv4Addr, Endpoint),
    /// Removes an endpoint: its packets take the stack.
    RemoveEndpoint(Ipv4Addr),
    /// Attaches the programs of a port. Attaching what is attached is no error.
    Attach(u32, PortKind),
    /// XDP may hand frames to this interface, or may no longer. For what carries packets without XDP it means nothing.
    Receives(u32, bool),
    /// Detaches those of a container-side port. Detaching what is not attached, or an interface that is gone, is no error.
    Detach(u32),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutPeer(subnet, peer) => {
                write!(f, "put peer {subnet} via {}", peer.public_ip)?;
                peer.vtep_mac.map_or(Ok(()), |mac| write!(f, " ({mac})"))
            }
            Self::RemovePeer(subnet) => write!(f, "remove peer {subnet}"),
            Self::PutEndpoint(address, endpoint) => {
                write!(f, "put endpoint {address} on interface {} ({})", endpoint.port, endpoint.mac)
            }
            Self::RemoveEndpoint(address) => write!(f, "remove endpoint {address}"),
            Self::Attach(port, PortKind::Bridge) => write!(f, "attach to bridge {port}"),
            Self::Attach(port, PortKind::Veth) => write!(f, "attach to veth {port}"),
            Self::Attach(port, PortKind::Underlay) => write!(f, "attach to underlay device {port}"),
            Self::Attach(port, PortKind::Device) => write!(f, "attach to tunnel device {port}"),
            Self::Receives(port, true) => write!(f, "let XDP hand frames to interface {port}"),
            Self::Receives(port, false) => write!(f, "keep XDP from handing frames to interface {port}"),
            Self::Detach(port) => write!(f, "detach from interface {port}"),
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
    /// Forgets noted flows that the stack's connection tracking has forgotten too; returns how many went and how many stay.
    fn expire_flows(&mut self) -> Result<(usize, usize), DatapathError>;
}
