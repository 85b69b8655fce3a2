//! The programs at overlay0, which what the fast path leaves to the stack passes. Each kind of overlay0 has a file beside this
//! one; this file has what both need.
mod tun;
mod vxlan_device;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use overlay_common::{Hook, Reason, SETTING_DIRECT, wire::ETHERNET};

use crate::{
    check,
    fib::NextHop,
    flow,
    frame::Frame as _,
    ip::{Family, Header as _},
    kernel::KernelAddress,
    maps::Lookups,
    packet::Packet,
    settings::{self, Prefixes},
    tunnel::{self, Format},
    verdict::{Answer, Exit, Outcome},
};

/// Bytes in front of the IP header at overlay0: a TUN has no link header.
#[inline(always)]
pub(crate) fn link_header() -> usize {
    match tunnel::format() {
        Format::Vxlan => ETHERNET,
        Format::Datagram => 0,
    }
}

/// Bytes of outer headers that a packet arrives at overlay0 with.
#[inline(always)]
pub(crate) fn outer_length<F: Family>(packet: &Packet<'_>) -> usize {
    match tunnel::format() {
        // The kernel's device has taken them off.
        Format::Vxlan => 0,
        Format::Datagram => tun::outer_length::<F>(packet),
    }
}

/// overlay0's egress: finds the peer and the path, and records the connection as a stack flow.
#[inline(always)]
pub(crate) fn send<F: Family>(packet: &Packet<'_>) -> Answer<Outcome> {
    let at = link_header();
    if !packet.carries(F::ETHERTYPE) || !packet.pull(at + F::HEADER) {
        // Without a tunnel key a VXLAN device drops it and counts that; at a TUN the agent throws it away.
        return Err(Exit::NotOurs);
    }
    let header = F::Header::read(packet, at).ok_or(Exit::NotOurs)?;
    if header.source().is_another_hosts() {
        return Err(Reason::SourceNotOurs.into());
    }
    // No peer is ever in the own subnet: what the route to Network catches when the bridge is gone ends here.
    let peer = header.destination().peer().ok_or(Reason::NoPeer)?;
    // Only what could also take the fast path is recorded: containers' connections, but not those of the host, whose
    // addresses are never an endpoint's. A packet with options is sent, but not recorded: it never takes the fast path.
    if header.source().is_container()
        && let Ok(ip) = F::Header::checked(packet, at)
    {
        flow::record::<F>(packet, Hook::Send, at, &ip);
    }
    match tunnel::format() {
        Format::Vxlan => vxlan_device::send::<F>(packet, &peer),
        Format::Datagram => tun::send::<F>(packet, &header, &peer),
    }
}

/// overlay0's ingress: what the underlay device's programs left to the stack (fragments, frames from other devices, stack
/// flows), under the same checks. No frame enters the stack unchecked.
#[inline(always)]
pub(crate) fn receive<F: Family>(packet: &Packet<'_>) -> Answer<Outcome> {
    match tunnel::format() {
        Format::Vxlan => vxlan_device::receive::<F>(packet),
        Format::Datagram => tun::receive::<F>(packet),
    }
}

/// Verdict that has a frame of the underlay device arrive at overlay0.
#[inline(always)]
pub(crate) fn hand_over(packet: &Packet<'_>) -> Result<i32, Reason> {
    if matches!(tunnel::format(), Format::Vxlan) {
        vxlan_device::address(packet)?;
    }
    Ok(Packet::redirect_to_ingress(settings::device()))
}

/// Sends a packet that the stack has forwarded to its next hop, past the device that the stack's route leads to.
#[inline(always)]
fn leave_by(packet: &Packet<'_>, next_hop: &NextHop<impl KernelAddress>) -> Answer<Outcome> {
    packet.forget_route()?;
    Ok(Outcome::Carried(Packet::redirect_neighbour(next_hop.ifindex, next_hop.address)))
}

/// A packet that came without encapsulation, its IP header at `offset`, and was handed over by `overlay_decap`.
#[inline(always)]
fn receive_unencapsulated<F: Family>(packet: &Packet<'_>, offset: usize) -> Answer<Outcome> {
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
fn may_send<A: Lookups + Prefixes>(outer: A, source: A) -> Result<(), Reason> {
    match check::peer(outer, source) {
        Ok(_) | Err(Reason::ForeignSource) => Ok(()),
        Err(reason) => Err(reason),
    }
}
