//! Which counter slots are taken, and by which underlay address: so that neither adding nor removing a peer has to read
//! the whole table again.
use std::collections::{BTreeMap, BTreeSet};

/// The counter slots of the peer table.
#[derive(Debug, Default)]
pub(super) struct Slots {
    free: BTreeSet<u32>,
    /// Slots by underlay address; a host that holds several subnets has several.
    by_outer: BTreeMap<[u8; 4], BTreeSet<u32>>,
}

impl Slots {
    /// `capacity` slots, of which `taken` are in use by these addresses.
    pub(super) fn new(capacity: u32, taken: impl IntoIterator<Item = (u32, [u8; 4])>) -> Self {
        let mut slots = Self { free: (0..capacity).collect(), by_outer: BTreeMap::new() };
        for (slot, outer) in taken {
            slots.take(slot, outer);
        }
        slots
    }

    /// The lowest free slot.
    pub(super) fn lowest(&self) -> Option<u32> {
        self.free.first().copied()
    }

    /// `slot` is in use by the peer at `outer`.
    pub(super) fn take(&mut self, slot: u32, outer: [u8; 4]) {
        self.free.remove(&slot);
        self.by_outer.entry(outer).or_default().insert(slot);
    }

    /// `slot` is not in use by the peer at `outer` any more; returns another slot of that address, if it has one.
    pub(super) fn leave(&mut self, slot: u32, outer: [u8; 4]) -> Option<u32> {
        let slots = self.by_outer.get_mut(&outer)?;
        slots.remove(&slot);
        let other = slots.first().copied();
        if other.is_none() {
            self.by_outer.remove(&outer);
        }
        other
    }

    /// Nobody uses `slot`.
    pub(super) fn release(&mut self, slot: u32) {
        self.free.insert(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_reused_lowest_first_and_addresses_counted() {
        let (a, b) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let mut slots = Slots::new(4, [(0, a), (2, a)]);
        assert_eq!(slots.lowest(), Some(1));
        slots.take(1, b);
        assert_eq!(slots.lowest(), Some(3));
        // One subnet of a host with two goes: its address stays, with the other's slot.
        assert_eq!(slots.leave(0, a), Some(2));
        slots.release(0);
        assert_eq!(slots.lowest(), Some(0));
        assert_eq!(slots.leave(2, a), None);
        assert_eq!(slots.leave(2, a), None);
        slots.release(2);
        slots.take(0, b);
        slots.take(2, b);
        slots.take(3, b);
        assert_eq!(slots.lowest(), None);
    }
}
