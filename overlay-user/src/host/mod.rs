//! This host's kernel and files, in the overlay's words: netlink, the tunnel device, the underlay, the packet filter, IPsec
//! policies, what is known of the overlay here, and the files that other programs read.
pub mod bridge_netfilter;
pub mod capabilities;
pub mod command;
pub mod device;
pub mod docker_opts;
pub mod firewall;
pub mod ipsec;
pub mod netlink;
pub mod notify;
pub mod overlaps;
pub mod port_holder;
pub mod site;
pub mod subnet_env;
pub mod underlay;
