//! From one container to another behind the same bridge, where the bridge would do nothing but forward the frame: part of Out 1.
use overlay_common::{FAST_PATH_OFF, endpoint_bridge, header::ethernet};

use crate::{
    frame::Frame as _,
    ip::{Family, Header as _},
    maps::Lookups as _,
    packet::Packet,
    settings::Prefixes as _,
};

/// The verdict that puts a frame into the container that it is for. `None` leaves it to the bridge, untouched.
///
/// The frame is switched, not routed: neither its MAC addresses nor its TTL change, and nothing in its IP header is checked, since
/// a bridge looks at none of it. Only the two addresses count, by which the endpoints are found; fragments, options and broken
/// headers are the receiver's business. The agent tells by the endpoints' flags between which ports the bridge would do nothing
/// else (`overlay-user/src/learn/learner/same_host.rs`). What is left to be asked is about this frame.
#[inline(always)]
pub(crate) fn hand_over<F: Family>(packet: &Packet<'_>, inner: &F::Header) -> Option<i32> {
    let (source, destination) = (inner.source(), inner.destination());
    if !destination.in_subnet() || !source.in_subnet() {
        return None;
    }
    let to = destination.endpoint()?;
    let bridge = endpoint_bridge(to.flags);
    if bridge == 0 {
        return None;
    }
    let from = source.endpoint()?;
    // A bridge sends nothing back to the port that it came from, unless that is set to hairpin mode.
    if endpoint_bridge(from.flags) != bridge
        || from.ifindex != packet.ifindex()
        || from.ifindex == to.ifindex
        || F::Address::fast_path() == FAST_PATH_OFF
    {
        return None;
    }
    // A frame with another destination is another port's, or the host's. One with another source is news to the bridge.
    if packet.read(ethernet::offset::DESTINATION) != Some([words(to.mac), words(from.mac)]) {
        return None;
    }
    // The bridge drops what its port does not take. A port that is gone was another container's, whom this one replaces while no
    // agent runs to learn it.
    if !packet.fits_without(to.ifindex, 0) {
        return None;
    }
    // As the port received the frame, it was for somebody else.
    packet.accept();
    Some(Packet::redirect_peer(to.ifindex))
}

/// A MAC address in the words that a frame is read in.
#[inline(always)]
fn words([a, b, c, d, e, f]: [u8; 6]) -> [u16; 3] {
    [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes)
}
