//! The bytes of the outer headers: VXLAN over UDP over IPv4 or IPv6 (RFC 7348 section 5), or UDP over IPv4 alone (flannel's udp
//! backend, its pkg/backend/udp).
use crate::{
    Addr4, Addr6, checksum,
    header::{ethernet, ipv4, ipv6, protocol, udp},
};

/// Length of an Ethernet header without a VLAN tag.
pub const ETHERNET: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Length of an IPv6 header without extension headers.
pub const IPV6: usize = 40;
/// Length of a UDP header.
pub const UDP: usize = 8;
/// Length of a VXLAN header.
pub const VXLAN: usize = 8;
/// What bare IPv4 in UDP adds to a frame: outer IPv4 and UDP.
pub const DATAGRAM: usize = IPV4 + UDP;
/// Outer IPv6 and UDP.
pub const DATAGRAM6: usize = IPV6 + UDP;
/// What VXLAN adds to a frame: outer IPv4, UDP, VXLAN and the inner Ethernet header.
pub const OVERHEAD: usize = DATAGRAM + VXLAN + ETHERNET;
/// From the first byte of a VXLAN frame to its inner IPv4 header.
pub const INNER: usize = ETHERNET + OVERHEAD;
/// EtherType of IPv4, network order.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// EtherType of IPv6, network order.
pub const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// The I flag: the VNI is valid (RFC 7348 section 5: "MUST be set to 1 for a valid VXLAN Network ID").
pub const VXLAN_VNI_VALID: u8 = 0x08;
/// TTL of the outer header, as the kernel's device sets it for flannel.
pub const OUTER_TTL: u8 = if cfg!(feature = "next-program") { 63 } else { 64 };
/// Largest VNI plus one.
pub const VNI_END: u32 = 1 << 24;

/// Everything that differs from one datagram's headers to the next.
#[derive(Clone, Copy, Debug)]
pub struct Outer<A = Addr4> {
    /// This host's underlay address.
    pub source: A,
    /// The peer's underlay address.
    pub destination: A,
    /// Type of service byte, of which only the ECN bits are ever set (RFC 6040 section 4.1; a DSCP of zero is the kernel's
    /// default).
    pub tos: u8,
    /// Identification: a value that differs from packet to packet, since DF may be clear. IPv6 has none.
    pub identification: u16,
    /// Set DF. Over IPv6 no router fragments.
    pub dont_fragment: bool,
    /// UDP source port, in the machine's order, from the inner flow's hash (RFC 7348 section 5).
    pub source_port: u16,
    /// UDP destination port, network order.
    pub port: [u8; 2],
    /// Bytes behind the UDP header. Of a GSO frame they are the whole frame's, and the kernel writes each segment's own.
    pub payload: u32,
}

impl Outer<Addr4> {
    /// Writes the outer IPv4 and UDP headers, in place, since the BPF stack has no room for copies. The kernel's neighbour
    /// subsystem writes the outer Ethernet header. The UDP checksum is zero (RFC 7348 section 5: "SHOULD be transmitted as
    /// zero"; flannel's receivers take that in either backend).
    #[inline(always)]
    pub fn write(&self, out: &mut [u8; DATAGRAM]) {
        const SOURCE_PORT: usize = IPV4 + udp::offset::SOURCE_PORT;
        const DESTINATION_PORT: usize = IPV4 + udp::offset::DESTINATION_PORT;
        const UDP_LENGTH: usize = IPV4 + udp::offset::LENGTH;
        const UDP_CHECKSUM: usize = IPV4 + udp::offset::CHECKSUM;
        use ipv4::offset::*;

        let fragment = if self.dont_fragment { ipv4::DONT_FRAGMENT } else { 0 };
        out[VERSION] = ipv4::WITHOUT_OPTIONS;
        out[TOS] = self.tos;
        // It exceeds 65,535 only in GSO frames, and there the kernel writes each segment's length anew.
        out[LENGTH..IDENTIFICATION].copy_from_slice(&((self.payload + DATAGRAM as u32) as u16).to_be_bytes());
        out[IDENTIFICATION..FRAGMENT].copy_from_slice(&self.identification.to_be_bytes());
        out[FRAGMENT..TTL].copy_from_slice(&fragment.to_be_bytes());
        out[TTL] = OUTER_TTL;
        out[PROTOCOL] = protocol::UDP;
        out[CHECKSUM..SOURCE].fill(0);
        out[SOURCE..DESTINATION].copy_from_slice(&self.source.octets);
        out[DESTINATION..IPV4].copy_from_slice(&self.destination.octets);
        let sum = checksum::finish(checksum::from_native(checksum::sum_native(out, 0, IPV4)));
        out[CHECKSUM..SOURCE].copy_from_slice(&sum.to_be_bytes());

        out[SOURCE_PORT..DESTINATION_PORT].copy_from_slice(&self.source_port.to_be_bytes());
        out[DESTINATION_PORT..UDP_LENGTH].copy_from_slice(&self.port);
        out[UDP_LENGTH..UDP_CHECKSUM].copy_from_slice(&((self.payload + UDP as u32) as u16).to_be_bytes());
        out[UDP_CHECKSUM..].fill(0);
    }
}

impl Outer<Addr6> {
    /// Writes the outer IPv6 and UDP headers, in place. The flow label is the source port, and so as good a hash of the inner flow
    /// (RFC 6438 section 3). The UDP checksum is zero, which only tunnels that have agreed on it may send and take (RFC 6935
    /// section 5).
    #[inline(always)]
    pub fn write(&self, out: &mut [u8; DATAGRAM6]) {
        const SOURCE_PORT: usize = IPV6 + udp::offset::SOURCE_PORT;
        const DESTINATION_PORT: usize = IPV6 + udp::offset::DESTINATION_PORT;
        const UDP_LENGTH: usize = IPV6 + udp::offset::LENGTH;
        const UDP_CHECKSUM: usize = IPV6 + udp::offset::CHECKSUM;
        use ipv6::offset::*;

        let flow = (ipv6::VERSION as u32) << 28 | u32::from(self.tos) << 20 | u32::from(self.source_port);
        // It exceeds 65,535 only in GSO frames, and there the kernel writes each segment's length anew.
        let length = ((self.payload + UDP as u32) as u16).to_be_bytes();
        out[VERSION..PAYLOAD_LENGTH].copy_from_slice(&flow.to_be_bytes());
        out[PAYLOAD_LENGTH..NEXT_HEADER].copy_from_slice(&length);
        out[NEXT_HEADER] = protocol::UDP;
        out[HOP_LIMIT] = OUTER_TTL;
        out[SOURCE..DESTINATION].copy_from_slice(&self.source.octets());
        out[DESTINATION..IPV6].copy_from_slice(&self.destination.octets());

        out[SOURCE_PORT..DESTINATION_PORT].copy_from_slice(&self.source_port.to_be_bytes());
        out[DESTINATION_PORT..UDP_LENGTH].copy_from_slice(&self.port);
        out[UDP_LENGTH..UDP_CHECKSUM].copy_from_slice(&length);
        out[UDP_CHECKSUM..].fill(0);
    }
}

/// What VXLAN puts between the UDP header and the inner packet.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// The peer's VtepMAC.
    pub destination_mac: [u8; 6],
    /// Our VtepMAC.
    pub source_mac: [u8; 6],
    /// EtherType of the inner packet, network order.
    pub ethertype: [u8; 2],
}

impl Vxlan {
    /// Writes the VXLAN header and the inner Ethernet header.
    #[inline(always)]
    pub fn write(&self, out: &mut [u8; VXLAN + ETHERNET]) {
        use ethernet::offset::*;

        let [_, a, b, c] = self.vni.to_be_bytes();
        let (vxlan, inner) = out.split_at_mut(VXLAN);
        vxlan.copy_from_slice(&[VXLAN_VNI_VALID, 0, 0, 0, a, b, c, 0]);
        inner[DESTINATION..SOURCE].copy_from_slice(&self.destination_mac);
        inner[SOURCE..ETHERTYPE].copy_from_slice(&self.source_mac);
        inner[ETHERTYPE..].copy_from_slice(&self.ethertype);
    }
}

/// Source port for a flow hash: `first + hash scaled to count`, as the kernel's `udp_flow_src_port` spreads it.
#[inline(always)]
pub const fn source_port(hash: u32, first: u16, count: u16) -> u16 {
    // Fold the upper half in: hashes of few flows differ there too.
    let mixed = hash ^ (hash << 16);
    first.wrapping_add((((mixed as u64) * (count as u64)) >> 32) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    // First frame of a capture between two flannel hosts (kernel VXLAN device), up to the inner IPv4 header. Its UDP
    // checksum (0x154c, unfinished as veth hands it over) is the one difference: ours is zero.
    const SEEN: [u8; INNER] = [
        0xee, 0x41, 0x1a, 0xa1, 0x9c, 0x0b, 0xc2, 0xf1, 0xca, 0xdb, 0x71, 0x99, 0x08, 0x00, 0x45, 0x00, 0x00,
        0x86, 0x05, 0xdc, 0x00, 0x00, 0x40, 0x11, 0x5f, 0xc3, 0x0a, 0x63, 0x00, 0x01, 0x0a, 0x63, 0x00, 0x02,
        0xd8, 0x7a, 0x21, 0x18, 0x00, 0x72, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0xfa,
        0x3c, 0x34, 0x4c, 0x9c, 0xf0, 0x52, 0x4a, 0xf5, 0x2a, 0x76, 0xbf, 0x08, 0x00,
    ];

    // The same of two hosts with flannel's udp backend. Its UDP checksum was 0x1536, unfinished too.
    const SEEN_UDP: [u8; ETHERNET + DATAGRAM] = [
        0xee, 0x41, 0x1a, 0xa1, 0x9c, 0x0b, 0xc2, 0xf1, 0xca, 0xdb, 0x71, 0x99, 0x08, 0x00, 0x45, 0x00, 0x00,
        0x70, 0x7b, 0x52, 0x40, 0x00, 0x40, 0x11, 0xaa, 0x62, 0x0a, 0x63, 0x00, 0x01, 0x0a, 0x63, 0x00, 0x02,
        0x20, 0x5d, 0x20, 0x5d, 0x00, 0x5c, 0x00, 0x00,
    ];

    // Outer IPv6, UDP, VXLAN and inner Ethernet as scapy 2.5.0 writes them, with a checksum of zero, around an echo request of 104 bytes.
    const BY_SCAPY: [u8; DATAGRAM6 + VXLAN + ETHERNET] = [
        0x60, 0x20, 0xd8, 0x7a, 0x00, 0x86, 0x11, 0x40, 0xfd, 0x99, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0xfd, 0x99, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0xd8, 0x7a, 0x21, 0x18, 0x00, 0x86, 0x00, 0x00, 0x08, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x01, 0x00, 0xfa, 0x3c, 0x34, 0x4c, 0x9c, 0xf0, 0x52, 0x4a, 0xf5, 0x2a, 0x76, 0xbf,
        0x86, 0xdd,
    ];

    // Whatever is left unwritten shows.
    const BLANK: u8 = 0xa5;

    fn datagram(outer: &Outer) -> [u8; DATAGRAM] {
        let mut out = [BLANK; DATAGRAM];
        outer.write(&mut out);
        out
    }

    #[test]
    fn the_headers_are_those_a_kernel_vxlan_device_writes() {
        let outer = Outer {
            source: Addr4::new([10, 99, 0, 1]),
            destination: Addr4::new([10, 99, 0, 2]),
            tos: 0,
            identification: 0x05dc,
            dont_fragment: false,
            source_port: 0xd87a,
            port: 8472u16.to_be_bytes(),
            payload: (VXLAN + ETHERNET + 84) as u32,
        };
        let vxlan = Vxlan {
            vni: 1,
            destination_mac: [0xfa, 0x3c, 0x34, 0x4c, 0x9c, 0xf0],
            source_mac: [0x52, 0x4a, 0xf5, 0x2a, 0x76, 0xbf],
            ethertype: ETHERTYPE_IPV4,
        };
        let mut inside = [BLANK; VXLAN + ETHERNET];
        vxlan.write(&mut inside);
        assert_eq!(datagram(&outer), SEEN[ETHERNET..ETHERNET + DATAGRAM]);
        assert_eq!(inside, SEEN[ETHERNET + DATAGRAM..]);
    }

    #[test]
    fn the_headers_are_those_of_flannels_udp_backend() {
        let outer = Outer {
            source: Addr4::new([10, 99, 0, 1]),
            destination: Addr4::new([10, 99, 0, 2]),
            tos: 0,
            identification: 0x7b52,
            dont_fragment: true,
            source_port: 8285,
            port: 8285u16.to_be_bytes(),
            payload: 84,
        };
        assert_eq!(datagram(&outer), SEEN_UDP[ETHERNET..]);
    }

    #[test]
    fn the_headers_over_ipv6_are_those_of_scapy() {
        let address = |text: &str| Addr6::from(text.parse::<core::net::Ipv6Addr>().unwrap());
        let outer = Outer::<Addr6> {
            source: address("fd99::1"),
            destination: address("fd99::2"),
            tos: 2,
            identification: 0,
            dont_fragment: false,
            source_port: 0xd87a,
            port: 8472u16.to_be_bytes(),
            payload: (VXLAN + ETHERNET + 104) as u32,
        };
        let vxlan = Vxlan {
            vni: 1,
            destination_mac: [0xfa, 0x3c, 0x34, 0x4c, 0x9c, 0xf0],
            source_mac: [0x52, 0x4a, 0xf5, 0x2a, 0x76, 0xbf],
            ethertype: ETHERTYPE_IPV6,
        };
        let mut out = [BLANK; DATAGRAM6 + VXLAN + ETHERNET];
        outer.write(out.first_chunk_mut().unwrap());
        vxlan.write(out.last_chunk_mut().unwrap());
        assert_eq!(out, BY_SCAPY);
    }

    #[test]
    fn source_ports_stay_in_range_and_spread() {
        let mut seen = [false; 64];
        for flow in 0..4096u32 {
            let port = source_port(flow.wrapping_mul(0x9e37_79b1), 49152, 16384);
            assert!(port >= 49152);
            seen[usize::from(port - 49152) / 256] = true;
        }
        assert!(seen.iter().all(|bucket| *bucket));
        assert_eq!(source_port(u32::MAX, 49152, 1), 49152);
    }
}
