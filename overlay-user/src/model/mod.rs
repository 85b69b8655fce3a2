//! The values that everything else speaks of: addresses, leases, the network's config, peers, endpoints. No I/O.
pub mod addr;
pub mod backend;
pub mod change;
pub mod clock;
pub mod entries;
pub mod fast_path;
pub mod ingress;
pub(crate) mod json;
pub mod lease;
pub mod mac;
pub mod network;
pub mod pause;
