//! This host's kernel and files, in domain words: netlink, the tunnel device, the underlay, the packet filter, the files
//! that others read.
pub mod device;
pub mod docker_opts;
pub mod firewall;
pub mod netlink;
pub mod subnet_env;
pub mod underlay;
