//! The network of the kernel rung: who is there, and under which addresses.

pub const NETWORK: [u8; 4] = [10, 244, 0, 0];
/// This host: subnet 10.244.1.0/24 at 10.99.0.1.
pub const LOCAL: [u8; 4] = [10, 99, 0, 1];
pub const VTEP_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// The peer: subnet 10.244.2.0/24 at 10.99.0.2.
pub const PEER: [u8; 4] = [10, 99, 0, 2];
pub const PEER_VTEP_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// A second peer: subnet 10.244.3.0/24 at 10.99.0.3.
pub const OTHER_PEER: [u8; 4] = [10, 99, 0, 3];
pub const STRANGER: [u8; 4] = [10, 99, 0, 66];
pub const UNDERLAY_MAC: [u8; 6] = [0x06, 0, 0, 0, 0, 0x01];
pub const NEXT_HOP_MAC: [u8; 6] = [0x06, 0, 0, 0, 0, 0x02];
/// The container on this host, and its gateway.
pub const CONTAINER: [u8; 4] = [10, 244, 1, 2];
pub const CONTAINER_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 0x02];
pub const UNLEARNED: [u8; 4] = [10, 244, 1, 9];
pub const GATEWAY: [u8; 4] = [10, 244, 1, 1];
pub const GATEWAY_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 0x01];
/// A container of the peer.
pub const REMOTE: [u8; 4] = [10, 244, 2, 7];
/// A container of the second peer.
pub const FAR: [u8; 4] = [10, 244, 3, 9];
/// The same of IPv6. This host: subnet fd00:244:0:1::/64 at fd99::1.
pub const NETWORK6: &str = "fd00:244::/48";
pub const LOCAL6: &str = "fd99::1";
pub const GATEWAY6: &str = "fd00:244:0:1::1";
pub const CONTAINER6: &str = "fd00:244:0:1::2";
pub const UNLEARNED6: &str = "fd00:244:0:1::9";
/// The peer: subnet fd00:244:0:2::/64.
pub const PEER6: &str = "fd99::2";
pub const REMOTE6: &str = "fd00:244:0:2::7";
/// The second peer, whose tunnel wants outer UDP checksums: subnet fd00:244:0:3::/64.
pub const OTHER_PEER6: &str = "fd99::3";
pub const FAR6: &str = "fd00:244:0:3::9";
pub const STRANGER6: &str = "fd99::66";
/// A subnet that nobody has leased.
pub const NOBODY6: &str = "fd00:244:0:7::7";
pub const PORT: u16 = 8472;
pub const VNI: u32 = 1;
/// Of flannel's udp backend.
pub const UDP_PORT: u16 = 8285;
