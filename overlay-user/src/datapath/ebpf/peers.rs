//! A peer in the maps: its subnet, its underlay address among those that the programs take packets from, its counters.
use std::{collections::BTreeSet, net::Ipv4Addr};

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
        let old = self.slots.of(key);
        let slot = match old {
            Some((slot, _)) => slot,
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
        let moved = old.filter(|(_, before)| *before != outer);
        if let Err(error) = self.tables.peers.put(key, new) {
            if old.is_none() || moved.is_some() {
                self.forget_vtep(slot, outer)?;
            }
            if old.is_none() {
                self.slots.release(slot);
            }
            return Err(self.write_failed("peers", format!("add peer {subnet}"), &error));
        }
        self.slots.assign(key, slot, outer);
        moved.map_or(Ok(()), |(_, before)| self.forget_vtep(slot, before))
    }

    pub(super) fn remove_peer(&mut self, subnet: Ipv4Net) -> Result<(), DatapathError> {
        let key = Addr4::new(subnet.network().octets());
        gone(self.tables.peers.remove(key))
            .map_err(|error| DatapathError::failed(format!("remove peer {subnet}"), &error))?;
        let Some((slot, outer)) = self.slots.of(key) else { return Ok(()) };
        self.slots.forget(key);
        self.slots.release(slot);
        self.forget_vtep(slot, outer)
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

/// Makes the underlay addresses those of the peers; returns how many were not. An agent that was killed between its two
/// writes leaves one that no peer has, and it would count as a known peer for ever.
pub(super) fn mend_vteps(tables: &mut Tables, slots: &Slots) -> Result<usize, DatapathError> {
    let failed = |error| DatapathError::failed("put right the table of VTEPs", &error);
    let present: BTreeSet<Addr4> = tables.vteps.keys().collect::<Result<_, MapError>>().map_err(failed)?;
    let mut mended = 0;
    for address in present.iter().filter(|address| !slots.knows(address.octets)) {
        warn!("VTEP {} belongs to no peer: removing it", Ipv4Addr::from(address.octets));
        gone(tables.vteps.remove(address)).map_err(failed)?;
        mended += 1;
    }
    for (address, slot) in slots.addresses().filter(|(address, _)| !present.contains(address)) {
        warn!("peer {} is no VTEP: adding it", Ipv4Addr::from(address.octets));
        tables.vteps.insert(address, Vtep { slot }, 0).map_err(failed)?;
        mended += 1;
    }
    Ok(mended)
}
