//! Which MAC address an address has on a link: what containers announced, and else what the kernel says.
use std::net::IpAddr;

use super::{Asked, Learner};
use crate::{host::netlink::Neighbour, model::mac::Mac};

impl Learner {
    /// Takes in that containers announced addresses as their own (gratuitous ARP). The kernel tells of it only if it knew the
    /// address before, and if its MAC address is another one now.
    pub fn announced(&mut self, announced: impl IntoIterator<Item = Neighbour>) {
        let mut is_news = false;
        for Neighbour { link, address, mac } in announced {
            if !self.config.subnet.contains(&address) {
                continue;
            }
            // Whoever announces an address that was refused to them says that something has changed.
            let claim = self.claims.get_mut(&address).filter(|claim| claim.mac == mac);
            if let Some(claim) = claim.filter(|claim| claim.state == Asked::Refused)
                && self.answers.begin_anew(address)
            {
                claim.state = Asked::NotYet;
                is_news = true;
            }
            let place = (link, address);
            is_news |= self.announced.hear(place, mac, self.neighbours.get(&place).copied());
        }
        if is_news {
            self.settle();
        }
    }

    /// Which MAC address an address has on a link: as announced, or as the kernel says.
    pub(super) fn neighbour(&self, (link, address): (u32, IpAddr)) -> Option<Mac> {
        let announced = self.announced.get((link, address)).filter(|_| self.is_routed(address, link));
        announced.or_else(|| self.neighbours.get(&(link, address)).copied())
    }

    /// Whether the kernel sends packets to the address by this link. It heeds this itself for its own neighbours, but nobody has
    /// checked who announces what on which link.
    fn is_routed(&self, address: IpAddr, link: u32) -> bool {
        match self.routes.get(&address) {
            Some(leads) => *leads == link,
            None => self.bridges.contains(&link) || self.local.iter().any(|(holder, _)| *holder == link),
        }
    }
}
