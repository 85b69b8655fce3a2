//! The outer IP and UDP headers, which both formats have.
use overlay_common::{
    PeerEntry, SETTING_OUTER_DF,
    wire::{ETHERNET, Outer},
};

use crate::{
    helpers,
    ip::{Family, Header as _},
    settings::{self, Prefixes as _},
};

/// What the outer IP and UDP headers say, in either format. `between` bytes stand between them and the packet.
#[inline(always)]
pub(super) fn outer<F: Family>(
    inner: &F::Header,
    peer: &PeerEntry<F::Address>,
    source_port: u16,
    between: usize,
) -> Outer<F::Address> {
    Outer {
        source: F::Address::local(),
        destination: peer.outer,
        // RFC 6040 section 4.1, normal mode: the outer ECN field is a copy of the inner one.
        tos: inner.tos() & 0x03,
        identification: helpers::random() as u16,
        dont_fragment: settings::has(SETTING_OUTER_DF),
        source_port,
        port: settings::port(),
        payload: u32::from(inner.length()) + between as u32,
    }
}

/// The outer Ethernet header with these addresses.
#[inline(always)]
pub(super) fn ethernet<F: Family>([a, b, c, d, e, f]: [u16; 6]) -> [u16; ETHERNET / 2] {
    [a, b, c, d, e, f, u16::from_ne_bytes(F::ETHERTYPE)]
}
