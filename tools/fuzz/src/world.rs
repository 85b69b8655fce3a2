//! The addresses in the fuzzer's little network. They are fixed, so that a frame means the same in every run.

/// Underlay address of our host, and of the kernel's host in its place.
pub const LOCAL: [u8; 4] = [10, 99, 0, 1];
/// MAC address of its underlay device.
pub const UNDERLAY_MAC: [u8; 6] = [0x06, 0, 0, 0, 0, 0x01];
/// MAC address of all machines that send to our host.
pub const NEXT_HOP_MAC: [u8; 6] = [0x06, 0, 0, 0, 0, 0x02];
/// VtepMAC of its lease.
pub const VTEP_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// First bytes of its subnet, 10.244.1.0/24.
pub const SUBNET: [u8; 3] = [10, 244, 1];
/// Address of its bridge.
pub const GATEWAY: [u8; 4] = [10, 244, 1, 1];
/// Address of its container.
pub const CONTAINER: [u8; 4] = [10, 244, 1, 2];
/// The container's MAC address.
pub const CONTAINER_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 0x02];
/// UDP port of the tunnel.
pub const PORT: u16 = 8472;
/// VXLAN network identifier.
pub const VNI: u32 = 1;
/// The peers: underlay address, and the first three bytes of the subnet.
pub const PEERS: [([u8; 4], [u8; 3]); 2] = [([10, 99, 0, 2], [10, 244, 2]), ([10, 99, 0, 3], [10, 244, 3])];
/// VtepMAC of the first peer.
pub const PEER_VTEP_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// A container of the first peer.
pub const REMOTE: [u8; 4] = [10, 244, 2, 7];
/// Ports of the container and of the remote end.
pub const PORTS: [u16; 2] = [5000, 4000];

/// Whether it lies in the leasable range, 10.244.0.0 to 10.244.63.255. The rest of Network, 10.244.0.0/16, is the hosts'.
pub fn in_range(address: [u8; 4]) -> bool {
    address[..2] == [10, 244] && address[2] < 64
}

/// Whether it lies in our host's subnet.
pub fn in_subnet(address: [u8; 4]) -> bool {
    address[..3] == SUBNET
}

/// Whether it is one of our host's own addresses: the underlay's, overlay0's (10.244.1.0) and the bridge's (10.244.1.1).
pub fn is_hosts(address: [u8; 4]) -> bool {
    address == LOCAL || in_subnet(address) && address[3] < 2
}
