//! The mass-delete guard: a store that suddenly forgets most hosts is more likely broken than right. This module is pure: it
//! calls neither kernel nor store.
use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use ipnet::IpNet;
use tokio::time::Instant;

use crate::model::lease;

/// Fewer removals at once than this are never held back.
pub const LEAST: usize = 4;

/// Removals are also judged together with those that were let through in so long a time before. Hosts that are cut off from the
/// store together lose their leases within minutes, each by itself: they renewed them within minutes.
pub const WINDOW: Duration = Duration::from_secs(600);
/// Fewer removals than this in such a time are never held back for being too many together. It is more than [`LEAST`], because an
/// operator may well take a few hosts out of a small network one after the other.
pub const LEAST_IN_WINDOW: usize = 8;

/// Removals that were held back, and the rule for new ones.
#[derive(Debug, Default)]
pub struct Guard {
    held: BTreeSet<IpNet>,
    /// How many removals were let through, and when.
    let_through: VecDeque<(Instant, usize)>,
}

/// Why removals are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// More than half of the peers would go at once, and at least four.
    TooMany,
    /// More than half of the peers would be gone within [`WINDOW`], and at least [`LEAST_IN_WINDOW`].
    TooManyInTime,
    /// Another cluster answers, or the same one without its history. Peers that it does not know may still be alive.
    OtherHistory,
}

/// What the guard says about the removals of one snapshot or one revision.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The removals that are to be carried out.
    pub remove: Vec<IpNet>,
    /// The removals that are held back from now on. Those that were held before are not repeated here.
    pub held: Vec<IpNet>,
    /// Why removals are held back, if any are.
    pub why: Option<Suspicion>,
}

impl Guard {
    /// Decides on the removals that one snapshot or one revision asks for. `installed` counts the peers in force before it. A
    /// subnet that is held already stays held, because being asked for again proves nothing new.
    pub fn decide(
        &mut self,
        removals: &[IpNet],
        installed: usize,
        other_history: bool,
        now: Instant,
    ) -> Decision {
        let fresh: Vec<IpNet> =
            removals.iter().copied().filter(|subnet| !self.held.contains(subnet)).collect();
        // Peers that are held back are dead according to the store, so they must not count among the living, of which more than
        // half would have to go.
        let living = installed.saturating_sub(self.held.len());
        let recent = self.recent(now);
        let together = recent + fresh.len();
        let why = if fresh.is_empty() {
            None
        } else if other_history {
            Some(Suspicion::OtherHistory)
        } else if fresh.len() >= LEAST && fresh.len() * 2 > living {
            Some(Suspicion::TooMany)
        } else if together >= LEAST_IN_WINDOW && together * 2 > living + recent {
            Some(Suspicion::TooManyInTime)
        } else {
            None
        };
        if why.is_some() {
            self.held.extend(&fresh);
            Decision { held: fresh, why, remove: Vec::new() }
        } else {
            if !fresh.is_empty() {
                self.let_through.push_back((now, fresh.len()));
            }
            Decision { remove: fresh, held: Vec::new(), why: None }
        }
    }

    /// How many removals were let through not long ago.
    fn recent(&mut self, now: Instant) -> usize {
        let old = |(when, _): &(Instant, usize)| now.saturating_duration_since(*when) >= WINDOW;
        while self.let_through.front().is_some_and(old) {
            self.let_through.pop_front();
        }
        self.let_through.iter().map(|(_, count)| count).sum()
    }

    /// Forgets a held removal, because its peer is back, or because somebody else has removed the peer from the data path.
    pub fn forget(&mut self, subnet: &IpNet) {
        self.held.remove(subnet);
    }

    /// Keeps only those held removals for which `still` returns true.
    pub fn retain(&mut self, still: impl FnMut(&IpNet) -> bool) {
        self.held.retain(still);
    }

    /// Takes the deletion of a single key as confirmation of the removal that was held back for it. Returns the subnet that is
    /// to be removed now.
    pub fn confirm(&mut self, key: &str) -> Option<IpNet> {
        let subnet = *self.held.iter().find(|subnet| lease::key_of(**subnet) == key)?;
        self.held.take(&subnet)
    }

    /// Lets all held removals go, because the operator accepts them. Returns the subnets that are to be removed now.
    pub fn accept(&mut self) -> BTreeSet<IpNet> {
        self.let_through.clear();
        std::mem::take(&mut self.held)
    }

    /// The removals that are held back.
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
            let verdict = guard.decide(&removals, installed, false, Instant::now());
            assert_eq!(verdict.why.is_some(), is_held, "{removed} of {installed}");
            assert_eq!(if is_held { &verdict.held } else { &verdict.remove }, &removals);
            assert_eq!(held(&guard), if is_held { removals.len() } else { 0 });
        }
    }

    #[test]
    fn another_history_holds_even_one() {
        let mut guard = Guard::default();
        assert_eq!(
            guard.decide(&subnets(0..1), 100, true, Instant::now()).why,
            Some(Suspicion::OtherHistory)
        );
        assert_eq!(guard.decide(&[], 100, true, Instant::now()).why, None);
    }

    #[test]
    fn held_ones_stay_held_and_do_not_count_as_living() {
        let mut guard = Guard::default();
        assert_eq!(guard.decide(&subnets(0..6), 10, false, Instant::now()).held.len(), 6);
        // The next audit asks for the held removals again, together with a new one. Only the new one is carried out.
        let again = guard.decide(&subnets(0..7), 10, false, Instant::now());
        assert_eq!((again.remove, again.why), (subnets(6..7), None));
        // The remaining four living peers would all go at once. They are held, although four are not half of ten.
        assert_eq!(guard.decide(&subnets(6..10), 10, false, Instant::now()).held.len(), 4);
        assert_eq!(held(&guard), 10);
    }

    #[test]
    fn released_one_by_one_or_all() {
        let mut guard = Guard::default();
        guard.decide(&subnets(0..5), 5, false, Instant::now());
        assert_eq!(guard.confirm("10.244.3.0-24"), Some(subnets(3..4)[0]));
        assert_eq!(guard.confirm("10.244.3.0-24"), None);
        guard.forget(&subnets(4..5)[0]);
        assert_eq!(held(&guard), 3);
        assert_eq!(guard.accept().len(), 3);
        assert_eq!(held(&guard), 0);
    }

    #[test]
    fn what_goes_one_by_one_is_judged_together() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        // 20 of 30 peers lose their leases, one every three seconds. The first half goes.
        let mut guard = Guard::default();
        let mut installed = 30;
        for n in 0..20 {
            let verdict = guard.decide(&subnets(n..n + 1), installed, false, at(u64::from(n) * 3));
            assert_eq!(verdict.why, (n >= 15).then_some(Suspicion::TooManyInTime), "{n}");
            installed -= verdict.remove.len();
        }
        assert_eq!((installed, held(&guard)), (15, 5));
        // What the operator lets go does not count against what goes later.
        assert_eq!(guard.accept().len(), 5);
        assert_eq!(guard.decide(&subnets(20..21), 10, false, at(61)).why, None);
    }

    #[test]
    fn what_goes_slowly_or_is_little_goes() {
        let start = Instant::now();
        // Every two minutes one of ten, so that never more than five of them go within the window.
        let mut guard = Guard::default();
        for n in 0..10_u8 {
            let when = start + WINDOW / 5 * u32::from(n);
            assert_eq!(guard.decide(&subnets(n..n + 1), usize::from(10 - n), false, when).why, None, "{n}");
        }
        // All but the last of a few at once.
        let mut guard = Guard::default();
        for n in 0..7 {
            assert_eq!(
                guard.decide(&subnets(n..n + 1), usize::from(8_u8 - n), false, start).why,
                None,
                "{n}"
            );
        }
        assert_eq!(guard.decide(&subnets(7..8), 1, false, start).why, Some(Suspicion::TooManyInTime));
    }
}
