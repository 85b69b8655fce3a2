//! The agent and the command line, as a library so that tests can drive them. Modules in reading order.

pub mod acquire;
pub mod agent;
pub mod cli;
pub mod control;
pub mod datapath;
pub mod decided;
pub mod guard;
pub mod health;
mod json;
pub mod lease;
pub mod mac;
pub mod network;
pub mod own;
pub mod peers;
pub mod status;
pub mod store;
pub mod subnet_env;
