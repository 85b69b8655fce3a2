//! The learner's conclusions: which ports to attach, whose claim on an address to believe.
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
    /// Compares picture and endpoints until nothing is left to say.
    pub(super) fn settle(&mut self) {
        self.is_view_stale = true;
        self.find_bridges();
        self.settle_ports();
        self.forget_own();
        self.follow_gateways();
        let claimed = self.claimed();
        for (address, claims) in &claimed {
            self.weigh(*address, claims);
        }
        // A claim that nobody makes any more is settled.
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

    /// Bridges and point-to-point veths of ours.
    pub(super) fn segments(&self) -> impl Iterator<Item = &Link> {
        self.links.values().filter(|link| {
            self.bridges.contains(&link.index)
                || (link.master.is_none() && self.wanted_kind(link.index) == Some(PortKind::Veth))
        })
    }

    /// What a link is to be attached as, if at all.
    pub(super) fn wanted_kind(&self, index: u32) -> Option<PortKind> {
        let link = self.links.get(&index)?;
        // Both ends here: no container is behind it, and redirect_peer drops what it would have to put into the same
        // namespace.
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

    /// Holds an address of the subnet, or leads to one; or is named by the operator.
    fn is_ours(&self, link: &Link) -> bool {
        if !self.config.bridges.is_empty() {
            return self.config.bridges.contains(&link.name);
        }
        // The base address is overlay0's, and proves nothing about others that carry it.
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

    /// An address a container can have: in the subnet, neither its base, its broadcast, nor one of this host's own.
    pub(super) fn is_container(&self, address: IpAddr) -> bool {
        let subnet = self.config.subnet;
        subnet.contains(&address)
            && address != subnet.network()
            && address != subnet.broadcast()
            && !self.local.iter().any(|(_, local)| *local == address)
    }

    /// Attaches what is wanted, bridges first, and detaches veths that were taken out of their bridge.
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

    /// Has endpoints with the port's own MAC as gateway: such a port has no bridge to be taken out of, and an address
    /// or route that goes for a moment must not end it. A bridge without a fixed MAC address has that of a port.
    fn was_point_to_point(&self, port: u32) -> bool {
        let own = self.links.get(&port).and_then(|link| link.mac);
        let talks_to_own = |endpoint: &Endpoint| endpoint.port == port && Some(endpoint.gateway_mac) == own;
        !self.bridged.contains(&port) && self.endpoints.values().any(talks_to_own)
    }

    /// What was learned of an address that the host has taken for itself since.
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
        self.answered.remove(&address);
        if self.endpoints.remove(&address).is_some() {
            self.changes.push(LocalChange::RemoveEndpoint(address));
        }
    }

    /// The MAC address a container on this port sends to: its bridge's, or the port's own.
    pub(super) fn gateway_mac(&self, port: u32) -> Mac {
        let mac = self.links.get(&self.segment(port)).and_then(|segment| segment.mac);
        mac.unwrap_or_default()
    }

    /// The port's bridge, or the port itself.
    fn segment(&self, port: u32) -> u32 {
        self.links.get(&port).and_then(|link| link.master).unwrap_or(port)
    }

    /// A bridge without a fixed MAC address takes another one as ports come and go.
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

    /// Every claim the picture makes, by address: behind this port, with this MAC address.
    fn claimed(&self) -> BTreeMap<IpAddr, Vec<(u32, Mac)>> {
        let mut claims: BTreeMap<IpAddr, Vec<(u32, Mac)>> = BTreeMap::new();
        for (&(link, address), &mac) in &self.neighbours {
            if !self.is_container(address) || !mac.is_unicast() {
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

    /// Weighs all claims on an address at once: its holder and others may be seen at the same time, on segments of
    /// their own, and none of them takes back what another says.
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
            // Another MAC behind the same port: the container was replaced, and the port is the proof.
            held = self.learned(port, mac);
            self.put(address, held);
        }
        // The one that is known goes first: of several, each would be new whenever it is its turn.
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
            // Whoever held it is down: there is nobody to ask, and packets would be lost until the answer did not come.
            self.claims.insert(address, claim);
            self.concede(address);
            return;
        }
        if known.is_some_and(|claim| claim.state == Asked::Probing) {
            return;
        }
        let is_new = claim.state == Asked::NotYet;
        let is_settled = held.pinned || self.answered.contains_key(&address);
        if is_new && !is_settled {
            claim.state = Asked::Probing;
            let Endpoint { port, mac, gateway_mac, .. } = held;
            self.probes.push(Probe { port, address, mac, gateway_mac });
        }
        self.claims.insert(address, claim);
        if is_new && is_settled {
            self.refuse(address);
        }
    }

    fn learned(&self, port: u32, mac: Mac) -> Endpoint {
        Endpoint { port, mac, gateway_mac: self.gateway_mac(port), pinned: false }
    }

    /// The holder answered, or is pinned: whoever claims the address, it is not asked again before [`Learner::retry`].
    /// Claims may take turns as fast as packets come, and of one that is made again each time one is counted.
    pub(super) fn refuse(&mut self, address: IpAddr) {
        let counted = self.answered.entry(address).or_default();
        let Some(claim) = self.claims.get_mut(&address) else { return };
        claim.state = Asked::Refused;
        let (claim_was, address_was) = (mem::replace(&mut claim.counted, true), mem::replace(counted, true));
        self.conflicts_total += u64::from(!claim_was && !address_was);
    }

    /// The holder is silent: the claimant gets the address, or the stack if the claimant's port has no fast path.
    pub(super) fn concede(&mut self, address: IpAddr) {
        let Some(claim) = self.claims.remove(&address) else {
            return;
        };
        self.moves_total += 1;
        self.answered.remove(&address);
        self.disprove(address, claim.port);
        if self.ports.get(&claim.port) == Some(&PortKind::Veth) {
            self.put(address, self.learned(claim.port, claim.mac));
        } else {
            self.forget(address);
        }
    }

    /// The kernel keeps a neighbour long after it fell silent. On another segment than the claimant's the entry would
    /// be a claim at once, and two that are silent would take the address from each other for ever.
    fn disprove(&mut self, address: IpAddr, claimant: u32) {
        let Some(held) = self.endpoints.get(&address) else { return };
        let segment = self.segment(held.port);
        let key = (segment, address);
        if segment != self.segment(claimant) && self.neighbours.get(&key) == Some(&held.mac) {
            self.neighbours.remove(&key);
        }
    }
}
