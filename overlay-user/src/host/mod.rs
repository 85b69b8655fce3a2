//! This host's kernel and files, in the overlay's words: netlink, the tunnel device, the underlay, the packet filter, IPsec
//! policies, and the files that other programs read.
pub mod capabilities;
pub mod device;
pub mod docker_opts;
pub mod firewall;
pub mod ipsec;
pub mod netlink;
pub mod overlaps;
pub mod subnet_env;
pub mod underlay;
