//! A frame on the underlay in pieces, each of which a mutation can break, and the bytes that they make.
use crate::{
    headers::{Ethernet, Ip, Sum, put},
    world::{
        CONTAINER, LOCAL, NEXT_HOP_MAC, PEER_VTEP_MAC, PEERS, PORT, PORTS, REMOTE, UNDERLAY_MAC, VNI,
        VTEP_MAC,
    },
};

/// What the inner packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP, one segment of a connection that does not exist.
    Tcp,
    /// An ICMP echo reply.
    Icmp,
}

/// How the outer datagram is cut into fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Train {
    /// As they are sent.
    InOrder,
    /// In order.
    Reversed,
    /// The first one twice.
    Twice,
    /// The last fragment never comes.
    Incomplete,
    /// The second fragment begins before the first ends.
    Overlapping,
}

/// A frame in pieces.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Outer Ethernet header.
    pub ethernet: Ethernet,
    /// Whether the inner packet is right behind the outer Ethernet header, without any tunnel.
    pub unencapsulated: bool,
    /// Outer IPv4 header.
    pub ip: Ip,
    /// Outer UDP ports, source and destination.
    pub ports: [u16; 2],
    /// What is added to the right UDP length.
    pub udp_lie: i32,
    /// Outer UDP checksum.
    pub udp_sum: Sum,
    /// VXLAN header.
    pub vxlan: [u8; 8],
    /// Inner Ethernet header.
    pub inner_ethernet: Ethernet,
    /// Inner IPv4 header.
    pub inner: Ip,
    /// What the inner packet carries.
    pub transport: Transport,
    /// Checksum of the transport header.
    pub transport_sum: Sum,
    /// Ports of the transport header, or identifier and sequence number of ICMP.
    pub inner_ports: [u16; 2],
    /// Payload of the transport header.
    pub payload: Vec<u8>,
    /// Bytes in place of the whole inner IPv4 packet.
    pub instead: Option<Vec<u8>>,
    /// Bytes behind the inner packet, within the outer one.
    pub inner_trailer: usize,
    /// Bytes behind the outer packet.
    pub trailer: usize,
    /// How many bytes of the inner frame there are, counted from its Ethernet header. The outer lengths are right.
    pub inner_cut: Option<usize>,
    /// How many bytes of the frame there are. Its length fields are then wrong.
    pub cut: Option<usize>,
    /// Bits that are flipped last of all: offset of the byte, and mask.
    pub flips: Vec<(usize, u8)>,
    /// Whether the inner packet is followed by its answer and by itself, all from the same peer.
    pub answered: bool,
    /// How the frame is sent as fragments, and near which byte of the outer UDP datagram it is split.
    pub train: Option<(Train, usize)>,
}

/// Where the outer identification is in a frame without a VLAN tag.
const IDENTIFICATION: std::ops::Range<usize> = 18..20;

impl Frame {
    /// A valid frame from the first peer's container to ours. `number` shows in both identifications and in the payload.
    pub fn valid(number: u32, transport: Transport, length: usize) -> Self {
        let protocol = match transport {
            Transport::Udp => 17,
            Transport::Tcp => 6,
            Transport::Icmp => 1,
        };
        let [_, a, b, c] = VNI.to_be_bytes();
        let mut payload = number.to_be_bytes().to_vec();
        payload.extend((payload.len()..length).map(|at| at as u8));
        payload.truncate(length);
        let mut ip = Ip::new(PEERS[0].0, LOCAL, 17);
        // Whole datagrams and fragments have different identifications, because fragments wait for each other by this
        // number.
        ip.id = number as u16 & 0x7fff;
        let mut inner = Ip::new(REMOTE, CONTAINER, protocol);
        inner.id = number as u16;
        Self {
            ethernet: Ethernet { to: UNDERLAY_MAC, from: NEXT_HOP_MAC, tag: None, kind: 0x0800 },
            unencapsulated: false,
            ip,
            ports: [51_234, PORT],
            udp_lie: 0,
            udp_sum: Sum::Zero,
            vxlan: [8, 0, 0, 0, a, b, c, 0],
            inner_ethernet: Ethernet { to: VTEP_MAC, from: PEER_VTEP_MAC, tag: None, kind: 0x0800 },
            inner,
            transport,
            transport_sum: Sum::Right,
            inner_ports: PORTS,
            payload,
            instead: None,
            inner_trailer: 0,
            trailer: 0,
            inner_cut: None,
            cut: None,
            flips: Vec::new(),
            answered: false,
            train: None,
        }
    }

    /// The frames that are sent: one, the fragments of one, or one with its answer.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        if self.answered {
            let once = Self { answered: false, ..self.clone() };
            let mut answer = once.clone();
            (answer.inner.from, answer.inner.to) = (once.inner.to, once.inner.from);
            if once.transport != Transport::Icmp {
                answer.inner_ports.reverse();
            }
            return [once.frames(), answer.frames(), once.frames()].concat();
        }
        let udp = self.datagram();
        let mut frames = match self.train {
            _ if self.unencapsulated => vec![[self.ethernet.bytes(), self.inside()].concat()],
            None => vec![self.outer(&self.ip, &udp)],
            Some((train, at)) => self.fragments(train, at, &udp),
        };
        for frame in &mut frames {
            if let Some(cut) = self.cut {
                frame.truncate(cut);
            }
            let length = frame.len();
            for (at, mask) in &self.flips {
                // With another identification a fragment could meet those of another case, and which of them the host puts together is
                // its choice.
                if !IDENTIFICATION.contains(&(at % length)) {
                    frame[at % length] ^= mask;
                }
            }
        }
        frames
    }

    fn outer(&self, ip: &Ip, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.ethernet.bytes();
        frame.extend(ip.bytes(payload));
        frame.extend((0..self.trailer).map(|at| 0xe0 | at as u8));
        frame
    }

    /// `udp` in two fragments, split near `at`.
    fn fragments(&self, train: Train, at: usize, udp: &[u8]) -> Vec<Vec<u8>> {
        // Offsets count units of eight bytes (RFC 791 section 3.1).
        let at = ((at % udp.len().max(1)) & !7).max(8);
        let overlap = if train == Train::Overlapping { 8.min(at) } else { 0 };
        let first = Ip { fragment: 0x2000, ..self.ip.clone() };
        let last = Ip { fragment: ((at - overlap) / 8) as u16, ..self.ip.clone() };
        let first = self.outer(&first, &udp[..at]);
        let last = self.outer(&last, &udp[at - overlap..]);
        match train {
            Train::InOrder | Train::Overlapping => vec![first, last],
            Train::Reversed => vec![last, first],
            Train::Twice => vec![first.clone(), first, last],
            Train::Incomplete => vec![first],
        }
    }

    /// The outer UDP datagram.
    fn datagram(&self) -> Vec<u8> {
        let inside = self.inner_frame();
        let mut udp = Vec::new();
        udp.extend(self.ports[0].to_be_bytes());
        udp.extend(self.ports[1].to_be_bytes());
        udp.extend(((16 + inside.len()) as i32 + self.udp_lie).cast_unsigned().to_be_bytes()[2..].iter());
        udp.extend([0, 0]);
        udp.extend(self.vxlan);
        udp.extend(inside);
        let seed = self.ip.pseudo(udp.len());
        put(&mut udp, 6, self.udp_sum, seed);
        udp
    }

    /// The inner frame alone.
    pub fn inner_frame(&self) -> Vec<u8> {
        let mut inside = [self.inner_ethernet.bytes(), self.inside()].concat();
        if let Some(cut) = self.inner_cut {
            inside.truncate(cut);
        }
        inside
    }

    /// What the inner frame carries.
    fn inside(&self) -> Vec<u8> {
        let mut inside = self.instead.clone().unwrap_or_else(|| self.inner_packet());
        inside.extend((0..self.inner_trailer).map(|at| 0xc0 | at as u8));
        inside
    }

    fn inner_packet(&self) -> Vec<u8> {
        let [from, to] = self.inner_ports.map(u16::to_be_bytes);
        let (mut segment, at) = match self.transport {
            Transport::Udp => {
                let length = (8 + self.payload.len()) as u16;
                ([from, to, length.to_be_bytes(), [0, 0]].concat(), 6)
            }
            Transport::Tcp => {
                let mut header = [from, to].concat();
                // Sequence number and acknowledgement, no options, the flag ACK, and a window.
                header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
                (header, 16)
            }
            // Nobody answers an echo reply.
            Transport::Icmp => (vec![0, 0, 0, 0, from[0], from[1], to[0], to[1]], 2),
        };
        segment.extend(&self.payload);
        let seed = if self.transport == Transport::Icmp { 0 } else { self.inner.pseudo(segment.len()) };
        put(&mut segment, at, self.transport_sum, seed);
        self.inner.bytes(&segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by scapy 2.5: Ether/IP(id=7)/UDP(chksum=0)/VXLAN(flags=8, vni=1)/Ether/IP(id=7)/UDP/the same payload.
    #[test]
    fn a_valid_frame_is_the_one_that_scapy_makes() {
        let script = "from scapy.all import *;from scapy.layers.vxlan import VXLAN;\
            print(bytes(Ether(dst='06:00:00:00:00:01',src='06:00:00:00:00:02')/IP(src='10.99.0.2',dst='10.99.0.1',id=7)\
            /UDP(sport=51234,dport=8472,chksum=0)/VXLAN(flags=8,vni=1)\
            /Ether(dst='02:00:00:00:00:01',src='02:00:00:00:00:02')/IP(src='10.244.2.7',dst='10.244.1.2',id=7)\
            /UDP(sport=5000,dport=4000)/bytes([0,0,0,7,4,5,6,7,8])).hex())";
        let scapy = overlay_lab::command::run("/usr/bin/python3", ["-c", script]).unwrap();
        let ours: String =
            Frame::valid(7, Transport::Udp, 9).frames()[0].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(ours, scapy.trim());
    }

    #[test]
    fn flips_leave_the_outer_identification_alone() {
        let mut frame = Frame::valid(7, Transport::Udp, 9);
        let [whole] = frame.frames().try_into().unwrap();
        frame.flips = (17..21).map(|at| (at, 1)).collect();
        let [flipped] = frame.frames().try_into().unwrap();
        let changed: Vec<_> = (0..whole.len()).filter(|&at| whole[at] != flipped[at]).collect();
        assert_eq!(changed, [17, 20]);
    }
}
