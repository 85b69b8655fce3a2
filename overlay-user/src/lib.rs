//! The agent and the command line, as a library so that tests can drive them. Modules in reading order.

pub mod check;
pub mod datapath;
pub mod device;
pub mod endpoints;
pub mod iface;
pub mod mac;
pub mod netlink;
pub mod observe;
pub mod probe;
pub mod state;
pub mod store;
