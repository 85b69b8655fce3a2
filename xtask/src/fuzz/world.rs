//! Who is who in the fuzzer's little network: fixed, so that a frame means the same in every run.

/// Our host, and the kernel's in its place.
pub(super) const LOCAL: [u8; 4] = [10, 99, 0, 1];
pub(super) const UNDERLAY_MAC: [u8; 6] = [0x06, 0, 0, 0, 0, 0x01];
pub(super) const NEXT_HOP_MAC: [u8; 6] = [0x06, 0, 0, 0, 0, 0x02];
pub(super) const VTEP_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub(super) const SUBNET: [u8; 3] = [10, 244, 1];
pub(super) const GATEWAY: [u8; 4] = [10, 244, 1, 1];
pub(super) const CONTAINER: [u8; 4] = [10, 244, 1, 2];
pub(super) const CONTAINER_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 0x02];
pub(super) const PORT: u16 = 8472;
pub(super) const VNI: u32 = 1;
/// The peers: underlay address, and the first three bytes of the subnet.
pub(super) const PEERS: [([u8; 4], [u8; 3]); 2] =
    [([10, 99, 0, 2], [10, 244, 2]), ([10, 99, 0, 3], [10, 244, 3])];
pub(super) const PEER_VTEP_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// A container of the first peer.
pub(super) const REMOTE: [u8; 4] = [10, 244, 2, 7];
/// Ports of the container and of the remote end.
pub(super) const PORTS: [u16; 2] = [5000, 4000];

/// Whether it lies in Network, 10.244.0.0/16.
pub(super) fn in_network(address: [u8; 4]) -> bool {
    address[..2] == [10, 244]
}

/// Whether it lies in our host's subnet.
pub(super) fn in_subnet(address: [u8; 4]) -> bool {
    address[..3] == SUBNET
}
