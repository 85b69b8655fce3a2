//! The programs at overlay0, which what the fast path leaves to the stack passes. Each kind of overlay0 has a file beside this
//! one, and `both.rs` has what both need.
mod both;
mod tun;
mod vxlan_device;

use overlay_common::{Hook, Reason, wire::ETHERNET};

use crate::{
    flow,
    frame::Frame as _,
    ip::{Family, Header as _},
    maps::Lookups as _,
    packet::Packet,
    settings::{self, Prefixes},
    tunnel::{self, Format},
    verdict::{Answer, Exit, Outcome},
};

/// Bytes in front of the IP header at overlay0: a TUN has no link header.
#[inline(always)]
pub(crate) fn link_header<F: Family>() -> usize {
    match tunnel::format::<F>() {
        Format::Vxlan => ETHERNET,
        Format::Datagram => 0,
    }
}

/// Bytes of outer headers that a packet arrives at overlay0 with.
#[inline(always)]
pub(crate) fn outer_length<F: Family>(packet: &Packet<'_>) -> usize {
    match tunnel::format::<F>() {
        // The kernel's device has taken them off.
        Format::Vxlan => 0,
        Format::Datagram => tun::outer_length::<F>(packet),
    }
}

/// overlay0's egress: finds the peer and the path, and records the connection as a stack flow.
#[inline(always)]
pub(crate) fn send<F: Family>(packet: &Packet<'_>) -> Answer<Outcome> {
    let at = link_header::<F>();
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
    match tunnel::format::<F>() {
        Format::Vxlan => vxlan_device::send::<F>(packet, &header, &peer),
        Format::Datagram => tun::send::<F>(packet, &header, &peer),
    }
}

/// overlay0's ingress: what the underlay device's programs left to the stack (fragments, frames from other devices, stack
/// flows), under the same checks. No frame enters the stack unchecked.
#[inline(always)]
pub(crate) fn receive<F: Family>(packet: &Packet<'_>) -> Answer<Outcome> {
    match tunnel::format::<F>() {
        Format::Vxlan => vxlan_device::receive::<F>(packet),
        Format::Datagram => tun::receive::<F>(packet),
    }
}

/// Verdict that has a frame of the underlay device arrive at overlay0.
#[inline(always)]
pub(crate) fn hand_over<F: Family>(packet: &Packet<'_>) -> Result<i32, Reason> {
    if matches!(tunnel::format::<F>(), Format::Vxlan) {
        vxlan_device::address(packet)?;
    }
    Ok(Packet::redirect_to_ingress(settings::device()))
}
