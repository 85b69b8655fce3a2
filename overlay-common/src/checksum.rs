//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624), without loops over packet-sized data.

/// Folds a sum of 16-bit words into 16 bits and complements it (RFC 1071 section 1).
/// A sum of up to 65,535 words fits; two folds take any `u32` below 16 bits.
#[inline(always)]
pub const fn finish(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    !(twice as u16)
}

/// The header checksum after one 16-bit word changed (RFC 1624 equation 3: HC' = ~(~HC + ~m + m')).
/// All three as the machine reads them, or all three as big-endian numbers: the order of the bytes is the same for the result.
#[inline(always)]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    finish((!checksum) as u32 + (!old) as u32 + new as u32)
}

/// Sum of the pseudo-header of TCP (RFC 9293 section 3.1) or UDP (RFC 768): addresses, protocol, and `length`, the bytes
/// from the transport header on.
#[inline(always)]
pub const fn pseudo_header(source: [u8; 4], destination: [u8; 4], protocol: u8, length: u16) -> u32 {
    sum_words(&source, 0, 4) + sum_words(&destination, 0, 4) + protocol as u32 + length as u32
}

/// Whether a transport checksum is one that a device was still to finish (CHECKSUM_PARTIAL): the field then holds the
/// folded sum of the pseudo-header, not complemented. A finished one looks the same once in 65,535 packets.
#[inline(always)]
pub const fn is_unfinished(field: u16, pseudo_header: u32) -> bool {
    // Zero has two forms in one's complement (RFC 1071 section 2).
    let (field, folded) = (field as u32, !finish(pseudo_header) as u32);
    field == folded || field ^ folded == 0xffff && (field == 0 || folded == 0)
}

/// Sum of 16-bit words, in whichever order all of them are.
#[inline(always)]
pub const fn sum<const N: usize>(words: &[u16; N]) -> u32 {
    let mut sum = 0;
    let mut at = 0;
    while at < N {
        sum += words[at] as u32;
        at += 1;
    }
    sum
}

/// Sum of `bytes[from..from + length]`, which is divisible by 4, as words of 32 bits in the machine's order, for
/// [`from_native`].
#[inline(always)]
pub const fn sum_native(bytes: &[u8], from: usize, length: usize) -> u64 {
    let mut sum = 0;
    let mut at = from;
    while at < from + length {
        sum += u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as u64;
        at += 4;
    }
    sum
}

/// Sum of the 16-bit words of `bytes[from..from + length]`, both even.
#[inline(always)]
pub const fn sum_words(bytes: &[u8], from: usize, length: usize) -> u32 {
    let mut sum = 0;
    let mut at = from;
    while at < from + length {
        sum += u16::from_be_bytes([bytes[at], bytes[at + 1]]) as u32;
        at += 2;
    }
    sum
}

/// A sum of 16-bit words that were read in the machine's order, as a sum of the same words in network order: folded, and with
/// its bytes swapped if need be (RFC 1071 section 2 (B)).
#[inline(always)]
pub const fn from_native(sum: u64) -> u32 {
    let once = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let twice = (once & 0xffff) + (once >> 16);
    let thrice = (twice & 0xffff) + (twice >> 16);
    u16::from_be(thrice as u16) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    // Outer header of a frame sent by a real VXLAN host: length 134, id 05dc, TTL 64, UDP, 10.99.0.1 to 10.99.0.2.
    const SEEN: [u8; 20] = [
        0x45, 0x00, 0x00, 0x86, 0x05, 0xdc, 0x00, 0x00, 0x40, 0x11, 0x5f, 0xc3, 0x0a, 0x63, 0x00, 0x01, 0x0a,
        0x63, 0x00, 0x02,
    ];

    #[test]
    fn a_real_header_sums_to_zero_and_gives_its_own_checksum() {
        assert_eq!(finish(sum_words(&SEEN, 0, 20)), 0);
        let words: [u16; 10] =
            core::array::from_fn(|at| u16::from_ne_bytes([SEEN[2 * at], SEEN[2 * at + 1]]));
        assert_eq!(finish(sum(&words)), 0);
        assert_ne!(finish(sum(&words.map(|word| word ^ 1))), 0);
        let mut blank = SEEN;
        blank[10..12].fill(0);
        assert_eq!(finish(sum_words(&blank, 0, 20)).to_be_bytes(), SEEN[10..12]);
    }

    #[test]
    fn a_sum_in_the_machines_order_is_told_in_network_order() {
        assert_eq!(finish(from_native(sum_native(&SEEN, 0, 20))), 0);
        assert_eq!(finish(from_native(sum_native(&SEEN, 4, 8))), finish(sum_words(&SEEN, 4, 8)));
        assert_eq!(from_native(u64::MAX >> 16), 0xffff);
    }

    // The UDP checksum of the same packet as a kernel handed it to a veth that finishes checksums: it never had to.
    #[test]
    fn an_unfinished_checksum_is_told_from_a_finished_one() {
        let pseudo = pseudo_header([10, 99, 0, 1], [10, 99, 0, 2], 17, 0x72);
        assert!(is_unfinished(0x154c, pseudo));
        for finished in [0, 0xffff, 0x154b, !0x154c] {
            assert!(!is_unfinished(finished, pseudo), "{finished:x}");
        }
        assert!(is_unfinished(0, 0xffff) && is_unfinished(0xffff, 0xffff) && is_unfinished(0xffff, 0));
        assert!(!is_unfinished(0x0ff0, 0xf00f));
    }

    #[test]
    fn update_equals_a_fresh_sum_for_every_ttl() {
        for ttl in 1..=255u8 {
            let mut header = SEEN;
            header[8] = ttl;
            header[10..12].fill(0);
            let before = finish(sum_words(&header, 0, 20));
            let old = u16::from_be_bytes([header[8], header[9]]);
            header[8] -= 1;
            let new = u16::from_be_bytes([header[8], header[9]]);
            assert_eq!(update(before, old, new), finish(sum_words(&header, 0, 20)));
            // The order of the bytes says nothing.
            let [before, old, new] = [before, old, new].map(u16::to_be);
            assert_eq!(u16::from_be(update(before, old, new)), finish(sum_words(&header, 0, 20)));
        }
    }
}
