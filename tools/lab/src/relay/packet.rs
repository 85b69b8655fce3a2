//! What flannel's relay does with a packet: it decrements the TTL, or answers the sender.
use std::net::Ipv4Addr;

/// Decrements the TTL. Returns false if that leaves nothing; flannel then drops the packet silently.
pub(super) fn take_one_hop(packet: &mut [u8]) -> bool {
    if packet[8] <= 1 {
        return false;
    }
    packet[8] -= 1;
    // RFC 1624, equation 3: the word of TTL and protocol became smaller by 0x0100. A checksum that was wrong stays
    // wrong.
    let sum = u32::from(!u16::from_be_bytes([packet[10], packet[11]])) + u32::from(!0x0100_u16);
    packet[10..12].copy_from_slice(&(!folded(sum)).to_be_bytes());
    true
}

/// The ICMP message "network unreachable" about a packet. There is none about an ICMP packet, nor about a fragment that
/// is not the first.
pub(super) fn net_unreachable(own: Ipv4Addr, packet: &[u8]) -> Option<Vec<u8>> {
    const ICMP: u8 = 1;
    let offset = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff;
    if packet[9] == ICMP || offset != 0 {
        return None;
    }
    let header = usize::from(packet[0] & 0xf) * 4;
    let quoted = &packet[..packet.len().min(header + 8)];
    let length = u16::try_from(28 + quoted.len()).ok()?;
    let mut answer = vec![0x45, 0];
    answer.extend(length.to_be_bytes());
    // The id and the fragment offset are 0, the TTL is 8.
    answer.extend([0, 0, 0, 0, 8, ICMP, 0, 0]);
    answer.extend(own.octets());
    answer.extend(&packet[12..16]);
    // Type 3, code 0.
    answer.extend([3, 0, 0, 0, 0, 0, 0, 0]);
    answer.extend(quoted);
    let (ip, icmp) = answer.split_at_mut(20);
    for (part, at) in [(ip, 10), (icmp, 2)] {
        let words =
            part.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
        let sum = !folded(words.sum());
        part[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    Some(answer)
}

/// RFC 1071's ones' complement sum, from a sum of words.
fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of a frame that flannel sent: a ping request from 10.244.66.2 to 10.244.31.2, as the sending host's
    /// stack left it.
    const PING: [u8; 20] = [
        0x45, 0x00, 0x00, 0x54, 0xf1, 0xf3, 0x40, 0x00, 0x3f, 0x01, 0xd2, 0xc9, 0x0a, 0xf4, 0x42, 0x02, 0x0a,
        0xf4, 0x1f, 0x02,
    ];

    #[test]
    fn a_hop_changes_what_flannels_changes() {
        let mut packet = PING;
        assert!(take_one_hop(&mut packet));
        let mut expected = PING;
        expected[8..12].copy_from_slice(&[0x3e, 0x01, 0xd3, 0xc9]);
        assert_eq!(packet, expected);
        packet[8] = 1;
        assert!(!take_one_hop(&mut packet));
    }

    #[test]
    fn nobodys_packets_are_answered_as_flannel_answers() {
        // TCP, 60 bytes, from 10.244.82.2.
        let mut packet = [0; 60];
        packet[..20].copy_from_slice(&PING);
        packet[3] = 60;
        packet[9] = 6;
        packet[12..16].copy_from_slice(&[10, 244, 82, 2]);
        let answer = net_unreachable(Ipv4Addr::new(10, 244, 82, 0), &packet).unwrap();
        // These bytes are from a capture of flannel's answer.
        let header = [
            0x45, 0x00, 0x00, 0x38, 0x00, 0x00, 0x00, 0x00, 0x08, 0x01, 0xf8, 0xdb, 0x0a, 0xf4, 0x52, 0x00,
            0x0a, 0xf4, 0x52, 0x02,
        ];
        assert_eq!(answer[..20], header);
        assert_eq!(answer[20..22], [3, 0]);
        assert_eq!(answer[28..], packet[..28]);
        let words = answer[20..].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        assert_eq!(folded(words.sum()), 0xffff);

        packet[7] = 1;
        assert_eq!(net_unreachable(Ipv4Addr::UNSPECIFIED, &packet), None, "a later fragment");
        assert_eq!(net_unreachable(Ipv4Addr::UNSPECIFIED, &PING), None, "ICMP");
    }
}
