//! The mass-delete guard: a store that suddenly forgets most hosts is more likely broken than right. Pure.
use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::model::lease;

/// Fewer removals at once than this are never held back.
pub const LEAST: usize = 4;

/// Removals that were held back, and the rule for new ones.
#[derive(Debug, Default)]
pub struct Guard {
    held: BTreeSet<IpNet>,
}

/// Why removals are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// More than half of the peers at once, and at least four.
    TooMany,
    /// Another cluster answers, or the same one with its history gone: what it does not know may still be alive.
    OtherHistory,
}

/// What the guard says about the removals of one snapshot or one revision.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// To be carried out.
    pub remove: Vec<IpNet>,
    /// Held back from now on; those held before are not repeated.
    pub held: Vec<IpNet>,
    /// Why, if any are held back.
    pub why: Option<Suspicion>,
}

impl Guard {
    /// Judges removals that one snapshot or one revision asks for. `installed` counts the peers in force before it.
    /// A subnet that is held already stays held: being asked for again proves nothing new.
    pub fn judge(&mut self, removals: &[IpNet], installed: usize, other_history: bool) -> Decision {
        let fresh: Vec<IpNet> =
            removals.iter().copied().filter(|subnet| !self.held.contains(subnet)).collect();
        // Peers held back are dead as far as the store goes: they must not outweigh the living.
        let living = installed.saturating_sub(self.held.len());
        let why = if fresh.is_empty() {
            None
        } else if other_history {
            Some(Suspicion::OtherHistory)
        } else if fresh.len() >= LEAST && fresh.len() * 2 > living {
            Some(Suspicion::TooMany)
        } else {
            None
        };
        if why.is_some() {
            self.held.extend(&fresh);
            Decision { held: fresh, why, remove: Vec::new() }
        } else {
            Decision { remove: fresh, held: Vec::new(), why: None }
        }
    }

    /// Forgets a held removal: its peer is back, or is gone from the data path by another hand.
    pub fn forget(&mut self, subnet: &IpNet) {
        self.held.remove(subnet);
    }

    /// Keeps only the held removals that still make sense.
    pub fn retain(&mut self, still: impl FnMut(&IpNet) -> bool) {
        self.held.retain(still);
    }

    /// A single deletion of a key confirms what was held back of it; returns what is to be removed now.
    pub fn confirm(&mut self, key: &str) -> Option<IpNet> {
        let subnet = *self.held.iter().find(|subnet| lease::key_of(**subnet) == key)?;
        self.held.take(&subnet)
    }

    /// The operator accepts all: returns what is to be removed now.
    pub fn accept(&mut self) -> BTreeSet<IpNet> {
        std::mem::take(&mut self.held)
    }

    /// What is held back.
    pub fn held(&self) -> &BTreeSet<IpNet> {
        &self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnets(range: std::ops::Range<u8>) -> Vec<IpNet> {
        range.map(|n| format!("10.244.{n}.0/24").parse().unwrap()).collect()
    }

    fn held(guard: &Guard) -> usize {
        guard.held().len()
    }

    #[test]
    fn more_than_half_and_at_least_four() {
        for (removed, installed, is_held) in [
            (3, 3, false),
            (4, 4, true),
            (4, 7, true),
            (4, 8, false),
            (5, 9, true),
            (5, 10, false),
            (1, 1, false),
        ] {
            let mut guard = Guard::default();
            let removals = subnets(0..removed);
            let verdict = guard.judge(&removals, installed, false);
            assert_eq!(verdict.why.is_some(), is_held, "{removed} of {installed}");
            assert_eq!(if is_held { &verdict.held } else { &verdict.remove }, &removals);
            assert_eq!(held(&guard), if is_held { removals.len() } else { 0 });
        }
    }

    #[test]
    fn another_history_holds_even_one() {
        let mut guard = Guard::default();
        assert_eq!(guard.judge(&subnets(0..1), 100, true).why, Some(Suspicion::OtherHistory));
        assert_eq!(guard.judge(&[], 100, true).why, None);
    }

    #[test]
    fn held_ones_stay_held_and_do_not_count_as_living() {
        let mut guard = Guard::default();
        assert_eq!(guard.judge(&subnets(0..6), 10, false).held.len(), 6);
        // Asked again by the next audit, together with one that is new: only the new one goes.
        let again = guard.judge(&subnets(0..7), 10, false);
        assert_eq!((again.remove, again.why), (subnets(6..7), None));
        // The remaining four living ones, all at once: held, though four are not half of ten.
        assert_eq!(guard.judge(&subnets(6..10), 10, false).held.len(), 4);
        assert_eq!(held(&guard), 10);
    }

    #[test]
    fn released_one_by_one_or_all() {
        let mut guard = Guard::default();
        guard.judge(&subnets(0..5), 5, false);
        assert_eq!(guard.confirm("10.244.3.0-24"), Some(subnets(3..4)[0]));
        assert_eq!(guard.confirm("10.244.3.0-24"), None);
        guard.forget(&subnets(4..5)[0]);
        assert_eq!(held(&guard), 3);
        assert_eq!(guard.accept().len(), 3);
        assert_eq!(held(&guard), 0);
    }
}
