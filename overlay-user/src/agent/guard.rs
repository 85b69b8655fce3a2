//! The mass-delete guard: a store that suddenly forgets most hosts is more likely broken than right. This module is pure: it
//! calls neither kernel nor store.
use std::{
    collections::{BTreeMap, BTreeSet},
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    held: BTreeSet<IpNet>,
    /// The subnets whose removal was let through not long ago and whose peers are not back, and when that was.
    let_through: BTreeMap<IpNet, Instant>,
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
    /// Begins with what an earlier agent held back and let through, so that a restart lets nothing more through.
    pub fn restored(held: BTreeSet<IpNet>, let_through: BTreeMap<IpNet, Instant>) -> Self {
        Self { held, let_through }
    }

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
        self.let_through.retain(|_, when| now.saturating_duration_since(*when) < WINDOW);
        // A removal that failed is asked for again. It counts once.
        let recent = self.let_through.keys().filter(|subnet| !fresh.contains(subnet)).count();
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
            self.let_through.extend(fresh.iter().map(|subnet| (*subnet, now)));
            Decision { remove: fresh, held: Vec::new(), why: None }
        }
    }

    /// Forgets a removal, held back or let through, because its peer is back: a host that comes and goes has not died as often.
    pub fn forget(&mut self, subnet: &IpNet) {
        self.held.remove(subnet);
        self.let_through.remove(subnet);
    }

    /// Forgets the removals of all peers that are back (`is_leased`), and the held ones of peers that somebody else has removed
    /// from the data path.
    pub fn retain(&mut self, is_installed: impl Fn(&IpNet) -> bool, is_leased: impl Fn(&IpNet) -> bool) {
        self.held.retain(|subnet| is_installed(subnet) && !is_leased(subnet));
        self.let_through.retain(|subnet, _| !is_leased(subnet));
    }

    /// Takes the deletion of a single key as confirmation of the removal that was held back for it. Returns the subnet that is
    /// to be removed now.
    pub fn confirm(&mut self, key: &str) -> Option<IpNet> {
        self.held.take(&lease::subnets_of(key).ok()?.subnet)
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

    /// The removals that were let through not long ago, and when.
    pub fn let_through(&self) -> &BTreeMap<IpNet, Instant> {
        &self.let_through
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
    fn a_restart_lets_nothing_more_through() {
        let start = Instant::now();
        let mut guard = Guard::default();
        for n in 0..20_u8 {
            guard.decide(&subnets(n..n + 1), usize::from(30 - n.min(15)), false, start);
        }
        assert_eq!((held(&guard), guard.let_through().len()), (5, 15));
        // The next agent is asked for the five that were held, and for one more.
        let mut next = Guard::restored(guard.held().clone(), guard.let_through().clone());
        assert_eq!(next, guard);
        let verdict = next.decide(&subnets(15..21), 15, false, start);
        assert_eq!((verdict.held, verdict.why), (subnets(20..21), Some(Suspicion::TooManyInTime)));
        // Without that memory, it would believe both.
        assert_eq!(Guard::default().decide(&subnets(15..21), 15, false, start).why, None);
    }

    #[test]
    fn a_peer_that_comes_back_is_not_gone() {
        let now = Instant::now();
        // Hosts that lose and get their leases, again and again, are never more than one at a time.
        let mut guard = Guard::default();
        for n in (0..10).cycle().take(100) {
            assert_eq!(guard.decide(&subnets(n..n + 1), 10, false, now).why, None, "{n}");
            guard.forget(&subnets(n..n + 1)[0]);
        }
        // All leases were read, and say that the peers are back, or some of them.
        guard.decide(&subnets(0..5), 10, false, now);
        guard.retain(|_| false, |subnet| subnets(0..3).contains(subnet));
        assert_eq!(guard.let_through().keys().copied().collect::<Vec<_>>(), subnets(3..5));
        // A removal that failed and is asked for again counts once.
        for _ in 0..20 {
            assert_eq!(guard.decide(&subnets(3..5), 10, false, now).why, None);
        }
        // Nor is a removal held whose peer is back, or gone by another hand.
        let mut guard = Guard::default();
        guard.decide(&subnets(0..5), 5, false, now);
        guard.retain(|subnet| *subnet != subnets(0..1)[0], |subnet| *subnet == subnets(1..2)[0]);
        assert_eq!(guard.held().iter().copied().collect::<Vec<_>>(), subnets(2..5));
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
