//! The learner's conclusions: which ports get programs, and which of several claims to an address is believed.
use std::{collections::BTreeMap, mem, net::IpAddr};

use super::{AddressClaim, Asked, Learner, Probe};
use crate::{
    host::netlink::{Link, LinkKind},
    model::change::LocalChange,
    model::{
        entries::{Endpoint, PortKind},
        mac::Mac,
    },
};

impl Learner {
    /// Compares the picture with the endpoints, and makes changes and probes of the differences.
    pub(super) fn settle(&mut self) {
        self.is_view_stale = true;
        self.find_bridges();
        self.settle_ports();
        self.forget_own();
        self.follow_gateways();
        self.follow_foreign_tc();
        let claimed = self.claimed();
        for (address, claims) in &claimed {
            self.weigh(*address, claims);
        }
        self.follow_bridges();
        // An address that nobody claims any more needs no further question.
        self.claims.retain(|address, claim| claim.state == Asked::Probing || claimed.contains_key(address));
    }

    pub(super) fn find_bridges(&mut self) {
        let found: Vec<u32> = self
            .links
            .values()
            .filter(|link| link.kind == LinkKind::Bridge && self.is_ours(link))
            .map(|link| link.index)
            .collect();
        self.bridges.extend(found);
    }

    /// The bridges and point-to-point veths whose containers are learned.
    pub(super) fn segments(&self) -> impl Iterator<Item = &Link> {
        self.links.values().filter(|link| {
            self.bridges.contains(&link.index)
                || (link.master.is_none() && self.wanted_kind(link.index) == Some(PortKind::Veth))
        })
    }

    /// As which kind of port a link gets programs, if it gets any.
    pub(super) fn wanted_kind(&self, index: u32) -> Option<PortKind> {
        let link = self.links.get(&index)?;
        // Both ends are in this namespace, so there is no container behind it. Moreover, redirect_peer drops a packet whose
        // receiver is in the same namespace.
        if link.kind == LinkKind::Veth && link.peer_netns.is_none() {
            return None;
        }
        match (&link.kind, link.master) {
            (LinkKind::Bridge, _) if self.bridges.contains(&index) => Some(PortKind::Bridge),
            (LinkKind::Veth, Some(master)) if self.bridges.contains(&master) => Some(PortKind::Veth),
            (LinkKind::Veth, None) if self.is_ours(link) => Some(PortKind::Veth),
            (LinkKind::Veth, _) if self.has_pinned(index) => Some(PortKind::Veth),
            _ => None,
        }
    }

    /// Whether containers behind this link are learned: it has an address of the subnet, or a host route to one, or the
    /// operator named it.
    fn is_ours(&self, link: &Link) -> bool {
        if !self.config.bridges.is_empty() {
            return self.config.bridges.contains(&link.name);
        }
        // The base address belongs to overlay0. Another link that has it, too, need not be ours.
        let holds = |&(index, address): &(u32, IpAddr)| {
            index == link.index && address != self.config.subnet.network()
        };
        let leads = link.kind == LinkKind::Veth && self.routes.values().any(|index| *index == link.index);
        leads || self.local.iter().any(holds)
    }

    pub(super) fn is_veth(&self, index: u32) -> bool {
        self.links.get(&index).is_some_and(|link| link.kind == LinkKind::Veth)
    }

    fn has_pinned(&self, port: u32) -> bool {
        self.endpoints.values().any(|endpoint| endpoint.pinned && endpoint.port == port)
    }

    /// Whether a container can have an address: it is in the subnet, but is neither its base nor its broadcast address, nor
    /// one of this host's own.
    pub(super) fn is_container(&self, address: IpAddr) -> bool {
        let subnet = self.config.subnet;
        subnet.contains(&address)
            && address != subnet.network()
            && address != subnet.broadcast()
            && !self.local.iter().any(|(_, local)| *local == address)
    }

    /// Attaches the ports that should have programs, bridges first, and detaches veths that were taken out of their bridge.
    fn settle_ports(&mut self) {
        let mut wanted: Vec<(PortKind, u32)> =
            self.links.keys().filter_map(|index| Some((self.wanted_kind(*index)?, *index))).collect();
        wanted.sort_unstable();
        for (kind, index) in wanted {
            self.attach_port(index, kind);
        }
        let taken_out = |port: &u32| {
            let link = self.links.get(port);
            let elsewhere = link.is_some_and(|link| link.master.is_some() || !self.was_point_to_point(*port));
            self.wanted_kind(*port).is_none() && elsewhere
        };
        let gone: Vec<u32> = self.ports.keys().filter(|port| taken_out(port)).copied().collect();
        for port in gone {
            self.end_port(port);
        }
    }

    /// Whether a port has no bridge, which is seen from endpoints whose gateway has the port's own MAC address. Such a port is
    /// not detached when its address or route goes for a moment. (A bridge without a fixed MAC address has that of one of its
    /// ports, so links that were ports of a bridge are excluded.)
    fn was_point_to_point(&self, port: u32) -> bool {
        let own = self.links.get(&port).and_then(|link| link.mac);
        let talks_to_own = |endpoint: &Endpoint| endpoint.port == port && Some(endpoint.gateway_mac) == own;
        !self.bridged.contains(&port) && self.endpoints.values().any(talks_to_own)
    }

    /// Removes the endpoints of addresses that the host has got itself in the meantime.
    fn forget_own(&mut self) {
        let learned = self.endpoints.iter().filter(|(_, endpoint)| !endpoint.pinned);
        let own: Vec<IpAddr> =
            learned.map(|(address, _)| *address).filter(|address| !self.is_container(*address)).collect();
        for address in own {
            self.forget(address);
        }
    }

    pub(super) fn attach_port(&mut self, index: u32, kind: PortKind) {
        if self.ports.insert(index, kind) != Some(kind) {
            self.changes.push(LocalChange::Attach(index, kind));
        }
    }

    /// Removes a port with all its endpoints.
    pub(super) fn end_port(&mut self, index: u32) {
        let on_it = self.endpoints.iter().filter(|(_, endpoint)| endpoint.port == index);
        let addresses: Vec<_> = on_it.map(|(address, _)| *address).collect();
        for address in addresses {
            self.forget(address);
        }
        if self.ports.remove(&index).is_some() {
            self.changes.push(LocalChange::Detach(index));
        }
    }

    pub(super) fn put(&mut self, address: IpAddr, endpoint: Endpoint) {
        if self.endpoints.insert(address, endpoint) != Some(endpoint) {
            self.changes.push(LocalChange::PutEndpoint(address, endpoint));
        }
    }

    pub(super) fn forget(&mut self, address: IpAddr) {
        self.claims.remove(&address);
        self.answers.forget(address);
        if self.endpoints.remove(&address).is_some() {
            self.changes.push(LocalChange::RemoveEndpoint(address));
        }
    }

    /// The MAC address that a container behind this port sends to: its bridge's, or the port's own if there is no bridge.
    pub(super) fn gateway_mac(&self, port: u32) -> Mac {
        let mac = self.links.get(&self.segment(port)).and_then(|segment| segment.mac);
        mac.unwrap_or_default()
    }

    /// The link that is the gateway of a port's containers: the port's bridge, or the port itself.
    fn segment(&self, port: u32) -> u32 {
        self.links.get(&port).and_then(|link| link.master).unwrap_or(port)
    }

    /// Corrects the gateways of endpoints. A bridge without a fixed MAC address changes it as ports come and go.
    fn follow_gateways(&mut self) {
        let stale: Vec<(IpAddr, Endpoint)> = self
            .endpoints
            .iter()
            .map(|(address, endpoint)| (*address, *endpoint, self.gateway_mac(endpoint.port)))
            .filter(|(_, endpoint, gateway_mac)| {
                endpoint.gateway_mac != *gateway_mac && *gateway_mac != Mac::default()
            })
            .map(|(address, endpoint, gateway_mac)| (address, Endpoint { gateway_mac, ..endpoint }))
            .collect();
        for (address, endpoint) in stale {
            self.put(address, endpoint);
        }
    }

    /// All claims in the picture: for each address the ports and MAC addresses that claim it.
    pub(super) fn claimed(&self) -> BTreeMap<IpAddr, Vec<(u32, Mac)>> {
        let mut claims: BTreeMap<IpAddr, Vec<(u32, Mac)>> = BTreeMap::new();
        let besides = self.announced.places().filter(|place| !self.neighbours.contains_key(place));
        for (link, address) in self.neighbours.keys().copied().chain(besides) {
            let Some(mac) = self.neighbour((link, address)).filter(|mac| mac.is_unicast()) else { continue };
            if !self.is_container(address) {
                continue;
            }
            let port = if self.bridges.contains(&link) {
                self.fdb.get(&(link, mac)).copied()
            } else {
                Some(link).filter(|link| self.ports.contains_key(link))
            };
            if let Some(port) = port {
                claims.entry(address).or_default().push((port, mac));
            }
        }
        claims
    }

    /// Weighs all claims to one address together. On different segments, its holder and others may be seen at the same time,
    /// and the order of these claims means nothing.
    fn weigh(&mut self, address: IpAddr, claims: &[(u32, Mac)]) {
        let mut held = match self.endpoints.get(&address) {
            Some(held) => *held,
            None => {
                let is_veth = |(port, _): &&(u32, Mac)| self.ports.get(port) == Some(&PortKind::Veth);
                let Some(&(port, mac)) = claims.iter().find(is_veth) else { return };
                let first = self.learned(port, mac);
                self.put(address, first);
                first
            }
        };
        let (own, rivals): (Vec<_>, Vec<_>) =
            claims.iter().copied().partition(|(port, _)| *port == held.port);
        if let Some(&(port, mac)) = own.first()
            && !held.pinned
            && !own.contains(&(port, held.mac))
        {
            // Another MAC address behind the same port means that the container was replaced. No probe is needed.
            held = self.learned(port, mac);
            self.put(address, held);
        }
        // A claim that is known already goes first. Otherwise several claims would replace each other, and each would be
        // counted as new.
        let known = self.claims.get(&address).copied();
        let known_rival = known.filter(|claim| rivals.contains(&(claim.port, claim.mac)));
        let new = rivals.first().map(|&(port, mac)| AddressClaim {
            port,
            mac,
            state: Asked::NotYet,
            counted: false,
        });
        let Some(mut claim) = known_rival.or(new) else {
            self.claims.remove(&address);
            return;
        };
        if !held.pinned && self.links.get(&held.port).is_some_and(|link| !link.carrier) {
            // The holder's port is down, so nobody can be asked. Packets would be lost while an answer is waited for.
            self.claims.insert(address, claim);
            self.concede(address);
            return;
        }
        if known.is_some_and(|claim| claim.state == Asked::Probing) {
            return;
        }
        let is_new = claim.state == Asked::NotYet;
        let is_settled = held.pinned || self.answers.count(address);
        if is_new && !is_settled {
            claim.state = Asked::Probing;
            let Endpoint { port, mac, gateway_mac, .. } = held;
            let sibling = self.sibling(address, &held);
            self.probes.push(Probe { port, address, mac, gateway_mac, sibling });
        }
        self.claims.insert(address, claim);
        if is_new && is_settled {
            if held.pinned {
                self.answers.pinned(address);
            }
            self.refuse(address);
        }
    }

    /// Another address of the container that holds `address`, which nobody else claims.
    fn sibling(&self, address: IpAddr, held: &Endpoint) -> Option<IpAddr> {
        let mut others = self.endpoints.iter().filter(|(other, _)| **other != address);
        others
            .find(|(other, endpoint)| {
                (endpoint.port, endpoint.mac) == (held.port, held.mac) && !self.claims.contains_key(other)
            })
            .map(|(other, _)| *other)
    }

    pub(super) fn learned(&self, port: u32, mac: Mac) -> Endpoint {
        let foreign_tc = self.foreign_tc.get(&port).copied().unwrap_or_default();
        let gateway_mac = self.gateway_mac(port);
        Endpoint { port, mac, gateway_mac, pinned: false, foreign_tc, bridge: self.hands_on_by(port, mac) }
    }

    /// Refuses a claim, because the holder answered or is pinned. The holder is not asked again before the pause after its answer is
    /// over, whoever claims the address. Claims may alternate with every packet, so only one is counted until [`Learner::retry`].
    pub(super) fn refuse(&mut self, address: IpAddr) {
        let Some(claim) = self.claims.get_mut(&address) else { return };
        claim.state = Asked::Refused;
        let (is_first, was_counted) =
            (self.answers.is_first_conflict(address), mem::replace(&mut claim.counted, true));
        self.conflicts_total += u64::from(is_first && !was_counted);
    }

    /// The holder did not answer, so the claimant gets the address. If the claimant's port has no programs, the endpoint is
    /// only removed, and packets to the address take the stack.
    pub(super) fn concede(&mut self, address: IpAddr) {
        let Some(claim) = self.claims.remove(&address) else {
            return;
        };
        self.moves_total += 1;
        self.answers.forget(address);
        self.disprove(address, &claim);
        if self.ports.get(&claim.port) == Some(&PortKind::Veth) {
            self.put(address, self.learned(claim.port, claim.mac));
        } else {
            self.forget(address);
        }
    }

    /// Removes the former holder from the picture, where the claimant's entry is another one. The kernel keeps its entry for long.
    /// It would be a claim, at once or when an announcement ends, and two silent containers would take the address from each other
    /// for ever.
    fn disprove(&mut self, address: IpAddr, claim: &AddressClaim) {
        let Some(held) = self.endpoints.get(&address) else { return };
        let segment = self.segment(held.port);
        let place = (segment, address);
        if segment == self.segment(claim.port) && held.mac == claim.mac {
            return;
        }
        if self.neighbours.get(&place) == Some(&held.mac) {
            self.neighbours.remove(&place);
        }
        if self.announced.get(place) == Some(held.mac) {
            self.announced.supersede(place);
        }
    }
}
