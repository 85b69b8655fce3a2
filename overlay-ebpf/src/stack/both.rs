//! What both kinds of overlay0 need: checks of what arrives, and the path of what leaves.
use aya_ebpf::bindings::TC_ACT_UNSPEC;
use overlay_common::{Reason, SETTING_DIRECT};

use crate::{
    check,
    fib::NextHop,
    frame::Frame as _,
    ip::{Family, Header as _},
    kernel::KernelAddress,
    maps::Lookups,
    packet::Packet,
    settings::{self, Prefixes},
    verdict::{Answer, Exit, Outcome},
};

/// Sends a packet that the stack has forwarded to its next hop, past the device that the stack's route leads to.
#[inline(always)]
pub(super) fn leave_by(packet: &Packet<'_>, next_hop: &NextHop<impl KernelAddress>) -> Answer<Outcome> {
    packet.forget_route()?;
    Ok(Outcome::Carried(Packet::redirect_neighbour(next_hop.ifindex, next_hop.address)))
}

/// A packet that came without encapsulation, its IP header at `offset`, and was handed over by `overlay_decap`.
#[inline(always)]
pub(super) fn receive_unencapsulated<F: Family>(packet: &Packet<'_>, offset: usize) -> Answer<Outcome> {
    if !settings::has(SETTING_DIRECT) || !packet.carries(F::ETHERTYPE) || !packet.pull(offset + F::HEADER) {
        return Err(Reason::UnknownPeer.into());
    }
    let header = F::Header::read(packet, offset).ok_or(Reason::Malformed)?;
    check::unencapsulated(header.source()).map_err(|exit| match exit {
        // Nothing with a source outside Network is handed over.
        Exit::NotOurs => Reason::UnknownPeer,
        Exit::Because(reason) => reason,
    })?;
    if !header.destination().in_subnet() {
        return Err(Reason::NotOurSubnet.into());
    }
    Ok(Outcome::Carried(TC_ACT_UNSPEC))
}

/// Whether the peer at this underlay address may send a packet with this source into the stack.
#[inline(always)]
pub(super) fn may_send<A: Lookups>(outer: A, source: A) -> Result<(), Reason> {
    match check::peer(outer, source) {
        Ok(_) | Err(Reason::ForeignSource) => Ok(()),
        Err(reason) => Err(reason),
    }
}
