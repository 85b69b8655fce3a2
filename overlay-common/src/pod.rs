//! Marks the map types as plain old data for aya.
use crate::{
    Addr4, Count, EndpointEntry, Flow, FlowKey, KeptNextHop, KeptPort, PeerCount, PeerEntry, Settings, Vtep,
};

macro_rules! pod {
    ($($name:ty),+) => {$(
        // SAFETY: repr(C), integers and byte arrays only, no implicit padding (the size asserts in maps.rs sum the
        // fields), so every byte is initialised and every bit pattern is valid.
        unsafe impl aya::Pod for $name {}
    )+};
}

pod!(Addr4, Count, EndpointEntry, Flow, FlowKey, KeptNextHop, KeptPort, PeerCount, PeerEntry, Settings, Vtep);
#[cfg(feature = "bench")]
pod!(
    crate::bench::Arrived,
    crate::bench::First,
    crate::bench::FloorEndpoint,
    crate::bench::FloorPeer,
    crate::bench::Shape
);
