//! The benchmark: what networks between two containers are capable of, side by side, what an agent costs with very many peers,
//! and whether anything grows over hours.

pub mod agent;
pub mod measure;
pub mod picture;
pub mod soak;
