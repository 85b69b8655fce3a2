//! The lab (hosts as network namespaces), a real etcd, VMs and the set-up, as a library for the demo, the benchmark and the
//! tests.

pub mod agent_bench;
pub mod bench;
pub mod command;
pub mod endurance;
pub mod etcd;
pub mod fuzz;
pub mod lab;
pub mod project;
pub mod setup;
pub mod vm;
