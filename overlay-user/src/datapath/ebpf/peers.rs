//! A peer in the maps: its subnet, its underlay address among those that the programs take packets from, its counters.
use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::IpNet;
use overlay_common::{Addr4, Vtep};
use tokio::sync::watch;

use super::EbpfDatapath;
use crate::{
    datapath::{
        error::{DatapathError, removed},
        keys::key,
        tables,
    },
    model::entries::Peer,
};

/// With more subnets than this outside the leasable range, that range says nothing of the overlay any more: all of Network is
/// routed through overlay0, as one route.
pub const MANY_OUTLYING: usize = 64;

impl EbpfDatapath {
    pub(super) fn put_peer(&mut self, subnet: IpNet, peer: &Peer) -> Result<(), DatapathError> {
        let action = || format!("add peer {subnet}");
        let key = key(subnet.network(), action)?;
        let old = self.slots.of(key);
        let slot = match old {
            Some((slot, _)) => slot,
            None => self.free_slot()?,
        };
        let new = tables::peer_entry(peer, slot).map_err(|error| DatapathError::failed(action(), &error))?;
        let outer = new.outer;
        // The underlay address is written first, so that a packet which arrives between the two writes has a known sender.
        self.tables
            .vteps
            .insert(outer, Vtep { slot }, 0)
            .map_err(|error| self.write_failed("peers", format!("add VTEP {}", peer.public_ip), &error))?;
        self.slots.take(slot, outer);
        let moved = old.filter(|(_, before)| *before != outer);
        if let Err(error) = self.tables.peers.put(key, new) {
            if old.is_none() || moved.is_some() {
                self.forget_vtep(slot, outer)?;
            }
            if old.is_none() {
                self.slots.release(slot);
            }
            return Err(self.write_failed("peers", action(), &error));
        }
        self.slots.assign(key, slot, outer);
        self.note_outlying(subnet, key, true);
        moved.map_or(Ok(()), |(_, before)| self.forget_vtep(slot, before))
    }

    pub(super) fn remove_peer(&mut self, subnet: IpNet) -> Result<(), DatapathError> {
        let action = || format!("remove peer {subnet}");
        let key = key(subnet.network(), action)?;
        removed(self.tables.peers.remove(key)).map_err(|error| DatapathError::failed(action(), &error))?;
        self.note_outlying(subnet, key, false);
        let Some((slot, outer)) = self.slots.of(key) else { return Ok(()) };
        self.slots.forget(key);
        self.slots.release(slot);
        self.forget_vtep(slot, outer)
    }

    /// Subnets of peers outside the leasable range. The kernel has no route to them through overlay0 unless somebody puts it.
    pub fn outlying(&self) -> watch::Receiver<BTreeSet<IpNet>> {
        self.outlying.subscribe()
    }

    /// Looks for such peers in the table that was adopted.
    pub(super) fn find_outlying(&mut self) -> Result<(), DatapathError> {
        for base in self.tables.peers.entries()?.into_keys() {
            let action = || format!("read peer {base}");
            let subnet = IpNet::new(base.into(), self.prefix_len)
                .map_err(|error| DatapathError::failed(action(), &error))?;
            self.note_outlying(subnet, base.into(), true);
        }
        Ok(())
    }

    fn note_outlying(&self, subnet: IpNet, base: Addr4, is_there: bool) {
        if !self.options.settings.is_leasable(base) {
            self.outlying.send_if_modified(|subnets| {
                let is_news = if is_there { subnets.insert(subnet) } else { subnets.remove(&subnet) };
                // What comes beyond the first too many makes no difference.
                is_news && subnets.len() <= MANY_OUTLYING + 1
            });
        }
    }

    /// Forgets that the peer with `slot` is at underlay address `outer`. The address stays if another subnet's peer is there too,
    /// and then gets that peer's slot.
    fn forget_vtep(&mut self, slot: u32, outer: Addr4) -> Result<(), DatapathError> {
        let address = Ipv4Addr::from(outer);
        match self.slots.leave(slot, outer) {
            Some(slot) => self
                .tables
                .vteps
                .insert(outer, Vtep { slot }, 0)
                .map_err(|error| DatapathError::failed(format!("keep VTEP {address}"), &error)),
            None => removed(self.tables.vteps.remove(&outer))
                .map_err(|error| DatapathError::failed(format!("remove VTEP {address}"), &error)),
        }
    }

    /// The lowest counter slot that nobody uses, with its counters set to zero.
    fn free_slot(&mut self) -> Result<u32, DatapathError> {
        let full = || DatapathError::full("peers", self.options.max_peers);
        let slot = self.slots.lowest().ok_or_else(full)?;
        self.tables.clear_traffic(slot)?;
        Ok(slot)
    }
}
