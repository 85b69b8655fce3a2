//! What can be wrong with a frame, by name, and the cases that are made from it.
use overlay_lab::random::Random;

use crate::{
    frames::{Frame, Train, Transport},
    headers::Sum,
    twins::Nic,
    world::{CONTAINER, LOCAL, PEERS, REMOTE, SUBNET, VTEP_MAC},
};

/// Frames that belong together, and what was done to them.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) nic: Nic,
    pub(crate) frames: Vec<Vec<u8>>,
}

type Mutation = (&'static str, fn(&mut Frame, &mut Random));

/// The mutations, each of which breaks a frame in one way.
const MUTATIONS: &[Mutation] = &[
    ("cut", |frame, random| frame.cut = Some(14 + random.below(120))),
    ("inner cut, outer lengths right", |frame, random| frame.inner_cut = Some(random.below(60))),
    ("bytes behind the outer packet", |frame, random| frame.trailer = 1 + random.below(64)),
    ("bytes behind the inner packet", |frame, random| frame.inner_trailer = 1 + random.below(64)),
    ("outer options", |frame, random| frame.ip.options = options(random)),
    ("inner options", |frame, random| frame.inner.options = options(random)),
    ("outer fragment", |frame, random| {
        frame.ip.fragment = random.one(&[0x2000, 0x0001, 0x2005, 0x1fff, 0x4000, 0x8000]);
        frame.ip.id |= 0x8000;
    }),
    ("inner fragment", |frame, random| {
        frame.inner.fragment = random.one(&[0x2000, 0x0001, 0x2005, 0x1fff, 0x4000, 0x8000]);
    }),
    ("outer fragments", |frame, random| {
        let train = [Train::InOrder, Train::Reversed, Train::Twice, Train::Incomplete, Train::Overlapping];
        frame.train = Some((random.one(&train), 8 + random.below(80)));
        frame.ip.id |= 0x8000;
    }),
    ("with its answer", |frame, _| frame.answered = true),
    ("no encapsulation", |frame, random| {
        frame.unencapsulated = true;
        frame.inner.from =
            random.one(&[REMOTE, [10, 244, 3, 7], [10, 244, 99, 1], CONTAINER, PEERS[0].0, [192, 0, 2, 1]]);
    }),
    ("no I flag", |frame, _| frame.vxlan[0] = 0),
    ("reserved bits", |frame, random| {
        let at = random.one(&[0, 1, 2, 3, 7]);
        frame.vxlan[at] ^= 1 << random.below(8);
    }),
    ("wrong VNI", |frame, random| {
        let at = 4 + random.below(3);
        frame.vxlan[at] ^= 1 << random.below(8);
    }),
    ("outer length lies", |frame, random| frame.ip.lie = lie(random)),
    ("UDP length lies", |frame, random| frame.udp_lie = lie(random)),
    ("inner length lies", |frame, random| frame.inner.lie = lie(random)),
    ("outer header checksum", |frame, _| frame.ip.sum = Sum::Wrong),
    ("inner header checksum", |frame, _| frame.inner.sum = Sum::Wrong),
    ("valid outer UDP checksum", |frame, _| frame.udp_sum = Sum::Right),
    ("broken outer UDP checksum", |frame, _| frame.udp_sum = Sum::Wrong),
    ("inner transport checksum", |frame, random| {
        frame.transport_sum = random.one(&[Sum::Wrong, Sum::Zero]);
    }),
    ("broken inner behind valid outer checksum", |frame, _| {
        frame.udp_sum = Sum::Right;
        frame.transport_sum = Sum::Wrong;
    }),
    ("outer source", |frame, random| {
        frame.ip.from = random.one(&[
            [10, 99, 0, 66],
            PEERS[1].0,
            LOCAL,
            [192, 0, 2, 9],
            CONTAINER,
            [127, 0, 0, 1],
            [0; 4],
            [255; 4],
            [224, 0, 0, 1],
        ]);
    }),
    ("outer destination", |frame, random| {
        frame.ip.to = random.one(&[[10, 99, 0, 255], [255; 4], [224, 0, 0, 1], [127, 0, 0, 1], [0; 4]]);
    }),
    ("outer destination MAC", |frame, random| {
        frame.ethernet.to = random.one(&[[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [6, 0, 0, 0, 0, 9], [0; 6]]);
    }),
    ("outer VLAN tag", |frame, random| frame.ethernet.tag = Some(random.one(&[0, 1, 5, 0x2000, 0x0fff]))),
    ("outer type", |frame, random| frame.ethernet.kind = random.one(&[0x0806, 0x86dd, 0x8847, 0x88cc])),
    ("outer protocol", |frame, random| frame.ip.protocol = random.one(&[1, 2, 4, 6, 41, 47, 132, 255])),
    ("UDP port", |frame, random| {
        let at = random.below(2);
        frame.ports[at] = random.one(&[0, 4789, 8473, 53, 65_535]);
    }),
    ("inner source", |frame, random| {
        frame.inner.from = random.one(&[
            [10, 244, 3, 7],
            [10, 244, 9, 1],
            [10, 244, 63, 255],
            [10, 244, 64, 0],
            [10, 244, 99, 1],
            CONTAINER,
            [10, 244, 1, 1],
            [10, 244, 1, 0],
            [10, 244, 1, 9],
            [10, 244, 2, 0],
            [10, 244, 2, 255],
            [10, 244, 255, 255],
            PEERS[0].0,
            LOCAL,
            [192, 0, 2, 1],
            [255; 4],
            [127, 0, 0, 1],
            [0; 4],
            [224, 0, 0, 5],
            [240, 0, 0, 1],
        ]);
    }),
    ("inner destination", |frame, random| {
        frame.inner.to = random.one(&[
            [SUBNET[0], SUBNET[1], SUBNET[2], 9],
            [10, 244, 1, 1],
            [10, 244, 1, 0],
            [10, 244, 1, 255],
            [10, 244, 255, 255],
            [10, 244, 3, 7],
            [10, 244, 9, 7],
            [10, 244, 99, 7],
            REMOTE,
            LOCAL,
            PEERS[1].0,
            [192, 0, 2, 1],
            [255; 4],
            [224, 0, 0, 251],
            [127, 0, 0, 1],
            [0; 4],
        ]);
    }),
    ("inner destination MAC", |frame, random| {
        frame.inner_ethernet.to =
            random.one(&[[0xff; 6], [1, 0, 0x5e, 0, 0, 0xfb], [2, 0, 0, 0, 0, 9], [0; 6], [0x33; 6]]);
    }),
    ("inner source MAC", |frame, random| {
        frame.inner_ethernet.from = random.one(&[VTEP_MAC, [0xff; 6], [0; 6], [1, 0, 0x5e, 0, 0, 1]]);
    }),
    ("inner VLAN tag", |frame, random| {
        frame.inner_ethernet.tag = Some(random.one(&[0, 1, 0x2000, 0x0fff]));
    }),
    ("inner type", |frame, random| {
        frame.inner_ethernet.kind = random.one(&[0x0806, 0x86dd, 0x0000, 0x88cc, 0x05dc]);
    }),
    ("ARP inside", |frame, random| {
        frame.inner_ethernet.kind = 0x0806;
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1 + (random.byte() & 1)];
        arp.extend([&[2, 0, 0, 0, 0, 2], REMOTE.as_slice(), &[0; 6], &CONTAINER].concat());
        frame.instead = Some(arp);
    }),
    ("IPv6 inside", |frame, _| {
        frame.inner_ethernet.kind = 0x86dd;
        // The header has version, no next header and hop limit; the packet goes to ff02::1 from fe80::2.
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, 59, 255, 0xfe, 0x80];
        packet.extend([0; 13]);
        packet.extend([2, 0xff, 2]);
        packet.extend([0; 13]);
        packet.push(1);
        frame.instead = Some(packet);
    }),
    ("double encapsulation", |frame, random| {
        let inside = Frame::valid(random.number() as u32, Transport::Udp, 8).frames().remove(0);
        frame.instead = Some(inside[14..].to_vec());
        if random.below(2) == 0 {
            // The packet is as it would come back to a container's own tunnel.
            frame.instead = None;
            frame.inner_ports = [51_234, 8472];
            frame.payload = inside[42..].to_vec();
        }
    }),
    ("inner version", |frame, random| frame.inner.version = random.one(&[0, 3, 5, 6, 15])),
    ("outer version", |frame, random| frame.ip.version = random.one(&[0, 3, 5, 6, 15])),
    ("inner TTL", |frame, random| frame.inner.ttl = random.one(&[0, 1, 2, 255])),
    ("outer TTL", |frame, random| frame.ip.ttl = random.one(&[0, 1, 2, 255])),
    ("ECN", |frame, random| {
        frame.ip.tos = random.byte();
        frame.inner.tos = random.byte();
    }),
    ("inner protocol", |frame, random| frame.inner.protocol = random.one(&[0, 2, 4, 41, 47, 50, 132, 255])),
    ("bytes flipped", |frame, random| {
        for _ in 0..1 + random.below(4) {
            let mask = 1 << random.below(8);
            frame.flips.push((random.below(110), mask));
        }
    }),
    ("bytes random", |frame, random| {
        for _ in 0..1 + random.below(8) {
            let mask = random.byte();
            frame.flips.push((14 + random.below(96), mask));
        }
    }),
];

/// A length that is wrong by a little or by much.
fn lie(random: &mut Random) -> i32 {
    let some = 1 + random.below(40) as i32;
    random.one(&[1, -1, some, -some, 1000, -1000, 60_000])
}

/// IPv4 options: those without effect, routes, timestamps, security, and rubbish (RFC 791, section 3.1).
fn options(random: &mut Random) -> Vec<u8> {
    match random.below(8) {
        0 => vec![1, 1, 1, 0],
        // Record route, with space for one address.
        1 => vec![7, 7, 4, 0, 0, 0, 0, 0],
        // Loose and strict source route.
        2 => [&[131, 7, 4], LOCAL.as_slice(), &[0]].concat(),
        3 => [&[137, 7, 4], REMOTE.as_slice(), &[0]].concat(),
        // A timestamp option without space for another entry. With space, each host would write its own time, and the
        // two would differ.
        4 => vec![68, 8, 9, 0, 0, 0, 0, 0],
        // Router alert (RFC 2113).
        5 => vec![148, 4, 0, 0],
        // A length that runs out of the header.
        6 => vec![130, 40, 0, 0],
        _ => (0..4 * (1 + random.below(10))).map(|_| random.byte()).collect(),
    }
}

/// The cases of one seed, in order.
#[derive(Debug)]
pub(crate) struct Cases {
    random: Random,
    number: u32,
}

impl Cases {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), number: 0 }
    }

    fn valid(&mut self) -> (Frame, &'static str) {
        let random = &mut self.random;
        let (transport, name) =
            random.one(&[(Transport::Udp, "UDP"), (Transport::Tcp, "TCP"), (Transport::Icmp, "ICMP")]);
        let length = match random.below(8) {
            0 => random.below(4),
            1..=5 => 4 + random.below(60),
            _ => 4 + random.below(1400),
        };
        let mut frame = Frame::valid(self.number, transport, length);
        // Each frame has a connection of its own, because one that the stack has delivered a packet of becomes a stack
        // flow.
        frame.inner_ports = [self.number as u16, 4000 + (self.number >> 16) as u16];
        (frame, name)
    }
}

impl Iterator for Cases {
    type Item = Case;

    fn next(&mut self) -> Option<Case> {
        let (mut frame, kind) = self.valid();
        let mut names = vec![kind];
        // The first cases are cut off at every length, with the length fields right or wrong about it in three ways.
        let swept = self.number as usize;
        if swept < 3 * 100 {
            let end = swept / 3;
            match swept % 3 {
                0 => frame.cut = Some(14 + end),
                1 => frame.inner_cut = Some(end),
                _ => {
                    frame.inner_cut = Some(end);
                    frame.inner.lie = end as i32 - 14 - 28 - frame.payload.len() as i32;
                }
            }
            names.push("every length");
        } else {
            let random = &mut self.random;
            for _ in 0..random.one(&[0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3]) {
                let (name, mutate) = MUTATIONS[random.below(MUTATIONS.len())];
                mutate(&mut frame, random);
                names.push(name);
            }
        }
        if frame.train.is_some() || frame.ip.fragment != 0 {
            // What a host makes of options in fragments is not specified, and nobody sends them.
            frame.ip.options.clear();
        }
        if frame.train.is_some()
            || frame.ip.fragment != 0
            || frame.inner.fragment != 0
            || !frame.flips.is_empty()
        {
            // Fragments of two packets with one identification are put together, and which ones is the host's choice.
            frame.answered = false;
        }
        if frame.answered && frame.udp_sum == Sum::Wrong {
            // Whose checksum is not verified is one frame of a case, not all.
            frame.udp_sum = Sum::Right;
        }
        if frame.unencapsulated && frame.inner.fragment != 0 {
            frame.inner.options.clear();
        }
        self.number = self.number.wrapping_add(1);
        let mut frames = frame.frames();
        for frame in &mut frames {
            // A wire takes no more than its MTU and an Ethernet header.
            frame.truncate(1514);
        }
        let nic = if self.random.below(8) == 0 { Nic::Second } else { Nic::Underlay };
        if nic == Nic::Second {
            names.push("second NIC");
        }
        Some(Case { name: names.join(", "), nic, frames })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_frames_and_another_seed_others() {
        let frames = |seed| Cases::new(seed).take(2000).map(|case| case.frames).collect::<Vec<_>>();
        assert_eq!(frames(1), frames(1));
        assert_ne!(frames(1), frames(2));
    }

    #[test]
    fn every_mutation_and_every_length_appears() {
        let cases: Vec<_> = Cases::new(7).take(20_000).collect();
        for (name, _) in MUTATIONS {
            assert!(cases.iter().any(|case| case.name.contains(name)), "{name}");
        }
        for length in 14..114 {
            assert!(
                cases.iter().any(|case| case.frames.len() == 1 && case.frames[0].len() == length),
                "{length}"
            );
        }
    }
}
