//! overlay0 as the kernel's own VXLAN device, which encapsulates and decapsulates. The fast path must deliver nothing that this
//! device would not deliver.
use aya_ebpf::bindings::TC_ACT_UNSPEC;
use overlay_common::{
    PeerEntry, Reason, SETTING_DIRECT, SETTING_OUTER_DF,
    header::ethernet,
    wire::{ETHERNET, OUTER_TTL},
};

use super::both::{leave_by, may_send, receive_unencapsulated};
use crate::{
    check, fib,
    frame::Frame as _,
    ip::{Family, Header as _, segment_length},
    packet::{Packet, Received},
    settings::{self, Prefixes as _},
    tunnel,
    verdict::{Answer, Outcome},
};

/// How many outer source ports the connections of the stack's tier share. The connection tracking of both hosts knows the tunnel's
/// own packets by their ports. With a port for each connection, each would cost two hosts an entry per direction, which takes
/// longer to make and to check by the rules for new connections than the device takes to encapsulate. So many ports still spread
/// over a receiver's queues, and over paths.
const SOURCE_PORTS: u32 = 256;

/// Tells the device to which peer the packet goes. Route, path MTU, fragments and source port are the kernel's.
#[inline(always)]
pub(super) fn send<F: Family>(
    packet: &Packet<'_>,
    header: &F::Header,
    peer: &PeerEntry<F::Address>,
) -> Answer<Outcome> {
    if settings::has(SETTING_DIRECT)
        && let Some(next_hop) =
            fib::on_link(packet, peer, tunnel::source_port_of::<F>(packet, ETHERNET, header))
    {
        // The packet has a link header, the device's own, and the stack has taken one from its TTL.
        return leave_by(packet, &next_hop);
    }
    let dont_fragment = F::ROUTERS_FRAGMENT && settings::has(SETTING_OUTER_DF) && fits::<F>(packet, peer);
    let is_unchecked = tunnel::takes_zero_checksum::<F>(peer.flags);
    packet.set_tunnel(peer.outer, OUTER_TTL, dont_fragment, is_unchecked)?;
    packet.set_hash(spread(packet.hash()));
    packet.store(ethernet::offset::DESTINATION, &peer.vtep_mac)?;
    Ok(Outcome::Carried(TC_ACT_UNSPEC))
}

/// A hash of the same connection that has few values, [`SOURCE_PORTS`]. They differ in the upper bits, which decide about the
/// outer source port: the kernel folds the lower half into the upper (`hash ^= hash << 16`), and scales the result down into the
/// range of ports (`udp_flow_src_port`). The hash is never zero, which would mean that there is none.
#[inline(always)]
const fn spread(hash: u32) -> u32 {
    hash << (u32::BITS - SOURCE_PORTS.trailing_zeros()) | 1
}

/// Whether the path takes the packet whole, as far as is known. What is larger must not have DF, even if the network's outer
/// packets have: the kernel would drop it here, and tell nobody but itself.
#[inline(always)]
fn fits<F: Family>(packet: &Packet<'_>, peer: &PeerEntry<F::Address>) -> bool {
    let Ok(ip) = F::Header::checked(packet, ETHERNET) else { return false };
    let length = segment_length::<F>(packet, ETHERNET, &ip);
    let source_port = tunnel::source_port_of::<F>(packet, ETHERNET, &ip);
    fib::path::<F>(packet, peer, source_port, length).is_ok()
}

/// Checks what the device has decapsulated.
#[inline(always)]
pub(super) fn receive<F: Family>(packet: &Packet<'_>) -> Answer<Outcome> {
    let (vni, outer) = match packet.tunnel::<F::Address>() {
        Received::Tunnelled { vni, outer } => (vni, outer),
        // A tunnel of one family carries no packets of the other. Nor were they handed over.
        Received::OtherFamily => return Err(F::OTHER_OUTSIDE.into()),
        // What the tunnel has received always has a key; what has none was handed over by overlay_decap.
        Received::Plain => return receive_unencapsulated::<F>(packet, ETHERNET),
    };
    if vni != settings::vni() {
        return Err(Reason::ForeignVni.into());
    }
    check::known(outer)?;
    // A VLAN tag has been taken off the bytes already, and is the frame's still.
    if !packet.carries(F::ETHERTYPE) {
        return Err(F::OTHER_INSIDE.into());
    }
    if !packet.pull(ETHERNET + F::HEADER) {
        return Err(Reason::Malformed.into());
    }
    let destination: [u8; 6] = packet.read(ethernet::offset::DESTINATION).ok_or(Reason::Malformed)?;
    let header = F::Header::read(packet, ETHERNET).ok_or(Reason::Malformed)?;
    may_send(outer, header.source())?;
    if destination != settings::vtep_mac() {
        return Err(Reason::WrongVtepMac.into());
    }
    if !header.destination().in_subnet() {
        return Err(Reason::NotOurSubnet.into());
    }
    Ok(Outcome::Carried(TC_ACT_UNSPEC))
}

/// Addresses a frame to the device's own MAC address, so that the device takes it.
#[inline(always)]
pub(super) fn address(packet: &Packet<'_>) -> Result<(), Reason> {
    packet.store(ethernet::offset::DESTINATION, &settings::vtep_mac())?;
    packet.accept();
    Ok(())
}
