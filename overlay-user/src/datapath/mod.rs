//! What carries packets: the trait the agent's loop depends on, in domain words. eBPF is a detail.
pub mod dry_run;
pub mod ebpf;
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
use serde::{Deserialize, Serialize};

use crate::{datapath::xdp_fitness::Ingress, model::mac::Mac};

/// Another host of the overlay, as its lease says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its address on the underlay.
    pub public_ip: Ipv4Addr,
    /// MAC address of its tunnel device, where it has one.
    pub vtep_mac: Option<Mac>,
}

/// A local container address, and where it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Interface index of the host side of its veth, in the agent's network namespace.
    pub port: u32,
    /// MAC address inside the container.
    pub mac: Mac,
    /// MAC address of the gateway it talks to: the bridge's, or the veth's own where there is no bridge.
    pub gateway_mac: Mac,
    /// Named by an operator or a CNI plugin rather than learned.
    pub pinned: bool,
}

/// Where programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PortKind {
    /// A bridge that holds an address of the own subnet.
    Bridge,
    /// The host side of a container's veth.
    Veth,
    /// The device that reaches the peers. One alone.
    Underlay,
    /// overlay0. One alone.
    Device,
}

impl PortKind {
    /// On the containers' side, where ports come and go; the others are the host's own.
    pub const fn is_containers(self) -> bool {
        matches!(self, Self::Bridge | Self::Veth)
    }
}

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

/// What the loop branches on.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// A table is full; what is in it stays.
    #[error("the table of {table} is full ({capacity} entries): {remedy}")]
    Full {
        /// `peers`, `endpoints` or `flows`.
        table: &'static str,
        /// How many fit.
        capacity: u32,
        /// What to do.
        remedy: &'static str,
    },
    /// The interface went away between decision and change: a link event will follow.
    #[error("interface {0} is gone")]
    Gone(u32),
    /// The kernel refuses.
    #[error("{action}: {detail}")]
    Failed {
        /// Verb and object, lower case: `attach overlay_encap to veth12`.
        action: String,
        /// What the kernel said.
        detail: String,
    },
}

impl DatapathError {
    /// An error with all its causes in one line.
    pub fn failed(action: impl Into<String>, error: &dyn std::error::Error) -> Self {
        let mut detail = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors repeat their cause's text in their own.
            if !detail.contains(&text) {
                detail = format!("{detail}: {text}");
            }
            cause = error.source();
        }
        Self::Failed { action: action.into(), detail }
    }

    /// Something that should be there and is not.
    pub fn missing(action: impl Into<String>, what: &str) -> Self {
        Self::Failed { action: action.into(), detail: what.into() }
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
