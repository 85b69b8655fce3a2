//! What must become of a frame, concluded from the frame alone. The rules are written from docs/packet-flow.md and the
//! RFCs rather than from the programs, so that the two can disagree.
use overlay_common::Reason;

use crate::{
    datagrams::{Fragments, Packet, four, udp_sum_is_right, word},
    twins::Nic,
    world::{CONTAINER, LOCAL, PEERS, PORT, UNDERLAY_MAC, VNI, VTEP_MAC, in_range, in_subnet, is_hosts},
};

/// What must become of one case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    /// What `overlay_decap` counts, or nothing for frames that are not ours.
    pub(crate) decap: Vec<Reason>,
    /// What `overlay_receive` counts.
    pub(crate) receive: Vec<Reason>,
    /// Where frames end that neither program counts: a counter of the kernel, or the reason why it has none.
    pub(crate) ends: Vec<End>,
    /// What becomes of an inner packet that is for the host itself and passes its UDP once more. `Ok` is what
    /// `overlay_receive` counts for a packet inside of a packet.
    pub(crate) again: Vec<Result<Reason, End>>,
    /// How many outer datagrams were reassembled.
    pub(crate) joined: usize,
    /// What `overlay_receive` counts if the kernel accepts the outer options. A host may do so or not (RFC 1122,
    /// section 3.2.1.8), so either is right.
    pub(crate) open: Vec<Reason>,
    /// Whether the outer UDP checksum is wrong and not zero.
    pub(crate) broken_outer_sum: bool,
}

/// Where the kernel drops what does not reach `overlay_receive`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum End {
    /// The frame is neither IPv4 nor addressed to this host's MAC, so no protocol of ours gets it.
    OtherProtocol,
    /// The IPv4 header is wrong or cut short, or its addresses are unusable.
    Ip,
    /// The fragment waits for the rest of its datagram.
    Fragment,
    /// The packet is IPv4 but not UDP, or UDP to another port, or not to this host.
    OtherService,
    /// The UDP length or checksum is wrong (UDP.InErrors).
    UdpError,
    /// The packet has outer options, whatever the host made of them.
    Options,
    /// The datagram reaches the tunnel's socket, which has no device for it: the I flag is missing, reserved bits are
    /// set, the VNI is unknown, it is too short for its headers, it comes from its own MAC address, or it is marked CE
    /// though it cannot be.
    NoTunnel,
}

impl End {
    /// All of them.
    pub(crate) const ALL: &[Self] = &[
        Self::OtherProtocol,
        Self::Ip,
        Self::Fragment,
        Self::OtherService,
        Self::UdpError,
        Self::Options,
        Self::NoTunnel,
    ];

    /// Its name in reports and rows.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::OtherProtocol => "other-protocol",
            Self::Ip => "ip-error",
            Self::Fragment => "fragment",
            Self::OtherService => "other-service",
            Self::UdpError => "udp-error",
            Self::Options => "outer-options",
            Self::NoTunnel => "no-tunnel",
        }
    }
}

/// What must become of these frames, which arrive one after the other through one device.
pub(crate) fn fate(nic: Nic, frames: &[Vec<u8>]) -> Fate {
    let mut fate = Fate::default();
    let mut fragments = Fragments::default();
    for frame in frames {
        decide(nic, frame, &mut fate, &mut fragments);
    }
    fate
}

fn decide(nic: Nic, frame: &[u8], fate: &mut Fate, fragments: &mut Fragments) {
    // A tag of VLAN 0 gives a priority and no VLAN (IEEE 802.1Q), so the kernel takes it off. At the device such a
    // frame is not ours.
    let tagged = frame.get(12..14) == Some(&[0x81, 0x00]) && frame.len() >= 18;
    let in_vlan = tagged && word(frame, 14) & 0x0fff != 0;
    let body = if tagged { &frame[16..] } else { &frame[12..] };
    // If there is nothing behind the tag, the kernel cannot take it off (skb_vlan_untag).
    let bare = tagged && frame.len() < 20;
    if bare || in_vlan || body.len() < 2 || body[..2] != [0x08, 0x00] || is_another_hosts(frame) {
        fate.ends.push(End::OtherProtocol);
        return;
    }
    let body = &body[2..];
    if nic == Nic::Underlay && is_forged(body) {
        fate.decap.push(Reason::NotEncapsulated);
        return;
    }
    let Some(outer) = Packet::of(body) else {
        fate.ends.push(End::Ip);
        return;
    };
    if nic == Nic::Underlay
        && !tagged
        && frame[..6] == UNDERLAY_MAC
        && let Some((decap, broken)) = at_the_device(&outer, body.len())
    {
        fate.broken_outer_sum |= broken;
        fate.decap.push(decap);
        if decap.verdict() != overlay_common::Verdict::Stack {
            return;
        }
    }
    if let Some(end) = unusable(outer.from(), outer.to()) {
        fate.ends.push(end);
        return;
    }
    let (from, tos) = (outer.from(), outer.bytes[1]);
    if outer.is_fragment() {
        match fragments.add(&outer) {
            Some(whole) => {
                fate.joined += 1;
                match to_overlay0(outer.bytes[9], &whole, from, outer.to(), tos) {
                    Ok(inside) => received(from, inside, fate),
                    Err(end) => fate.ends.push(end),
                }
            }
            None => fate.ends.push(End::Fragment),
        }
        return;
    }
    match to_overlay0(outer.bytes[9], outer.payload(), from, outer.to(), tos) {
        Ok(inside) if outer.header > 20 => fate.open.push(at_overlay0(from, inside)),
        Ok(inside) => received(from, inside, fate),
        Err(_) if outer.header > 20 => fate.ends.push(End::Options),
        Err(end) => fate.ends.push(end),
    }
}

/// What must become of a frame at overlay0. A packet that is carried there and is for the host itself comes to its UDP
/// again.
fn received(outer: [u8; 4], inside: &[u8], fate: &mut Fate) {
    let reason = at_overlay0(outer, inside);
    fate.receive.push(reason);
    let Some(inner) = Packet::of(&inside[14..]).filter(|_| reason == Reason::Carried) else {
        return;
    };
    if unusable(inner.from(), inner.to()).is_some() || inner.header > 20 {
        return;
    }
    let again = if inner.is_fragment() {
        Err(End::Fragment)
    } else {
        to_overlay0(inner.bytes[9], inner.payload(), inner.from(), inner.to(), inner.bytes[1])
            .map(|inside| at_overlay0(inner.from(), inside))
    };
    fate.again.push(again);
}

/// Whether the stack would take this packet for one between containers, although it came without encapsulation: from
/// the leasable range, which is all containers', to a container here or, through this host, elsewhere.
fn is_forged(packet: &[u8]) -> bool {
    let is_leased = |address: [u8; 4]| PEERS.iter().any(|(_, subnet)| address[..3] == *subnet);
    packet.len() >= 20
        && in_range(four(packet, 12))
        && (in_subnet(four(packet, 16)) || is_leased(four(packet, 16)))
}

/// Whether the frame is addressed to one other machine.
fn is_another_hosts(frame: &[u8]) -> bool {
    frame[0] & 1 == 0 && frame[..6] != UNDERLAY_MAC
}

/// Steps In 1 to In 3 at the underlay device: the reason, and whether the outer checksum is wrong; or nothing if the
/// frame is not ours.
fn at_the_device(outer: &Packet<'_>, available: usize) -> Option<(Reason, bool)> {
    let udp = outer.payload();
    let whole = outer.header == 20 && outer.bytes.len() == available && !outer.is_fragment();
    if !whole || outer.bytes[9] != 17 || outer.to() != LOCAL || udp.len() < 8 {
        return None;
    }
    if word(udp, 2) != PORT || usize::from(word(udp, 4)) != udp.len() || udp.len() < 8 + 8 + 14 + 20 {
        return None;
    }
    let [_, a, b, c] = VNI.to_be_bytes();
    if udp[8..16] != [8, 0, 0, 0, a, b, c, 0] {
        return None;
    }
    let broken = !udp_sum_is_right(udp, outer.from(), outer.to());
    Some((reason_at_the_device(outer, &udp[16..]), broken))
}

fn reason_at_the_device(outer: &Packet<'_>, inside: &[u8]) -> Reason {
    let Some((_, subnet)) = PEERS.iter().find(|(address, _)| *address == outer.from()) else {
        return Reason::UnknownPeer;
    };
    if word(inside, 12) != 0x0800 {
        return Reason::NotIpv4;
    }
    let bytes = &inside[14..];
    if bytes[0] >> 4 == 4 && bytes[0] & 15 > 5 {
        return Reason::InnerOptions;
    }
    let Some(inner) = Packet::of(bytes) else {
        return Reason::Malformed;
    };
    if inner.bytes.len() < bytes.len() {
        return Reason::TrailingBytes;
    }
    if let Some(reason) = source(inner.from(), *subnet) {
        return reason;
    }
    if inside[..6] != VTEP_MAC || inside[6..12] == VTEP_MAC {
        return Reason::WrongVtepMac;
    }
    if !in_subnet(inner.to()) {
        return Reason::NotOurSubnet;
    }
    if inner.is_fragment() {
        return Reason::InnerFragment;
    }
    if inner.bytes[8] < 2 {
        return Reason::TtlExpired;
    }
    if inner.to() != CONTAINER {
        return Reason::Unlearned;
    }
    if outer.bytes[1] & 3 == 3 && inner.bytes[1] & 3 == 0 {
        return Reason::NotEctMarked;
    }
    Reason::Carried
}

/// What is wrong with an inner source address from the peer that holds `subnet`.
fn source(address: [u8; 4], subnet: [u8; 3]) -> Option<Reason> {
    match (address[..3] == subnet, in_range(address)) {
        (true, _) => None,
        (false, true) => Some(Reason::PeerMismatch),
        (false, false) => Some(Reason::ForeignSource),
    }
}

/// Where a packet ends whose outer addresses no host accepts (RFC 1122, section 3.2.1.3), or not this one.
fn unusable(from: [u8; 4], to: [u8; 4]) -> Option<End> {
    let own = is_hosts(from);
    let broadcast = in_subnet(from) && from[3] == 255 || from == [10, 99, 0, 255];
    // The address 0.0.0.0 means "this host" before it knows its address; as a destination it was once a broadcast (RFC
    // 1122, section 3.3.6).
    let old_broadcast = [from, to] == [[0; 4]; 2];
    let nobody = from[0] == 0 && !matches!(to, [255, 255, 255, 255] | [224, 0, 0, 1]) && !old_broadcast;
    if from[0] == 127 || from[0] >= 240 || from[0] & 0xf0 == 224 || own || broadcast || nobody {
        return Some(End::Ip);
    }
    if to[0] == 127 || to[0] == 0 && !old_broadcast {
        return Some(End::Ip);
    }
    (!is_local(to) && !old_broadcast).then_some(End::OtherService)
}

/// Passes a datagram through the kernel's UDP and tunnel, and returns the inner Ethernet frame.
fn to_overlay0(protocol: u8, udp: &[u8], from: [u8; 4], to: [u8; 4], tos: u8) -> Result<&[u8], End> {
    if protocol != 17 {
        return Err(End::OtherService);
    }
    let length = if udp.len() < 8 { 0 } else { usize::from(word(udp, 4)) };
    if length < 8 || length > udp.len() {
        return Err(End::UdpError);
    }
    let udp = &udp[..length];
    let is_unicast = is_hosts(to);
    if word(udp, 2) != PORT && (!is_unicast || udp_sum_is_right(udp, from, to)) {
        return Err(End::OtherService);
    }
    if !udp_sum_is_right(udp, from, to) {
        return Err(End::UdpError);
    }
    let [_, a, b, c] = VNI.to_be_bytes();
    if udp.len() < 8 + 8 + 14 || udp[8..16] != [8, 0, 0, 0, a, b, c, 0] {
        return Err(End::NoTunnel);
    }
    let inside = &udp[16..];
    if inside[6..12] == VTEP_MAC {
        return Err(End::NoTunnel);
    }
    // The kernel's device requires a whole header of a protocol that it knows, and looks at the ECN field in it (RFC
    // 6040).
    let congested = tos & 3 == 3;
    let broken = match word(inside, 12) {
        0x0800 => inside.len() < 34 || congested && inside[15] & 3 == 0,
        0x86dd => inside.len() < 54 || congested && inside[15] & 0x30 == 0,
        0x8100 | 0x88a8 => inside.len() < 20,
        _ => false,
    };
    if broken {
        return Err(End::NoTunnel);
    }
    Ok(inside)
}

/// Whether an IPv4 host with this underlay accepts packets to an address: its own, broadcasts, all hosts (RFC 1112).
fn is_local(address: [u8; 4]) -> bool {
    matches!(address, LOCAL | [10, 99, 0, 255] | [255, 255, 255, 255] | [224, 0, 0, 1])
        || in_subnet(address) && matches!(address[3], 0 | 1 | 255)
}

/// The same checks as they are made at overlay0.
fn at_overlay0(outer: [u8; 4], inside: &[u8]) -> Reason {
    let Some((_, subnet)) = PEERS.iter().find(|(address, _)| *address == outer) else {
        return Reason::UnknownPeer;
    };
    if word(inside, 12) != 0x0800 {
        return Reason::NotIpv4;
    }
    if inside.len() < 34 {
        return Reason::Malformed;
    }
    match source(four(inside, 26), *subnet) {
        None | Some(Reason::ForeignSource) => {}
        Some(reason) => return reason,
    }
    if inside[..6] != VTEP_MAC {
        return Reason::WrongVtepMac;
    }
    if !in_subnet(four(inside, 30)) {
        return Reason::NotOurSubnet;
    }
    Reason::Carried
}
