//! Learns from the kernel's events which container address is behind which port. It has neither a clock nor I/O.
//!
//! Each event updates a picture of the host. [`Learner::settle`] then compares what the picture claims with what is in
//! force. Entries that age out are removed from the picture, but no endpoint is removed for that: the frames of the fast path
//! bypass the bridge, so its entries age although there is traffic. An endpoint is removed only when its port ends, when it
//! is detached by name, or when it provably moved.
mod announced;
mod answers;
mod claims;
mod foreign_tc;
mod neighbours;
mod overview;
mod same_host;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;

use self::{announced::Announced, answers::Answers};
use crate::{
    datapath::Installed,
    host::netlink::{Event, FdbEntry, HostSnapshot, Link, LinkKind, Neighbour, Route},
    model::change::LocalChange,
    model::{
        entries::{Endpoint, ForeignTc, PortKind},
        mac::Mac,
    },
};

/// How often the holders of all addresses with refused claims are asked again.
pub const RETRY: Duration = Duration::from_secs(10);

/// What to learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnConfig {
    /// The subnet that this host leased. Addresses outside it are never learned.
    pub subnet: IpNet,
    /// Names of the bridges (or point-to-point veths) to watch. If there are none, all that have an address of the subnet are
    /// watched.
    pub bridges: Vec<String>,
}

/// The question whether `address` still answers on `port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Probe {
    /// The port that the address was learned on.
    pub port: u32,
    /// The address.
    pub address: IpAddr,
    /// Its MAC address there.
    pub mac: Mac,
    /// The gateway's MAC address, which is the sender of the question.
    pub gateway_mac: Mac,
    /// Another address of the same container, if one is known. When it answers for that one and not for `address`, nobody needs to
    /// wait for longer.
    pub sibling: Option<IpAddr>,
}

/// Why an endpoint could not be attached or detached by name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// There is no interface of that name in the agent's network namespace.
    #[error("no interface {0}: name the host side of the container's veth")]
    NoInterface(String),
    /// The interface is not a veth.
    #[error(
        "interface {0} is not a veth: only veths have a fast path, others use the kernel's stack without being attached"
    )]
    NotVeth(String),
    /// The address is outside this host's subnet.
    #[error("{address} is not a container address of {subnet}, this host's subnet")]
    NotOurs {
        /// The address.
        address: IpAddr,
        /// This host's subnet.
        subnet: IpNet,
    },
    /// The MAC address is neither given nor known.
    #[error(
        "the MAC address of {0} is not known yet: give it with --mac, or send one packet from the container"
    )]
    NoMac(IpAddr),
    /// The address has no endpoint.
    #[error("{0} is not an endpoint here: `overlay endpoints` lists them")]
    Unknown(IpAddr),
}

/// A claim to an address that another port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AddressClaim {
    port: u32,
    mac: Mac,
    state: Asked,
    /// Whether the claim was counted as a conflict.
    counted: bool,
}

/// How far the question to the holder of a claimed address has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// The holder is to be asked.
    NotYet,
    /// A probe is under way.
    Probing,
    /// The holder answered, or is pinned. It is not asked again before [`Learner::ask_again`] or [`Learner::retry`].
    Refused,
}

/// The picture of the host and what follows from it.
#[derive(Debug)]
pub struct Learner {
    config: LearnConfig,
    links: BTreeMap<u32, Link>,
    /// The addresses of links that are inside the subnet, as pairs of link and address.
    local: BTreeSet<(u32, IpAddr)>,
    /// The host routes to addresses inside the subnet: link by address.
    routes: BTreeMap<IpAddr, u32>,
    /// The kernel's neighbours inside the subnet: MAC address by link and address.
    neighbours: BTreeMap<(u32, IpAddr), Mac>,
    /// What was announced inside the subnet. It goes before what the kernel said earlier.
    announced: Announced,
    /// The forwarding tables: port by bridge and MAC address.
    fdb: BTreeMap<(u32, Mac), u32>,
    /// Bridges that had an address of the subnet at any time. When the address goes for a moment, nothing is detached.
    bridges: BTreeSet<u32>,
    /// Links that were ports of any bridge at any time.
    bridged: BTreeSet<u32>,
    ports: BTreeMap<u32, PortKind>,
    /// What others have at the ports, as far as they were looked at.
    foreign_tc: BTreeMap<u32, ForeignTc>,
    /// What of the host, if anything, sees the frames that bridges forward, in words. `None` until somebody has looked.
    seen_by: Option<Option<String>>,
    endpoints: BTreeMap<IpAddr, Endpoint>,
    claims: BTreeMap<IpAddr, AddressClaim>,
    /// Addresses whose holder answered or is pinned.
    answers: Answers,
    conflicts_total: u64,
    moves_total: u64,
    changes: Vec<LocalChange>,
    probes: Vec<Probe>,
    /// Whether something was settled since the last overview.
    is_view_stale: bool,
}

impl Learner {
    /// Starts from what is in force. Nothing is decided before the first [`Self::resync`].
    pub fn new(config: LearnConfig, installed: &Installed) -> Self {
        Self {
            config,
            links: BTreeMap::new(),
            local: BTreeSet::new(),
            routes: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            announced: Announced::default(),
            fdb: BTreeMap::new(),
            bridges: BTreeSet::new(),
            bridged: BTreeSet::new(),
            ports: installed.ports.clone(),
            foreign_tc: BTreeMap::new(),
            seen_by: None,
            endpoints: installed.endpoints.clone(),
            claims: BTreeMap::new(),
            answers: Answers::default(),
            conflicts_total: 0,
            moves_total: 0,
            changes: Vec::new(),
            probes: Vec::new(),
            is_view_stale: true,
        }
    }

    /// Replaces the picture by a snapshot. This is for the start, and for whenever events were lost.
    pub fn resync(&mut self, snapshot: HostSnapshot) {
        self.links = snapshot.links.into_iter().map(|link| (link.index, link)).collect();
        self.local.clear();
        self.routes.clear();
        let before = mem::take(&mut self.neighbours);
        self.fdb.clear();
        self.bridges.retain(|index| self.links.contains_key(index));
        self.bridged.retain(|index| self.links.contains_key(index));
        self.foreign_tc.retain(|index, _| self.links.contains_key(index));
        let bridged: Vec<u32> =
            self.links.values().filter(|link| self.is_bridged(link)).map(|link| link.index).collect();
        self.bridged.extend(bridged);
        let events = snapshot.addresses.into_iter().map(Event::Address);
        let events = events.chain(snapshot.routes.into_iter().map(Event::Route));
        let events = events.chain(snapshot.neighbours.into_iter().map(Event::Neighbour));
        let events = events.chain(snapshot.fdb.into_iter().map(Event::Fdb));
        let announced = mem::take(&mut self.announced);
        for event in events {
            self.note(event);
        }
        self.announced = announced;
        self.announced.retain(|place, _| {
            let (then, now) = (before.get(&place), self.neighbours.get(&place));
            self.links.contains_key(&place.0) && (now.is_none() || now == then)
        });
        self.find_bridges();
        let attached: Vec<u32> = self.ports.keys().copied().collect();
        for index in attached {
            if self.wanted_kind(index).is_none() {
                self.end_port(index);
            }
        }
        // The port is attached anew. That is no error, and it repairs a port that was left with only some of its programs.
        self.ports.clear();
        let orphans: Vec<_> =
            self.endpoints.iter().map(|(address, endpoint)| (*address, endpoint.port)).collect();
        for (address, port) in orphans {
            if !self.is_veth(port) || !self.is_container(address) || self.wanted_kind(port).is_none() {
                self.forget(address);
            }
        }
        self.settle();
    }

    /// Takes in one event. [`Event::Lost`] changes nothing, but the caller must then call [`Self::resync`].
    pub fn event(&mut self, event: Event) {
        let gone = match event {
            Event::LinkGone(index) => Some(index),
            _ => None,
        };
        // Most events of the kernel only repeat what is known.
        if !self.note(event) {
            return;
        }
        if let Some(index) = gone {
            self.end_port(index);
        }
        self.settle();
    }

    /// Takes in the answer to a [`Probe`]: whether the address answered on its old port.
    pub fn probed(&mut self, probe: Probe, answered: bool) {
        let Some(held) = self.endpoints.get(&probe.address).filter(|held| held.port == probe.port) else {
            return;
        };
        if answered {
            self.answers.given(probe.address, RETRY);
            self.refuse(probe.address);
        } else if held.mac == probe.mac {
            self.concede(probe.address);
        } else if let Some(claim) = self.claims.get_mut(&probe.address) {
            // The container behind the port was replaced during the probe, so the new one has not been asked.
            claim.state = Asked::NotYet;
        }
        self.settle();
    }

    /// Makes a refused claim to an address be asked about again. It is to be called after each pause of [`Self::take_pauses`].
    pub fn ask_again(&mut self, address: IpAddr) {
        self.answers.expire(address);
        if let Some(claim) = self.claims.get_mut(&address).filter(|claim| claim.state == Asked::Refused) {
            claim.state = Asked::NotYet;
            self.settle();
        }
    }

    /// Makes all refused claims be asked about again, so that a container that moved slowly is found, and lets announcements age.
    /// It is to be called every [`RETRY`].
    pub fn retry(&mut self) {
        self.announced.age();
        self.answers.renew(|address| self.claims.contains_key(address));
        for claim in self.claims.values_mut() {
            if claim.state == Asked::Refused {
                claim.state = Asked::NotYet;
            }
        }
        self.settle();
    }

    /// Pins an endpoint that an operator or a CNI plugin named.
    pub fn attach(&mut self, address: IpAddr, interface: &str, mac: Option<Mac>) -> Result<(), ClaimError> {
        let link = self.links.values().find(|link| link.name == interface);
        let link = link.ok_or_else(|| ClaimError::NoInterface(interface.to_owned()))?;
        if link.kind != LinkKind::Veth {
            return Err(ClaimError::NotVeth(interface.to_owned()));
        }
        if !self.is_container(address) {
            return Err(ClaimError::NotOurs { address, subnet: self.config.subnet });
        }
        let port = link.index;
        let segment = link.master.unwrap_or(port);
        let mac = mac.or_else(|| self.neighbour((segment, address))).ok_or(ClaimError::NoMac(address))?;
        let endpoint = Endpoint { pinned: true, ..self.learned(port, mac) };
        self.claims.remove(&address);
        self.answers.forget(address);
        self.attach_port(port, PortKind::Veth);
        self.put(address, endpoint);
        self.settle();
        Ok(())
    }

    /// Removes an endpoint, whether it was pinned or learned. It is learned again when the kernel next sees it.
    pub fn detach(&mut self, address: IpAddr) -> Result<(), ClaimError> {
        let endpoint = self.endpoints.get(&address).ok_or(ClaimError::Unknown(address))?;
        let port = endpoint.port;
        self.neighbours.retain(|(_, other), _| *other != address);
        self.announced.retain(|(_, other), _| other != address);
        self.forget(address);
        if self.wanted_kind(port).is_none() {
            self.end_port(port);
        }
        self.settle();
        Ok(())
    }

    /// The changes that have come up since the last call, in order.
    pub fn take_changes(&mut self) -> Vec<LocalChange> {
        mem::take(&mut self.changes)
    }

    /// The probes that have come up since the last call.
    pub fn take_probes(&mut self) -> Vec<Probe> {
        mem::take(&mut self.probes)
    }

    /// The addresses whose holders are to be asked again ([`Self::ask_again`]), and after which pause, that have come up since the
    /// last call.
    pub fn take_pauses(&mut self) -> Vec<(IpAddr, Duration)> {
        self.answers.take_pauses()
    }

    /// The name of an interface, which is needed to send a probe.
    pub fn interface_name(&self, index: u32) -> Option<&str> {
        self.links.get(&index).map(|link| link.name.as_str())
    }

    /// Writes an event into the picture without concluding anything, and returns whether the picture changed.
    fn note(&mut self, event: Event) -> bool {
        match event {
            Event::Link(link) => {
                if self.is_bridged(&link) {
                    self.bridged.insert(link.index);
                }
                let is_news = self.links.get(&link.index) != Some(&link);
                self.links.insert(link.index, link);
                is_news
            }
            Event::LinkGone(index) => {
                self.links.remove(&index);
                self.foreign_tc.remove(&index);
                self.bridges.remove(&index);
                self.bridged.remove(&index);
                self.local.retain(|(link, _)| *link != index);
                self.routes.retain(|_, link| *link != index);
                self.neighbours.retain(|(link, _), _| *link != index);
                self.announced.retain(|(link, _), _| link != index);
                self.fdb.retain(|(bridge, _), port| *bridge != index && *port != index);
                true
            }
            Event::BridgePort(index, bridging) => match self.links.get_mut(&index) {
                Some(link) => {
                    let bridging = Some(bridging);
                    mem::replace(&mut link.bridging, bridging.clone()) != bridging
                }
                None => false,
            },
            Event::Address(address) => {
                self.config.subnet.contains(&address.address)
                    && self.local.insert((address.link, address.address))
            }
            Event::AddressGone(address) => self.local.remove(&(address.link, address.address)),
            Event::Route(route) => self
                .host_route(&route)
                .is_some_and(|(address, link)| self.routes.insert(address, link) != Some(link)),
            Event::RouteGone(route) => match self.host_route(&route) {
                Some((address, link)) if self.routes.get(&address) == Some(&link) => {
                    self.routes.remove(&address).is_some()
                }
                _ => false,
            },
            Event::Neighbour(Neighbour { link, address, mac }) => {
                let place = (link, address);
                let is_news =
                    self.config.subnet.contains(&address) && self.neighbours.insert(place, mac) != Some(mac);
                if is_news {
                    self.announced.supersede(place);
                }
                is_news
            }
            Event::NeighbourGone(link, address) => self.neighbours.remove(&(link, address)).is_some(),
            Event::Fdb(FdbEntry { bridge, mac, port }) => self.fdb.insert((bridge, mac), port) != Some(port),
            Event::FdbGone(FdbEntry { bridge, mac, port }) => {
                self.fdb.get(&(bridge, mac)) == Some(&port) && self.fdb.remove(&(bridge, mac)).is_some()
            }
            Event::Lost => false,
        }
    }

    fn is_bridged(&self, link: &Link) -> bool {
        let master = link.master.and_then(|master| self.links.get(&master));
        master.is_some_and(|master| master.kind == LinkKind::Bridge)
    }

    fn host_route(&self, route: &Route) -> Option<(IpAddr, u32)> {
        let address = route.destination.addr();
        let ours = route.destination == IpNet::from(address)
            && route.gateway.is_none()
            && self.config.subnet.contains(&address);
        Some((address, route.link?)).filter(|_| ours)
    }
}
