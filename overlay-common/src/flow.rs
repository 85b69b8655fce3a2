//! A connection: the key of a stack flow, and the bits of its state.
use crate::{Addr4, Address};

/// Key of `STACK_FLOWS`: a connection, the same for both directions (the lower address, as raw bytes, comes first).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey<A = Addr4> {
    /// The two addresses, ordered together with their ports.
    pub addresses: [A; 2],
    /// Ports of the two; for ICMP echo the identifier twice; zero for other protocols.
    pub ports: [[u8; 2]; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub reserved: [u8; 3],
}

impl<A: Address> FlowKey<A> {
    /// The key of a packet, and of its replies.
    #[inline(always)]
    pub fn new(source: A, destination: A, ports: [[u8; 2]; 2], protocol: u8) -> Self {
        let swap = source.raw() > destination.raw()
            || (source.raw() == destination.raw()
                && u16::from_ne_bytes(ports[0]) > u16::from_ne_bytes(ports[1]));
        let (addresses, ports) =
            if swap { ([destination, source], [ports[1], ports[0]]) } else { ([source, destination], ports) };
        Self { addresses, ports, protocol, reserved: [0; 3] }
    }

    /// Where in a half of `FLOW_MARKS` the connection's mark stands.
    #[inline(always)]
    pub fn bucket(&self) -> u32 {
        // Multiplicative hashing by the golden ratio: the high bits depend on all of the word.
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let [a, b] = self.addresses.map(A::folded);
        let [[c, d], [e, f]] = self.ports;
        let word = u64::from(a) << 32 | u64::from(b ^ u32::from_ne_bytes([c, d, e, f]));
        (word.wrapping_mul(GOLDEN) >> (64 - MARK_BUCKETS.trailing_zeros())) as u32
    }
}

/// Marks in each half of `FLOW_MARKS`.
pub const MARK_BUCKETS: u32 = 2048;

/// A packet was seen whose source is the key's first address.
pub const FLOW_FORWARD: u32 = 1 << 0;
/// A packet was seen whose source is the key's second address. With both bits, the connection is an established one.
pub const FLOW_BACKWARD: u32 = 1 << 1;
/// The last TCP packet seen had FIN or RST: the stack flow then lives as long as conntrack keeps a closing connection
/// (120 s at least), no longer as long as an open one.
pub const FLOW_CLOSING: u32 = 1 << 2;

const _: () = assert!(size_of::<FlowKey>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flow_key_is_the_same_for_both_directions() {
        let (a, b) = (Addr4::new([10, 244, 1, 2]), Addr4::new([10, 244, 2, 1]));
        let (p, q) = ([0x12, 0x34], [0x00, 0x50]);
        assert_eq!(FlowKey::new(a, b, [p, q], 6), FlowKey::new(b, a, [q, p], 6));
        assert_eq!(FlowKey::new(a, a, [p, q], 6), FlowKey::new(a, a, [q, p], 6));
        assert_ne!(FlowKey::new(a, b, [p, q], 6), FlowKey::new(a, b, [q, p], 6));
        assert_ne!(FlowKey::new(a, b, [p, q], 6), FlowKey::new(a, b, [p, q], 17));
    }

    #[test]
    fn connections_spread_over_the_marks() {
        let (a, b) = (Addr4::new([10, 244, 1, 2]), Addr4::new([10, 244, 2, 1]));
        let bucket = |port: u16| FlowKey::new(a, b, [port.to_be_bytes(), [0, 80]], 6).bucket();
        let mut urns = [0_u32; MARK_BUCKETS as usize];
        for port in 40000..41000 {
            urns[bucket(port) as usize] += 1;
        }
        // 1000 balls in 2048 urns leave 2048 * (1 - e^(-1000 / 2048)) = 791 with one, by chance.
        let taken = urns.iter().filter(|balls| **balls > 0).count();
        assert!(taken > 700, "{taken}");
    }
}
