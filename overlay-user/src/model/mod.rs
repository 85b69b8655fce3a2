//! What the overlay is about, as plain values: addresses, leases, the network's config, backends. No I/O.
pub mod backend;
pub mod change;
pub mod clock;
pub mod entries;
pub mod ingress;
pub(crate) mod json;
pub mod lease;
pub mod mac;
pub mod network;
