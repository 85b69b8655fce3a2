//! The agent and the command line, as a library so that tests can drive them. Modules in reading order.

pub mod acquire;
pub mod datapath;
mod json;
pub mod lease;
pub mod mac;
pub mod network;
pub mod store;
