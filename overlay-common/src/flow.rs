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

    /// Whether it is the same connection. The derived comparison calls a function that programs do not have.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        let ports = |key: &Self| key.ports.map(u16::from_ne_bytes);
        let ([a, b], [c, d]) = (self.addresses, other.addresses);
        let ([e, f], [g, h]) = (ports(self), ports(other));
        a.raw() == c.raw() && b.raw() == d.raw() && e == g && f == h && self.protocol == other.protocol
    }

    /// Where in a half of `FLOW_MARKS` the connection's mark stands.
    #[inline(always)]
    pub fn bucket(&self) -> u32 {
        // Multiplicative hashing by the golden ratio: the high bits depend on all of the word.
        let [a, b] = self.addresses.map(A::folded);
        let word = u64::from(a) << 32 | u64::from(b ^ self.both_ports());
        (word.wrapping_mul(GOLDEN) >> (64 - MARK_BUCKETS.trailing_zeros())) as u32
    }

    /// A hash of the connection, the same for both directions, on every host of the same byte order, and at all times. It is never
    /// zero.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        // Another odd number. Multiplication carries upwards alone, so the upper half is folded into the lower in between. One
        // round less is enough for ports by chance, but leaves regular ones, every second port say, on few paths.
        const ODD: u64 = 0xd6e8_feb8_6659_fd93;
        let [a, b] = self.addresses.map(A::folded);
        let addresses = (u64::from(a) << 32 | u64::from(b)).wrapping_mul(GOLDEN);
        let rest = u64::from(self.protocol) << 32 | u64::from(self.both_ports());
        let mixed = (addresses ^ addresses >> 32 ^ rest).wrapping_mul(ODD);
        let hash = ((mixed ^ mixed >> 32).wrapping_mul(GOLDEN) >> 32) as u32;
        if hash == 0 { 1 } else { hash }
    }

    #[inline(always)]
    fn both_ports(&self) -> u32 {
        let [[a, b], [c, d]] = self.ports;
        u32::from_ne_bytes([a, b, c, d])
    }
}

/// The golden ratio's part behind the point, times 2^64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Marks in each half of `FLOW_MARKS`.
pub const MARK_BUCKETS: u32 = 2048;

/// A packet was seen whose source is the key's first address.
pub const FLOW_FORWARD: u32 = 1 << 0;
/// A packet was seen whose source is the key's second address. With both bits, the connection is an established one.
pub const FLOW_BACKWARD: u32 = 1 << 1;
/// The last TCP packet seen had FIN or RST: the stack flow then lives as long as conntrack keeps a closing connection
/// (120 s at least), no longer as long as an open one.
pub const FLOW_CLOSING: u32 = 1 << 2;
/// The stack has sent a packet of it towards a peer, as the container sent it: it was seen at the ingress of the container's veth,
/// and right after that at overlay0's egress, behind every hook of the host's firewall.
pub const FLOW_SENT: u32 = 1 << 3;
/// The stack has delivered a packet of it that a peer sent: it was seen at the egress of the container's veth, likewise.
pub const FLOW_DELIVERED: u32 = 1 << 4;
/// The connection has packets that only the stack can carry (fragments, and what has to be fragmented), so that it is never
/// promoted. The first packet of a later connection with the same ports takes the bit away.
pub const FLOW_KEPT: u32 = 1 << 5;
/// The first packet of the connection came from the key's second address.
pub const FLOW_BEGUN_BACKWARD: u32 = 1 << 6;
/// The promotion epoch in which `FLOW_SENT` and `FLOW_DELIVERED` were set. They mean nothing in another epoch. The epoch lies
/// in the same word as the bits, so that no CPU can see or write one without the other.
pub const FLOW_EPOCH: u32 = 0xffff_ff00;

/// A promotion epoch, as it stands in the state of a flow. It begins anew after 2^24 changes, which take half a year even at
/// one in a second; no flow lives that long without a packet.
#[inline(always)]
pub const fn epoch_bits(epoch: u32) -> u32 {
    epoch << FLOW_EPOCH.trailing_zeros()
}

/// Whether the connection of a stack flow in this state takes the fast path: in this epoch the stack has carried it in both
/// directions, under one key. A connection that is translated never has `FLOW_SENT`: its packets leave the stack with another key
/// than they entered it with.
#[inline(always)]
pub const fn is_promoted(state: u32, epoch: u32) -> bool {
    const BOTH: u32 = FLOW_SENT | FLOW_DELIVERED;
    state & (FLOW_EPOCH | FLOW_KEPT | BOTH) == epoch_bits(epoch) | BOTH
}

/// The state after the stack has carried a packet in the direction `carried` (`FLOW_SENT` or `FLOW_DELIVERED`). What another
/// epoch's firewall accepted does not count.
#[inline(always)]
pub const fn after_carrying(state: u32, epoch: u32, carried: u32) -> u32 {
    let state = if state & FLOW_EPOCH == epoch_bits(epoch) {
        state
    } else {
        state & !(FLOW_EPOCH | FLOW_SENT | FLOW_DELIVERED) | epoch_bits(epoch)
    };
    state | carried
}

const _: () = assert!(size_of::<FlowKey>() == 16);

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{collections::HashSet, vec, vec::Vec};

    use super::*;
    use crate::wire::source_port;

    #[test]
    fn flow_key_is_the_same_for_both_directions() {
        let (a, b) = (Addr4::new([10, 244, 1, 2]), Addr4::new([10, 244, 2, 1]));
        let (p, q) = ([0x12, 0x34], [0x00, 0x50]);
        assert_eq!(FlowKey::new(a, b, [p, q], 6), FlowKey::new(b, a, [q, p], 6));
        assert_eq!(FlowKey::new(a, a, [p, q], 6), FlowKey::new(a, a, [q, p], 6));
        assert_ne!(FlowKey::new(a, b, [p, q], 6), FlowKey::new(a, b, [q, p], 6));
        assert_ne!(FlowKey::new(a, b, [p, q], 6), FlowKey::new(a, b, [p, q], 17));
        let all =
            [(a, b, [p, q], 6), (a, b, [q, p], 6), (a, b, [p, q], 17), (a, a, [p, q], 6), (b, b, [p, q], 6)];
        let all = all.map(|(from, to, ports, protocol)| FlowKey::new(from, to, ports, protocol));
        for one in all {
            for other in all {
                assert_eq!(one.is(&other), one == other, "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn both_directions_in_one_epoch_promote() {
        let sent = after_carrying(FLOW_FORWARD, 7, FLOW_SENT);
        assert!(!is_promoted(sent, 7));
        let both = after_carrying(sent, 7, FLOW_DELIVERED);
        assert!(is_promoted(both, 7));
        assert_eq!(both & FLOW_FORWARD, FLOW_FORWARD);
        assert!(!is_promoted(both | FLOW_KEPT, 7));
        // The next epoch starts from nothing.
        assert!(!is_promoted(both, 8));
        let again = after_carrying(both, 8, FLOW_SENT);
        assert!(!is_promoted(again, 8) && !is_promoted(again, 7));
        assert!(is_promoted(after_carrying(again, 8, FLOW_DELIVERED), 8));
        // The epoch's number is cut to 24 bits on both sides.
        assert!(is_promoted(after_carrying(after_carrying(0, 1 << 24, FLOW_SENT), 0, FLOW_DELIVERED), 0));
    }

    /// How many source ports a set of connections has, and how far their numbers in the classes by `class` are from equal (chi
    /// squared by degrees of freedom, which is 1 by chance).
    fn spread(keys: &[FlowKey], classes: usize, class: impl Fn(u16) -> usize) -> (usize, f64) {
        let ports: Vec<u16> = keys.iter().map(|key| source_port(key.hash(), 49152, 16384)).collect();
        let mut urns = vec![0.0_f64; classes];
        ports.iter().for_each(|port| urns[class(*port)] += 1.0);
        let expected = keys.len() as f64 / classes as f64;
        let chi: f64 = urns.iter().map(|balls| (balls - expected).powi(2) / expected).sum();
        let different = ports.into_iter().collect::<HashSet<_>>().len();
        (different, chi / (classes - 1) as f64)
    }

    #[test]
    fn connections_of_every_pattern_spread_over_the_source_ports() {
        let key = |source, destination, ports: [u16; 2], protocol| {
            let ports = ports.map(u16::to_be_bytes);
            FlowKey::new(Addr4::new(source), Addr4::new(destination), ports, protocol)
        };
        let (a, b) = ([10, 244, 1, 2], [10, 244, 2, 7]);
        let host = |first: u8, number: u16| [10, 244, first + (number / 200) as u8, 2 + (number % 200) as u8];
        let of = |make: &dyn Fn(u16) -> FlowKey| (0..4000).map(make).collect::<Vec<_>>();
        let patterns = [
            ("one port after the other", of(&|i| key(a, b, [32768 + i, 80], 6))),
            ("every second port", of(&|i| key(a, b, [32768 + 2 * i, 443], 6))),
            ("to the lower address", of(&|i| key(b, a, [32768 + i, 443], 17))),
            ("many clients", of(&|i| key(host(1, i), b, [40000, 5432], 6))),
            ("many servers", of(&|i| key(a, host(9, i), [50000 + i % 3, 8080], 17))),
            ("both ports alike", of(&|i| key(a, b, [1024 + i, 1024 + i], 17))),
            ("a scan of ports", of(&|i| key(a, b, [45000, 1 + i], 6))),
            ("a grid", of(&|i| key(host(1, i % 16), host(9, i / 16 % 16), [40000 + i / 256, 53], 17))),
        ];
        for (name, keys) in patterns {
            let many = keys.len() as f64;
            let by_chance = 16384.0 * (1.0 - (1.0 - 1.0 / 16384.0_f64).powf(many));
            let (different, upper) = spread(&keys, 64, |port| usize::from(port - 49152) >> 8);
            assert!(different as f64 > by_chance * 0.97, "{name}: {different} of {by_chance:.0}");
            let (_, lower) = spread(&keys, 64, |port| usize::from(port) & 63);
            // 1.6 is more than three standard deviations above the mean.
            assert!(upper < 1.6 && lower < 1.6, "{name}: {upper:.2} {lower:.2}");
        }
    }

    #[test]
    fn a_hash_is_of_the_whole_connection_and_of_both_directions() {
        let (a, b) = (Addr4::new([10, 244, 1, 2]), Addr4::new([10, 244, 2, 1]));
        let hash = |from, to, [p, q]: [u16; 2], protocol| {
            FlowKey::new(from, to, [p.to_be_bytes(), q.to_be_bytes()], protocol).hash()
        };
        let one = hash(a, b, [4000, 80], 6);
        assert_eq!(one, hash(b, a, [80, 4000], 6));
        for other in [hash(a, b, [4000, 80], 17), hash(a, b, [80, 4000], 6), hash(a, a, [4000, 80], 6)] {
            assert_ne!(one, other);
        }
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
