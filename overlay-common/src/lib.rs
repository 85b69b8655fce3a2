//! What the kernel programs and the agent share: map layouts, reasons, wire formats.
//!
//! Byte order: addresses and ports are byte arrays in network order, exactly as they stand in a packet.
//! Every other integer (ifindex, slot, counters, nanoseconds) is in the machine's own order.
//! Nothing here does I/O, knows aya (but for the `Pod` marks), tokio or etcd.
#![no_std]

pub mod address;
#[cfg(feature = "bench")]
pub mod bench;
pub mod checksum;
#[cfg(test)]
mod documents;
pub mod flow;
pub mod header;
pub mod ipv6;
pub mod maps;
#[cfg(feature = "user")]
mod pod;
pub mod reason;
pub mod settings;
pub mod wire;

pub use address::{Addr4, Addr6, Address};
pub use flow::*;
pub use ipv6::{IPV6_PROGRAMS, Ipv6Program, Settings6};
pub use maps::*;
pub use reason::{Hook, Reason, Verdict};
pub use settings::*;

/// Version of the map layouts. It is part of the pin path, so that programs of one layout never see maps of another.
/// Raise it with every change to a type in [`maps`] or [`flow`].
pub const ABI: u32 = if cfg!(feature = "next-layout") { 3 } else { 2 };
