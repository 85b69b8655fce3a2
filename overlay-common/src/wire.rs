//! The bytes around an inner frame: VXLAN over UDP over IPv4 (RFC 7348 section 5), written once as an array.
use crate::checksum;

/// Length of an Ethernet header without a VLAN tag.
pub const ETHERNET: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Length of a UDP header.
pub const UDP: usize = 8;
/// Length of a VXLAN header.
pub const VXLAN: usize = 8;
/// What encapsulation adds to a frame: outer IPv4, UDP, VXLAN and the inner Ethernet header.
pub const OVERHEAD: usize = IPV4 + UDP + VXLAN + ETHERNET;
/// From the first byte of an encapsulated frame to its inner IPv4 header.
pub const INNER: usize = ETHERNET + OVERHEAD;
/// EtherType of IPv4, network order.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// The I flag: the VNI is valid (RFC 7348 section 5: "MUST be set to 1 for a valid VXLAN Network ID").
pub const VXLAN_VNI_VALID: u8 = 0x08;
/// TTL of the outer header, as the kernel's device sets it for flannel.
pub const OUTER_TTL: u8 = if cfg!(feature = "next-program") { 63 } else { 64 };
/// Largest VNI plus one.
pub const VNI_END: u32 = 1 << 24;

/// Everything that differs from one outer header to the next.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// This host's underlay address.
    pub source: [u8; 4],
    /// The peer's underlay address.
    pub destination: [u8; 4],
    /// Type of service byte; only the ECN bits are ever set (RFC 6040 section 4.1, DSCP zero as the kernel's default).
    pub tos: u8,
    /// Identification: any value that differs from packet to packet, since DF may be clear.
    pub identification: u16,
    /// Set DF.
    pub dont_fragment: bool,
    /// UDP source port, in the machine's order, from the inner flow's hash (RFC 7348 section 5).
    pub source_port: u16,
    /// UDP destination port, network order.
    pub port: [u8; 2],
    /// VXLAN network identifier.
    pub vni: u32,
    /// The peer's VtepMAC.
    pub inner_destination_mac: [u8; 6],
    /// Our VtepMAC.
    pub inner_source_mac: [u8; 6],
    /// Length of the inner IP packet in bytes. Of a GSO frame this is the whole frame's: the kernel writes each segment's own.
    pub inner_length: u32,
}

impl Outer {
    /// Writes the headers from the outer IPv4 header up to and with the inner Ethernet header; the outer Ethernet header
    /// is the neighbour subsystem's. The UDP checksum is zero (RFC 7348 section 5: "SHOULD be transmitted as zero").
    /// In place: the BPF stack has no room for copies.
    #[inline(always)]
    pub fn write(&self, out: &mut [u8; OVERHEAD]) {
        out[0] = 0x45;
        out[1] = self.tos;
        // Beyond 65,535 only in GSO frames, whose length the kernel writes anew for each segment.
        out[2..4].copy_from_slice(&((self.inner_length + OVERHEAD as u32) as u16).to_be_bytes());
        out[4..6].copy_from_slice(&self.identification.to_be_bytes());
        out[6] = if self.dont_fragment { 0x40 } else { 0 };
        out[7] = 0;
        out[8] = OUTER_TTL;
        out[9] = 17;
        out[10..12].fill(0);
        out[12..16].copy_from_slice(&self.source);
        out[16..20].copy_from_slice(&self.destination);
        let sum = checksum::finish(checksum::sum_words(out, 0, IPV4));
        out[10..12].copy_from_slice(&sum.to_be_bytes());

        out[20..22].copy_from_slice(&self.source_port.to_be_bytes());
        out[22..24].copy_from_slice(&self.port);
        let udp_length = self.inner_length + (UDP + VXLAN + ETHERNET) as u32;
        out[24..26].copy_from_slice(&(udp_length as u16).to_be_bytes());
        out[26..28].fill(0);

        let [_, a, b, c] = self.vni.to_be_bytes();
        out[28..36].copy_from_slice(&[VXLAN_VNI_VALID, 0, 0, 0, a, b, c, 0]);

        out[36..42].copy_from_slice(&self.inner_destination_mac);
        out[42..48].copy_from_slice(&self.inner_source_mac);
        out[48..50].copy_from_slice(&ETHERTYPE_IPV4);
    }

    /// The headers as [`Self::write`] writes them.
    pub fn to_bytes(&self) -> [u8; OVERHEAD] {
        // Whatever is left unwritten shows.
        let mut out = [0xa5; OVERHEAD];
        self.write(&mut out);
        out
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

    #[test]
    fn the_header_is_the_one_a_kernel_vxlan_device_writes() {
        let outer = Outer {
            source: [10, 99, 0, 1],
            destination: [10, 99, 0, 2],
            tos: 0,
            identification: 0x05dc,
            dont_fragment: false,
            source_port: 0xd87a,
            port: 8472u16.to_be_bytes(),
            vni: 1,
            inner_destination_mac: [0xfa, 0x3c, 0x34, 0x4c, 0x9c, 0xf0],
            inner_source_mac: [0x52, 0x4a, 0xf5, 0x2a, 0x76, 0xbf],
            inner_length: 84,
        };
        assert_eq!(outer.to_bytes(), SEEN[ETHERNET..]);
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
