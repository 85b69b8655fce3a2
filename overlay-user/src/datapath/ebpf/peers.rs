//! A peer in the maps: its subnet, its underlay address among those that the programs take packets from, its counters.
use std::net::Ipv4Addr;

use aya::maps::MapError;
use ipnet::Ipv4Net;
use log::warn;
use overlay_common::{Addr4, Vtep};

use super::{EbpfDatapath, full, gone};
use crate::datapath::{
    DatapathError, Peer,
    slots::Slots,
    tables::{self, Tables},
};

impl EbpfDatapath {
    pub(super) fn put_peer(&mut self, subnet: Ipv4Net, peer: &Peer) -> Result<(), DatapathError> {
        let key = Addr4::new(subnet.network().octets());
        let old = self.tables.peers.get(key);
        let slot = match old {
            Some(old) => old.slot,
            None => self.free_slot()?,
        };
        let outer = peer.public_ip.octets();
        let new = tables::peer_entry(peer, slot);
        // The address first: a packet that arrives between the two writes finds its sender known.
        self.tables
            .vteps
            .insert(Addr4::new(outer), Vtep { slot }, 0)
            .map_err(|error| self.write_failed("peers", format!("add VTEP {}", peer.public_ip), &error))?;
        self.slots.take(slot, outer);
        if let Err(error) = self.tables.peers.put(key, new) {
            if old.is_none_or(|old| old.outer != outer) {
                self.forget_vtep(slot, outer)?;
            }
            if old.is_none() {
                self.slots.release(slot);
            }
            return Err(self.write_failed("peers", format!("add peer {subnet}"), &error));
        }
        match old {
            Some(old) if old.outer != outer => self.forget_vtep(slot, old.outer),
            _ => Ok(()),
        }
    }

    pub(super) fn remove_peer(&mut self, subnet: Ipv4Net) -> Result<(), DatapathError> {
        let key = Addr4::new(subnet.network().octets());
        let Some(old) = self.tables.peers.get(key) else { return Ok(()) };
        self.tables
            .peers
            .remove(key)
            .map_err(|error| DatapathError::failed(format!("remove peer {subnet}"), &error))?;
        self.forget_vtep(old.slot, old.outer)?;
        self.slots.release(old.slot);
        Ok(())
    }

    /// The peer with `slot` is no longer at underlay address `outer`. The address goes unless another subnet's peer is
    /// there too, whose slot it then gets.
    fn forget_vtep(&mut self, slot: u32, outer: [u8; 4]) -> Result<(), DatapathError> {
        let (key, address) = (Addr4::new(outer), Ipv4Addr::from(outer));
        match self.slots.leave(slot, outer) {
            Some(slot) => self
                .tables
                .vteps
                .insert(key, Vtep { slot }, 0)
                .map_err(|error| DatapathError::failed(format!("keep VTEP {address}"), &error)),
            None => gone(self.tables.vteps.remove(&key))
                .map_err(|error| DatapathError::failed(format!("remove VTEP {address}"), &error)),
        }
    }

    /// The lowest counter slot nobody has, with its counters at zero.
    fn free_slot(&mut self) -> Result<u32, DatapathError> {
        let full = full("peers", self.options.max_peers);
        let slot = self.slots.lowest().ok_or(full)?;
        self.tables.clear_traffic(slot)?;
        Ok(slot)
    }
}

/// Removes underlay addresses that no peer has: an agent that was killed between its two writes leaves one, and it would
/// count as a known peer for ever.
pub(super) fn forget_strangers(tables: &mut Tables, slots: &Slots) -> Result<(), DatapathError> {
    let known: Result<Vec<Addr4>, MapError> = tables.vteps.keys().collect();
    let known = known.map_err(|error| DatapathError::failed("read the table of VTEPs", &error))?;
    for address in known.into_iter().filter(|address| !slots.knows(address.octets)) {
        warn!("VTEP {} belongs to no peer: removing it", Ipv4Addr::from(address.octets));
        tables.vteps.remove(&address).map_err(|error| DatapathError::failed("remove a VTEP", &error))?;
    }
    Ok(())
}
