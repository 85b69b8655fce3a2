//! Transport checksums that a device was still to finish. A virtual device hands frames over with such checksums
//! (CHECKSUM_PARTIAL) and says so beside the frame; a socket passes on the bytes alone.
use overlay_common::{
    checksum,
    header::{
        ipv4::{self, offset},
        protocol, tcp, udp,
    },
    wire::IPV4,
};

/// Finishes the transport checksum of an IPv4 packet, if it is unfinished. Any other packet stays as it is.
pub(super) fn finish(packet: &mut [u8]) {
    let Some(header) = packet.first_chunk::<IPV4>().copied() else { return };
    let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let address = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
    let is_fragment = half(offset::FRAGMENT) & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET) != 0;
    if header[offset::VERSION] >> 4 != 4 || is_fragment {
        return;
    }
    let at = match header[offset::PROTOCOL] {
        protocol::TCP => tcp::offset::CHECKSUM,
        protocol::UDP => udp::offset::CHECKSUM,
        _ => return,
    };
    let (start, end) = (usize::from(header[offset::VERSION] & 15) * 4, usize::from(half(offset::LENGTH)));
    let Some(transport) = packet.get_mut(start..end) else { return };
    let is_udp = header[offset::PROTOCOL] == protocol::UDP;
    let pseudo_header = checksum::pseudo_header(
        address(offset::SOURCE),
        address(offset::DESTINATION),
        header[offset::PROTOCOL],
        transport.len() as u16,
    );
    let field = transport.get(at..at + 2).map(|field| u16::from_be_bytes([field[0], field[1]]));
    match field {
        // "All zero [...] means that the transmitter generated no checksum" (RFC 768).
        None => return,
        Some(0) if is_udp => return,
        Some(field) if !checksum::is_unfinished(field, pseudo_header) => return,
        Some(_) => {}
    }
    // The field holds the sum of the pseudo-header already. A finished checksum that looks so by chance, one in 65,535, comes out
    // as what it was.
    let words = transport
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low)));
    let finished = match checksum::finish(words.sum()) {
        0 if is_udp => 0xffff,
        finished => finished,
    };
    transport[at..at + 2].copy_from_slice(&finished.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    /// A packet of each protocol as the oracle wrote it, and where its checksum is.
    fn packets() -> [(Vec<u8>, usize); 3] {
        let ip = || PacketBuilder::ipv4([10, 244, 1, 2], [10, 244, 2, 3], 64);
        let (mut tcp, mut odd, mut even) = (Vec::new(), Vec::new(), Vec::new());
        ip().tcp(4000, 80, 7, 1000).write(&mut tcp, b"data").unwrap();
        ip().udp(4000, 80).write(&mut odd, b"odd").unwrap();
        ip().udp(4000, 80).write(&mut even, b"even").unwrap();
        [(tcp, 36), (odd, 26), (even, 26)]
    }

    /// The same as a virtual device would hand it over.
    fn unfinished(packet: &[u8], at: usize) -> Vec<u8> {
        let addresses: [[u8; 4]; 2] =
            [packet[12..16].try_into().unwrap(), packet[16..20].try_into().unwrap()];
        let length = packet.len() as u16 - 20;
        let sum = checksum::pseudo_header(addresses[0], addresses[1], packet[9], length);
        let mut packet = packet.to_vec();
        packet[at..at + 2].copy_from_slice(&(!checksum::finish(sum)).to_be_bytes());
        packet
    }

    #[test]
    fn an_unfinished_checksum_becomes_the_oracles() {
        for (right, at) in packets() {
            let mut packet = unfinished(&right, at);
            assert_ne!(packet, right);
            finish(&mut packet);
            assert_eq!(packet, right);
            finish(&mut packet);
            assert_eq!(packet, right, "a finished one stays");
        }
    }

    #[test]
    fn what_is_not_understood_stays_as_it_is() {
        let [(tcp, at), (udp, udp_at), _] = packets();
        let altered = |packet: &[u8], at: usize, byte: u8| {
            let mut packet = packet.to_vec();
            packet[at] = byte;
            packet
        };
        let partial = unfinished(&tcp, at);
        let mut without = udp;
        without[udp_at..udp_at + 2].fill(0);
        for packet in [
            altered(&partial, 0, 0x65),
            altered(&partial, 0, 0x4f),
            altered(&partial, 6, 0x20),
            altered(&partial, 7, 1),
            altered(&partial, 3, 0xff),
            altered(&partial, 9, 1),
            altered(&tcp, at, tcp[at] ^ 0x40),
            partial[..30].to_vec(),
            partial[..10].to_vec(),
            without,
            Vec::new(),
        ] {
            let mut same = packet.clone();
            finish(&mut same);
            assert_eq!(same, packet);
        }
    }
}
