//! What goes through the kernel's own tunnel device: the slow tier, and the oracle of the fast one.
use aya_ebpf::bindings::TC_ACT_UNSPEC;
use overlay_common::{
    Addr4, Hook, Reason,
    wire::{ETHERNET, IPV4, OUTER_TTL},
};

use crate::{check, flow, frame::Frame as _, maps, packet::Packet, programs::Outcome, settings};

/// overlay0's egress: says which peer, and notes the connection. Route, path MTU, fragments and source port are the kernel's.
#[inline(always)]
pub(crate) fn send(packet: &Packet<'_>) -> Result<Outcome, Reason> {
    if !packet.is_ipv4() || !packet.pull(ETHERNET + IPV4) {
        // Without a tunnel key the device drops it and counts that.
        return Ok(Outcome::NotOurs);
    }
    let Some(addresses) = packet.read::<[u8; 8]>(ETHERNET + 12) else {
        return Ok(Outcome::NotOurs);
    };
    let [a, b, c, d, e, f, g, h] = addresses;
    let (source, destination) = (Addr4::new([a, b, c, d]), Addr4::new([e, f, g, h]));
    if settings::in_network(source) && !settings::in_subnet(source) {
        return Err(Reason::SourceNotOurs);
    }
    // No peer is ever in the own subnet: what the route to Network catches when the bridge is gone ends here.
    let peer = maps::peer(settings::subnet_of(destination)).ok_or(Reason::NoPeer)?;
    packet.set_tunnel(Addr4::new(peer.outer), OUTER_TTL)?;
    packet.store(0, &peer.vtep_mac)?;
    // Only what may also go by the fast path needs a note: containers' connections, but not those of the host, whose
    // addresses are never an endpoint's. IPv4 options are no reason to stop here, and have no place in the fast path.
    if settings::is_container(source)
        && let Ok(ip) = packet.ipv4(ETHERNET)
    {
        flow::note(packet, Hook::Send, ETHERNET, &ip);
    }
    Ok(Outcome::Carried(TC_ACT_UNSPEC))
}

/// overlay0's ingress: what tier 2 left to the kernel (fragments, other devices, connections of the stack) under the
/// same checks. No frame enters the stack unchecked.
#[inline(always)]
pub(crate) fn receive(packet: &Packet<'_>) -> Result<Outcome, Reason> {
    let (vni, outer) = packet.tunnel().ok_or(Reason::UnknownPeer)?;
    if vni != settings::vni() {
        return Err(Reason::ForeignVni);
    }
    check::known(outer)?;
    // A VLAN tag has been taken off the bytes already, and is the frame's still.
    if !packet.is_ipv4() {
        return Err(Reason::NotIpv4);
    }
    if !packet.pull(ETHERNET + IPV4) {
        return Err(Reason::Malformed);
    }
    let ethernet: [u8; ETHERNET] = packet.read(0).ok_or(Reason::Malformed)?;
    let Some(addresses) = packet.read::<[u8; 8]>(ETHERNET + 12) else {
        return Err(Reason::Malformed);
    };
    let [a, b, c, d, e, f, g, h] = addresses;
    let (source, destination) = (Addr4::new([a, b, c, d]), Addr4::new([e, f, g, h]));
    match check::peer(outer, source) {
        Ok(_) | Err(Reason::ForeignSource) => {}
        Err(reason) => return Err(reason),
    }
    if ethernet[..6] != settings::vtep_mac() {
        return Err(Reason::WrongVtepMac);
    }
    if !settings::in_subnet(destination) {
        return Err(Reason::NotOurSubnet);
    }
    Ok(Outcome::Carried(TC_ACT_UNSPEC))
}
