//! The containers of a host that is moved: which there are, and how the fast path gets them.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use log::warn;

use crate::{
    agent::options::Options,
    datapath::{
        Datapath as _, DatapathError, Installed,
        ebpf::EbpfDatapath,
        links::foreign::{self, ForeignAt},
    },
    host::netlink::Netlink,
    learn::learner::{LearnConfig, Learner},
    model::{change::LocalChange, entries::PortKind},
};

/// The containers that were learned.
#[derive(Debug)]
pub struct Containers {
    /// What the data path is to be told of them. Addresses come before ports: if a port had all of its programs and its address were
    /// not known, its connections would become stack flows and stay on the stack.
    pub changes: Vec<LocalChange>,
    /// Which of them others control at TC, and what comes of it, in words.
    pub notes: Vec<String>,
}

/// Finds out which containers are here, as the agent learns them, and what others have at their ports at TC: a queue or a filter
/// there must not be bypassed, not even until the agent starts.
///
/// # Errors
/// When the kernel does not list the interfaces, or what is attached to them.
pub async fn learned(netlink: &Netlink, subnet: IpNet, options: &Options) -> Result<Containers> {
    let config = LearnConfig { subnet, bridges: options.bridges.clone() };
    let mut learner = Learner::new(config, &Installed::default());
    learner.resync(netlink.snapshot().await?);
    let found =
        foreign::look(&learner.unseen()).context("look at what others have at the containers' ports")?;
    Ok(looked_at(&mut learner, found))
}

fn looked_at(learner: &mut Learner, found: BTreeMap<u32, ForeignAt>) -> Containers {
    let mut notes = Vec::new();
    for (port, at) in found {
        learner.looked(port, at.sides());
        if let Some(effect) = at.effect() {
            notes.push(format!("{}: {effect}", learner.interface_name(port).unwrap_or_default()));
        }
    }
    let (mut endpoints, mut ports) = (BTreeMap::new(), Vec::new());
    for change in learner.take_changes() {
        match change {
            // An address that was learned before its port was looked at comes twice. Only the last one is right.
            LocalChange::PutEndpoint(address, endpoint) => {
                endpoints.insert(address, endpoint);
            }
            LocalChange::RemoveEndpoint(address) => {
                endpoints.remove(&address);
            }
            LocalChange::Attach(..) | LocalChange::Detach(_) => ports.push(change),
        }
    }
    let endpoints =
        endpoints.into_iter().map(|(address, endpoint)| LocalChange::PutEndpoint(address, endpoint));
    Containers { changes: endpoints.chain(ports).collect(), notes }
}

/// Gives the containers to the fast path, each in both directions at one moment, which is when its address becomes an endpoint:
/// `overlay_encap` at its veth is there by then. If only one direction were taken over, the stack's connection tracking would see
/// answers to packets that it has not seen, and call them INVALID. So a container whose veth does not get its programs keeps to the
/// stack in both directions, until the agent attaches them. Returns the addresses that the fast path has now.
pub fn begin_fast_path(datapath: &mut EbpfDatapath, changes: &[LocalChange]) -> BTreeSet<IpAddr> {
    let mut refused = BTreeSet::new();
    for change in changes {
        if let LocalChange::Attach(port, PortKind::Veth) = change
            && let Err(error) = datapath.attach_sender(*port)
        {
            refused.insert(*port);
            tell(&format!("interface {port}"), &error);
        }
    }
    let mut carried = BTreeMap::new();
    for change in without(changes, &refused) {
        match (datapath.apply(&change.into()), change) {
            (Ok(()), LocalChange::PutEndpoint(address, endpoint)) => {
                carried.insert(address, endpoint.port);
            }
            (Err(error), LocalChange::Attach(port, _)) => {
                tell(&change.to_string(), &error);
                // A port without all of its programs must have no endpoints.
                let stranded: Vec<IpAddr> =
                    carried.iter().filter(|(_, at)| **at == port).map(|(address, _)| *address).collect();
                for address in stranded {
                    carried.remove(&address);
                    let change = LocalChange::RemoveEndpoint(address);
                    if let Err(error) = datapath.apply(&change.into()) {
                        warn!("{change}: {error}");
                    }
                }
            }
            (Err(error), _) => tell(&change.to_string(), &error),
            (Ok(()), _) => {}
        }
    }
    carried.into_keys().collect()
}

/// What is left of the changes where these ports did not get their programs.
fn without(changes: &[LocalChange], refused: &BTreeSet<u32>) -> Vec<LocalChange> {
    let is_possible = |change: &&LocalChange| match change {
        LocalChange::PutEndpoint(_, endpoint) => !refused.contains(&endpoint.port),
        LocalChange::Attach(port, _) => !refused.contains(port),
        LocalChange::RemoveEndpoint(_) | LocalChange::Detach(_) => true,
    };
    changes.iter().filter(is_possible).copied().collect()
}

fn tell(what: &str, error: &DatapathError) {
    // An interface that is gone left just now, and the agent will hear of it.
    if !matches!(error, DatapathError::Gone(_)) {
        warn!("{what}: {error}; its packets take the stack");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        datapath::links::foreign::Foreign,
        host::netlink::{Address, FdbEntry, HostSnapshot, Link, LinkKind, Neighbour},
        model::{entries::ForeignTc, mac::Mac},
    };

    const BRIDGE: u32 = 5;

    /// A bridge with two containers' veths, 7 and 8, whose addresses end with the same numbers.
    fn learner() -> Learner {
        let config = LearnConfig { subnet: "10.244.1.0/24".parse().unwrap(), bridges: Vec::new() };
        let mut learner = Learner::new(config, &Installed::default());
        let mac = |port: u32| Mac([2, 0, 0, 0, 0, port as u8]);
        let veth = |port: u32| Link {
            master: Some(BRIDGE),
            // The other end is in the container's namespace.
            peer_netns: Some(0),
            ..Link::example(port, &format!("veth{port}"), LinkKind::Veth)
        };
        let bridge = Link { mac: Some(mac(BRIDGE)), ..Link::example(BRIDGE, "cni0", LinkKind::Bridge) };
        learner.resync(HostSnapshot {
            links: vec![bridge, veth(7), veth(8)],
            addresses: vec![Address { link: BRIDGE, address: [10, 244, 1, 1].into(), prefix_len: 24 }],
            neighbours: [7, 8]
                .map(|port| Neighbour { link: BRIDGE, address: address(port), mac: mac(port) })
                .into(),
            fdb: [7, 8].map(|port| FdbEntry { bridge: BRIDGE, mac: mac(port), port }).into(),
            ..HostSnapshot::default()
        });
        learner
    }

    fn address(port: u32) -> IpAddr {
        [10, 244, 1, port as u8].into()
    }

    fn endpoints(changes: &[LocalChange]) -> Vec<(IpAddr, ForeignTc)> {
        let endpoint = |change: &LocalChange| match change {
            LocalChange::PutEndpoint(address, endpoint) => Some((*address, endpoint.foreign_tc)),
            _ => None,
        };
        changes.iter().filter_map(endpoint).collect()
    }

    #[test]
    fn what_others_have_at_a_port_is_known_before_the_fast_path_begins() {
        let shaped = ForeignAt { egress: vec![Foreign::Qdisc { kind: "tbf".into() }], ingress: Vec::new() };
        let found = BTreeMap::from([(7, shaped), (8, ForeignAt::default())]);
        let Containers { changes, notes } = looked_at(&mut learner(), found);
        // Each address is told once, with what is at its port, and before any port.
        let with_queue = ForeignTc { egress: true, ingress: false };
        assert_eq!(endpoints(&changes), [(address(7), with_queue), (address(8), ForeignTc::default())]);
        assert!(changes[..2].iter().all(|change| matches!(change, LocalChange::PutEndpoint(..))));
        assert_eq!(notes, ["veth7: queueing discipline tbf gets what is delivered there"]);
    }

    #[test]
    fn a_container_whose_port_gets_no_programs_keeps_to_the_stack() {
        let changes = looked_at(&mut learner(), BTreeMap::new()).changes;
        assert_eq!(without(&changes, &BTreeSet::new()), changes);
        let left = without(&changes, &BTreeSet::from([7]));
        assert_eq!(endpoints(&left), [(address(8), ForeignTc::default())]);
        let attached = |port| left.contains(&LocalChange::Attach(port, PortKind::Veth));
        assert_eq!((attached(7), attached(8)), (false, true));
    }
}
