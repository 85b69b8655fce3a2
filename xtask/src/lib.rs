//! The lab (hosts as network namespaces) as a library, for the demo, the benchmark and the tests.

pub mod etcd;
