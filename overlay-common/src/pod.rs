//! Marks the map types as plain old data for aya.
use crate::{
    Addr4, Addr6, Count, EndpointEntry, Flow, FlowKey, KeptNextHop, KeptPort, PeerCount, PeerEntry, Settings,
    Settings6, Vtep,
};

macro_rules! pod {
    ($($name:ty),+) => {$(
        // SAFETY: repr(C), integers and byte arrays only, no implicit padding (the size asserts in maps.rs sum the
        // fields), so every byte is initialised and every bit pattern is valid.
        unsafe impl aya::Pod for $name {}
    )+};
}

pod!(Addr4, Count, EndpointEntry, Flow, FlowKey, KeptNextHop, KeptPort, PeerCount, PeerEntry, Settings, Vtep);
pod!(Addr6, FlowKey<Addr6>, KeptNextHop<Addr6>, PeerEntry<Addr6>, Settings6);
#[cfg(feature = "bench")]
pod!(
    crate::bench::Arrived,
    crate::bench::First,
    crate::bench::FloorEndpoint,
    crate::bench::FloorPeer,
    crate::bench::Shape
);
