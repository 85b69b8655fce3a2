//! The agent and the command line, as a library so that tests can drive them. A wing imports only those above it here.

pub mod model;

pub mod store;

pub mod host;

pub mod datapath;

pub mod learn;

pub mod agent;

pub mod flannel;

pub mod cli;
