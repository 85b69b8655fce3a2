//! The benchmark: what networks between two containers are capable of, side by side, and what an agent costs with very many
//! peers.

pub mod agent;
pub mod measure;
