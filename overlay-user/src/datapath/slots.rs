//! The slot and the underlay address of each peer, as the agent wrote them, so that a change of a peer needs neither to read
//! the whole table again nor to trust it.
use std::collections::{BTreeMap, BTreeSet};

use overlay_common::Addr4;

/// The counter slots of the peer table.
#[derive(Debug, Default)]
pub(super) struct Slots {
    free: BTreeSet<u32>,
    /// Slot and underlay address by the base address of the peer's subnet.
    by_base: BTreeMap<Addr4, (u32, Addr4)>,
    /// Slots by underlay address. A host that holds several subnets has several slots.
    by_outer: BTreeMap<Addr4, BTreeSet<u32>>,
}

impl Slots {
    /// `capacity` slots, of which `taken` are in use by these subnets and addresses.
    pub(super) fn new(capacity: u32, taken: impl IntoIterator<Item = (Addr4, u32, Addr4)>) -> Self {
        let mut slots = Self { free: (0..capacity).collect(), ..Self::default() };
        for (base, slot, outer) in taken {
            slots.take(slot, outer);
            slots.assign(base, slot, outer);
        }
        slots
    }

    /// Slot and underlay address of the peer with this subnet.
    pub(super) fn of(&self, base: Addr4) -> Option<(u32, Addr4)> {
        self.by_base.get(&base).copied()
    }

    /// Remembers with which slot and underlay address the peer with this subnet is in the table.
    pub(super) fn assign(&mut self, base: Addr4, slot: u32, outer: Addr4) {
        self.by_base.insert(base, (slot, outer));
    }

    /// Forgets the peer with this subnet, which is in the table no longer.
    pub(super) fn forget(&mut self, base: Addr4) {
        self.by_base.remove(&base);
    }

    /// Every underlay address, with one of its slots.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (Addr4, u32)> {
        self.by_outer.iter().filter_map(|(outer, slots)| Some((*outer, *slots.first()?)))
    }

    /// Whether some peer is at this underlay address.
    pub(super) fn knows(&self, outer: Addr4) -> bool {
        self.by_outer.contains_key(&outer)
    }

    /// The lowest free slot.
    pub(super) fn lowest(&self) -> Option<u32> {
        self.free.first().copied()
    }

    /// Remembers that the peer at `outer` uses `slot`.
    pub(super) fn take(&mut self, slot: u32, outer: Addr4) {
        self.free.remove(&slot);
        self.by_outer.entry(outer).or_default().insert(slot);
    }

    /// Remembers that the peer at `outer` no longer uses `slot`. Returns another slot of that address, if it has one.
    pub(super) fn leave(&mut self, slot: u32, outer: Addr4) -> Option<u32> {
        let slots = self.by_outer.get_mut(&outer)?;
        slots.remove(&slot);
        let other = slots.first().copied();
        if other.is_none() {
            self.by_outer.remove(&outer);
        }
        other
    }

    /// Returns `slot` to the free ones. Nobody may use it any more.
    pub(super) fn release(&mut self, slot: u32) {
        self.free.insert(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_reused_lowest_first_and_addresses_counted() {
        let (a, b) = (Addr4::new([10, 0, 0, 1]), Addr4::new([10, 0, 0, 2]));
        let base = |third| Addr4::new([10, 244, third, 0]);
        let mut slots = Slots::new(4, [(base(1), 0, a), (base(2), 2, a)]);
        assert_eq!((slots.of(base(2)), slots.of(base(3))), (Some((2, a)), None));
        assert_eq!(slots.addresses().collect::<Vec<_>>(), [(a, 0)]);
        assert_eq!(slots.lowest(), Some(1));
        slots.take(1, b);
        assert_eq!(slots.lowest(), Some(3));
        // One subnet of a host with two goes. The host's address stays, with the slot of the other subnet.
        assert_eq!(slots.leave(0, a), Some(2));
        slots.release(0);
        assert_eq!(slots.lowest(), Some(0));
        assert!(slots.knows(a));
        assert_eq!(slots.leave(2, a), None);
        assert_eq!(slots.leave(2, a), None);
        assert!(!slots.knows(a));
        slots.release(2);
        slots.take(0, b);
        slots.take(2, b);
        slots.take(3, b);
        assert_eq!(slots.lowest(), None);
    }
}
