//! The agent and the command line, as a library so that tests can drive them. Modules in reading order.

pub mod acquire;
pub mod agent;
pub mod check;
pub mod cli;
pub mod commands;
pub mod control;
pub mod datapath;
pub mod decided;
pub mod device;
pub mod endpoints;
pub mod guard;
pub mod health;
pub mod iface;
mod json;
pub mod lease;
pub mod mac;
pub mod netlink;
pub mod network;
pub mod observe;
pub mod own;
pub mod peers;
pub mod probe;
pub mod state;
pub mod status;
pub mod store;
pub mod subnet_env;
pub mod table;
