//! Who may send what: the checks on a decapsulated packet, the same at the underlay device and at overlay0.
use overlay_common::{Reason, SETTING_STRICT_PEERS};

use crate::{
    frame::Frame,
    ip::{Family, Header as _},
    maps::Lookups,
    settings,
    verdict::{Answer, Exit},
};

/// The peer that has sent a packet.
#[derive(Clone, Copy)]
pub(crate) struct Sender {
    /// Its counters' slot.
    pub(crate) slot: u32,
    /// Its `PEER_*` bits.
    pub(crate) flags: u16,
}

/// The inner header at `offset`, and the peer that sent it, if that peer may send it. Only a peer's packet is told what is wrong
/// with it.
#[inline(always)]
pub(crate) fn sender<F: Family>(
    frame: &impl Frame,
    offset: usize,
    outer: &F::Header,
) -> Result<(F::Header, Sender), Reason> {
    let inner = match F::Header::checked(frame, offset) {
        Ok(inner) => inner,
        Err(bad) => {
            known(outer.source())?;
            return Err(bad.into());
        }
    };
    let sender = peer(outer.source(), inner.source())?;
    Ok((inner, sender))
}

/// The peer at underlay address `outer`, if it may send a packet with this inner source.
/// One look-up answers the common case: the inner source's subnet belongs to the outer source.
#[inline(always)]
pub(crate) fn peer<A: Lookups>(outer: A, source: A) -> Result<Sender, Reason> {
    if let Some(peer) = source.peer()
        && peer.outer == outer
    {
        return Ok(Sender { slot: peer.slot, flags: peer.flags });
    }
    known(outer)?;
    if source.is_overlays() {
        return Err(Reason::PeerMismatch);
    }
    if settings::has(SETTING_STRICT_PEERS) {
        return Err(Reason::StrictSource);
    }
    Err(Reason::ForeignSource)
}

/// The counters' slot of the peer at this underlay address.
#[inline(always)]
pub(crate) fn known(outer: impl Lookups) -> Result<u32, Reason> {
    outer.vtep().map(|vtep| vtep.slot).ok_or(Reason::UnknownPeer)
}

/// The counters' slot of the peer that must have sent a packet without encapsulation (`DirectRouting`, host-gw), by its
/// source alone: no outer header says who it was, so only the link's own protection keeps others from using the address.
/// A packet whose source is not the overlay's is not ours: it is the underlay's own.
#[inline(always)]
pub(crate) fn unencapsulated(source: impl Lookups) -> Answer<u32> {
    if !source.is_overlays() {
        return Err(Exit::NotOurs);
    }
    if source.in_subnet() {
        return Err(Reason::PeerMismatch.into());
    }
    Ok(source.peer().map(|peer| peer.slot).ok_or(Reason::UnknownPeer)?)
}

/// Whether a packet that came without encapsulation is in a container's name, where every packet between containers is
/// encapsulated: its source is the overlay's, and it is for a container here or, through this host, for one elsewhere.
///
/// Where the leasable range covers the underlay, the underlay's own machines are inside it too. A peer's address is known. Of what
/// is in no leased subnet, `is_beside_overlay` tells whether the host's routes to it lead elsewhere than into overlay0, where they
/// lead for all that may be leased: then it is the underlay's.
#[inline(always)]
pub(crate) fn is_forged<A: Lookups>(
    source: A,
    destination: A,
    is_beside_overlay: impl FnOnce() -> bool,
) -> bool {
    if !source.is_overlays() || !(destination.in_subnet() || destination.peer().is_some()) {
        return false;
    }
    if source.in_subnet() {
        return true;
    }
    source.vtep().is_none() && (source.peer().is_some() || !is_beside_overlay())
}
