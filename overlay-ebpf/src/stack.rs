//! overlay0, the way of what the fast path leaves to the stack. Its two kinds are the files beside this one; here is what they
//! have in common.
mod tun;
mod vxlan_device;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use overlay_common::{
    Addr4, Hook, Reason, SETTING_DIRECT,
    wire::{ETHERNET, ETHERTYPE_IPV4, IPV4},
};

use crate::{
    check,
    fib::NextHop,
    flow,
    frame::Frame as _,
    ipv4::Ipv4,
    maps,
    packet::Packet,
    settings,
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
pub(crate) fn outer_length(packet: &Packet<'_>) -> usize {
    match tunnel::format() {
        // The kernel's device has taken them off.
        Format::Vxlan => 0,
        Format::Datagram => tun::outer_length(packet),
    }
}

/// overlay0's egress: finds the peer and the path, and records the connection as a stack flow.
#[inline(always)]
pub(crate) fn send(packet: &Packet<'_>) -> Answer<Outcome> {
    let at = link_header();
    if !packet.carries(ETHERTYPE_IPV4) || !packet.pull(at + IPV4) {
        // Without a tunnel key a VXLAN device drops it and counts that; at a TUN the agent throws it away.
        return Err(Exit::NotOurs);
    }
    let header = Ipv4::read(packet, at).ok_or(Exit::NotOurs)?;
    if settings::is_another_hosts(header.source()) {
        return Err(Reason::SourceNotOurs.into());
    }
    // No peer is ever in the own subnet: what the route to Network catches when the bridge is gone ends here.
    let peer = maps::peer(header.destination()).ok_or(Reason::NoPeer)?;
    // Only what could also take the fast path is recorded: containers' connections, but not those of the host, whose
    // addresses are never an endpoint's. A packet with IPv4 options is sent, but not recorded: it never takes the fast path.
    if settings::is_container(header.source())
        && let Ok(ip) = Ipv4::checked(packet, at)
    {
        flow::record(packet, Hook::Send, at, &ip);
    }
    match tunnel::format() {
        Format::Vxlan => vxlan_device::send(packet, &peer),
        Format::Datagram => tun::send(packet, &header, &peer),
    }
}

/// overlay0's ingress: what the underlay device's programs left to the stack (fragments, frames from other devices, stack
/// flows), under the same checks. No frame enters the stack unchecked.
#[inline(always)]
pub(crate) fn receive(packet: &Packet<'_>) -> Answer<Outcome> {
    match tunnel::format() {
        Format::Vxlan => vxlan_device::receive(packet),
        Format::Datagram => tun::receive(packet),
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
fn leave_by(packet: &Packet<'_>, next_hop: &NextHop) -> Answer<Outcome> {
    packet.forget_route()?;
    Ok(Outcome::Carried(Packet::redirect_neighbour(next_hop.ifindex, next_hop.address)))
}

/// A packet that came without encapsulation, its IP header at `offset`, and was handed over by `overlay_decap`.
#[inline(always)]
fn receive_unencapsulated(packet: &Packet<'_>, offset: usize) -> Answer<Outcome> {
    if !settings::has(SETTING_DIRECT) || !packet.carries(ETHERTYPE_IPV4) || !packet.pull(offset + IPV4) {
        return Err(Reason::UnknownPeer.into());
    }
    let header = Ipv4::read(packet, offset).ok_or(Reason::Malformed)?;
    check::unencapsulated(header.source()).map_err(|exit| match exit {
        // Nothing with a source outside Network is handed over.
        Exit::NotOurs => Reason::UnknownPeer,
        Exit::Because(reason) => reason,
    })?;
    if !settings::in_subnet(header.destination()) {
        return Err(Reason::NotOurSubnet.into());
    }
    Ok(Outcome::Carried(TC_ACT_UNSPEC))
}

/// Whether the peer at this underlay address may send a packet with this source into the stack.
#[inline(always)]
fn may_send(outer: Addr4, source: Addr4) -> Result<(), Reason> {
    match check::peer(outer, source) {
        Ok(_) | Err(Reason::ForeignSource) => Ok(()),
        Err(reason) => Err(reason),
    }
}
