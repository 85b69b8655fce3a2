//! What containers announced and the kernel has not confirmed: where and how long it counts, and how often it may change.
use std::{collections::BTreeMap, net::IpAddr};

use crate::model::mac::Mac;

/// A link and an address there.
type Place = (u32, IpAddr);

/// At which [`Announced::age`] after the last repetition an announcement ends. The first may follow at once, so that it counts for
/// three whole periods of the learner's `RETRY` at least.
const LIFETIME: u8 = 4;
/// How often the MAC address at one place may change by announcements alone between two calls of [`Announced::age`]. An address that
/// moves changes once, and is known to the kernel soon after. More often, two containers contend for it, or one plays tricks.
const CHANGES: u8 = 8;

/// The announcements that count.
#[derive(Debug, Default)]
pub(super) struct Announced {
    said: BTreeMap<Place, Said>,
    changes: BTreeMap<Place, u8>,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    mac: Mac,
    age: u8,
}

impl Announced {
    pub(super) fn get(&self, place: Place) -> Option<Mac> {
        self.said.get(&place).map(|said| said.mac)
    }

    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.said.keys().copied()
    }

    /// Takes in an announcement, and returns whether it says something else than what was known: by an earlier one, or else by the
    /// kernel.
    pub(super) fn hear(&mut self, place: Place, mac: Mac, kernel: Option<Mac>) -> bool {
        if self.get(place).or(kernel) == Some(mac) {
            if let Some(said) = self.said.get_mut(&place) {
                said.age = 0;
            }
            return false;
        }
        let changes = self.changes.entry(place).or_default();
        if *changes >= CHANGES {
            return false;
        }
        *changes += 1;
        if kernel == Some(mac) {
            self.said.remove(&place);
        } else {
            self.said.insert(place, Said { mac, age: 0 });
        }
        true
    }

    /// The kernel says something new of this place, whether it confirms the announcement or not.
    pub(super) fn supersede(&mut self, place: Place) {
        self.said.remove(&place);
    }

    pub(super) fn retain(&mut self, is_kept: impl Fn(Place, Mac) -> bool) {
        self.said.retain(|place, said| is_kept(*place, said.mac));
    }

    /// Ends what was not repeated for long. Addresses may change again.
    pub(super) fn age(&mut self) {
        self.changes.clear();
        self.said.retain(|_, said| {
            said.age += 1;
            said.age < LIFETIME
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = (5, IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 2)));
    const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);

    #[test]
    fn what_is_not_repeated_ends() {
        let mut announced = Announced::default();
        assert!(announced.hear(PLACE, B, Some(A)));
        for _ in 1..LIFETIME {
            announced.age();
            assert_eq!(announced.get(PLACE), Some(B));
        }
        assert!(!announced.hear(PLACE, B, Some(A)), "it is known");
        for _ in 1..LIFETIME {
            announced.age();
            assert_eq!(announced.get(PLACE), Some(B));
        }
        announced.age();
        assert_eq!(announced.get(PLACE), None);
    }

    #[test]
    fn what_the_kernel_knows_is_no_news_and_is_not_kept() {
        let mut announced = Announced::default();
        assert!(!announced.hear(PLACE, A, Some(A)));
        assert!(announced.hear(PLACE, B, Some(A)));
        assert!(announced.hear(PLACE, A, Some(A)), "the address moves back");
        assert_eq!((announced.get(PLACE), announced.places().count()), (None, 0));
    }

    #[test]
    fn an_address_changes_only_so_often_by_announcements_alone() {
        let mut announced = Announced::default();
        let mut changed = || (0..100_usize).filter(|n| announced.hear(PLACE, [A, B][n % 2], None)).count();
        assert_eq!(changed(), usize::from(CHANGES));
        assert_eq!(changed(), 0);
        assert!(announced.hear((6, PLACE.1), A, None), "another place is not concerned");
        announced.age();
        assert!(announced.hear(PLACE, A, None));
    }
}
