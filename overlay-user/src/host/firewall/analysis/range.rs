//! Ranges of addresses and ports, and the answers to questions about them.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Whether a condition holds for the packets of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holds {
    /// For none of them.
    Never,
    /// For some of them, or nobody can tell.
    Maybe,
    /// For all of them.
    Always,
}

impl Holds {
    /// Whether the opposite holds.
    pub(super) const fn negated(self, is_negated: bool) -> Self {
        match self {
            Self::Never if is_negated => Self::Always,
            Self::Always if is_negated => Self::Never,
            other => other,
        }
    }

    pub(super) const fn certain(does_hold: bool) -> Self {
        if does_hold { Self::Always } else { Self::Never }
    }
}

/// Addresses or ports from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range<T> {
    /// The first.
    pub first: T,
    /// The last, which belongs to the range.
    pub last: T,
}

impl<T: Ord + Copy> Range<T> {
    /// A single one.
    pub(super) const fn one(value: T) -> Self {
        Self { first: value, last: value }
    }

    /// Whether something in `self` is in one of `ranges`. A range that several others cover together is taken for one that is
    /// covered in part.
    pub(super) fn is_in(self, ranges: &[Self]) -> Holds {
        if ranges.iter().any(|range| range.first <= self.first && self.last <= range.last) {
            return Holds::Always;
        }
        let touches = ranges.iter().any(|range| range.first <= self.last && self.first <= range.last);
        if touches { Holds::Maybe } else { Holds::Never }
    }
}

impl From<IpNet> for Range<IpAddr> {
    fn from(net: IpNet) -> Self {
        Self { first: net.network(), last: net.broadcast() }
    }
}

impl Range<IpAddr> {
    /// What is left of it without `hole`: up to two ranges.
    pub(super) fn without(self, hole: Self) -> Vec<Self> {
        if hole.last < self.first || self.last < hole.first {
            return vec![self];
        }
        let before = neighbour(hole.first, false).filter(|last| self.first <= *last);
        let after = neighbour(hole.last, true).filter(|first| *first <= self.last);
        let before = before.map(|last| Self { first: self.first, last });
        before.into_iter().chain(after.map(|first| Self { first, last: self.last })).collect()
    }
}

/// The address that follows, or goes before. `None` at the family's end.
fn neighbour(address: IpAddr, is_next: bool) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let bits = u32::from(address);
            let bits = if is_next { bits.checked_add(1) } else { bits.checked_sub(1) };
            bits.map(|bits| Ipv4Addr::from(bits).into())
        }
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            let bits = if is_next { bits.checked_add(1) } else { bits.checked_sub(1) };
            bits.map(|bits| Ipv6Addr::from(bits).into())
        }
    }
}
