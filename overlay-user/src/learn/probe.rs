//! Asks the container behind one port whether it still has an address, by a unicast ARP probe (RFC 5227 section 2.1.1). Silence
//! proves something only when it has lasted for long, or when the container meanwhile answered a later question.
use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::{
        socket::{
            AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
            setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use crate::{
    learn::{
        learner::Probe,
        packet_filter::{self, Condition, ETHERTYPE_ARP, ETHERTYPE_IPV4, Field},
    },
    model::{
        addr::{OtherFamily, ipv4},
        mac::Mac,
    },
};

/// The type, from linux/if_packet.h, of a packet that leaves by the port. The socket receives such packets, too.
const PACKET_OUTGOING: u8 = 4;
/// How often the question is asked while nothing is heard, and how long each answer may take. A container on this host answers in
/// much less than a millisecond. The rest is for a busy CPU.
const ATTEMPTS: u32 = 2;
const PATIENCE: Duration = Duration::from_millis(300);
/// How often the question is asked while the container answers for its other address alone. It takes its packets in order, so once
/// proves it unless the first question was lost in a full queue, or the two went to different CPUs.
const DENIALS: u32 = 4;

/// What is heard of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// It has the address.
    Address,
    /// It answered for its other address, which it was asked about after the first.
    Sibling,
    /// Nothing.
    Nothing,
}

/// A socket that is ready to ask. It is opened separately, in the namespace of the calling thread.
#[derive(Debug)]
pub struct Prober {
    socket: OwnedFd,
    port: LinkAddr,
    probe: Probe,
    questions: Vec<Bytes>,
}

impl Prober {
    /// Opens a packet socket for the port with this name, which waits for nothing. This needs CAP_NET_RAW.
    pub fn open(probe: Probe, interface: &str) -> io::Result<Self> {
        // The order matters: an answer to the second question says that the first was there before.
        let addresses = std::iter::once(probe.address).chain(probe.sibling);
        let questions = addresses.map(|address| question(&probe, address)).collect::<Result<_, _>>();
        let questions = questions.map_err(io::Error::other)?;
        // To close a socket takes as long as to bind it, so that whatever is likely to fail comes before it.
        let port = link_address(interface)?;
        // The socket receives all protocols, since any packet from the address is as good as an answer.
        let (flags, protocol) = (SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, protocol)?;
        // Until it is bound, the socket has the packets of all interfaces. They would fill its queue.
        packet_filter::attach(&socket, &filter(&probe))?;
        Ok(Self { socket, port, probe, questions })
    }

    /// Asks, and waits for any packet from the address. Returns `false` if the container has it no more, or is silent. This blocks
    /// for at most [`PATIENCE`] in each attempt, and besides until the kernel has bound the socket to the port, which takes until
    /// every CPU has let go of what it had in hand.
    pub fn ask(&self) -> io::Result<bool> {
        match bind(self.socket.as_raw_fd(), &self.port) {
            Err(error) if is_gone(error) => return Ok(false),
            other => other?,
        }
        let (mut silences, mut denials) = (0, 0);
        while silences < ATTEMPTS && denials < DENIALS {
            match self.attempt() {
                Ok(Heard::Address) => return Ok(true),
                Ok(Heard::Sibling) => denials += 1,
                Ok(Heard::Nothing) => silences += 1,
                Err(error) if is_gone(error) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    fn attempt(&self) -> Result<Heard, Errno> {
        let socket = self.socket.as_raw_fd();
        for question in &self.questions {
            send(socket, question, MsgFlags::empty())?;
        }
        let deadline = Instant::now() + PATIENCE;
        let mut frame = [0; 64];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Heard::Nothing);
            }
            // Zero would mean to wait without an end.
            let left = TimeVal::microseconds((left.as_micros() as i64).max(1));
            setsockopt(&self.socket, ReceiveTimeout, &left)?;
            match recvfrom::<LinkAddr>(socket, &mut frame) {
                Ok((length, Some(from))) if is_from_port(from.ifindex(), from.pkttype(), &self.probe) => {
                    match heard(&frame[..length], &self.probe) {
                        Heard::Nothing => {}
                        heard => return Ok(heard),
                    }
                }
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether the error means that the port is down or gone. Then there is no answer either.
fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV)
}

/// Whether a packet came in by the port. If it went out, the bridge flooded it there, and it comes from another port, whose container
/// may have the same address and MAC address. The same holds for packets of other interfaces from before the socket was bound.
fn is_from_port(interface: usize, packet_type: u8, probe: &Probe) -> bool {
    interface == probe.port as usize && packet_type != PACKET_OUTGOING
}

/// The frames that may be the container's: from the port, with its MAC address.
fn filter(probe: &Probe) -> [Condition; 4] {
    let [a, b, c, d, e, f] = probe.mac.0;
    [
        Condition::Is(Field::Interface, probe.port),
        Condition::IsNot(Field::PacketType, PACKET_OUTGOING.into()),
        Condition::Is(Field::Word(6), u32::from_be_bytes([a, b, c, d])),
        Condition::Is(Field::Half(10), u16::from_be_bytes([e, f]).into()),
    ]
}

/// The link-layer address to bind to, as the system lists it.
fn link_address(interface: &str) -> io::Result<LinkAddr> {
    let mut addresses = getifaddrs()?.filter(|entry| entry.interface_name == interface);
    addresses
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("interface {interface} is gone")))
}

/// An ARP request to the container alone. The sender's IP address is zero, so that nobody learns anything from it.
fn question(probe: &Probe, address: IpAddr) -> Result<Bytes, OtherFamily> {
    let mut frame = BytesMut::with_capacity(42);
    frame.put_slice(&probe.mac.0);
    frame.put_slice(&probe.gateway_mac.0);
    frame.put_u16(ETHERTYPE_ARP);
    frame.put_u16(1); // Ethernet
    frame.put_u16(ETHERTYPE_IPV4);
    frame.put_slice(&[6, 4]);
    frame.put_u16(1); // request
    frame.put_slice(&probe.gateway_mac.0);
    frame.put_slice(&[0; 4]);
    frame.put_slice(&[0; 6]);
    frame.put_slice(&ipv4(address)?.octets());
    Ok(frame.freeze())
}

/// What a frame with the container's MAC address says: ARP with the address as sender, or IPv4 with the address as source, proves
/// that the container has it. For the other address, only the answer to a probe counts (its target is the probe's sender, zero),
/// since the container may send anything else before it has seen the question.
fn heard(frame: &[u8], probe: &Probe) -> Heard {
    let field = |at: usize, length: usize| frame.get(at..at + length);
    let number = |at| field(at, 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let holds = |at, address| matches!(address, IpAddr::V4(it) if field(at, 4) == Some(&it.octets()[..]));
    let mac = field(6, 6).and_then(|mac| mac.try_into().ok()).map(Mac);
    if mac != Some(probe.mac) {
        return Heard::Nothing;
    }
    match number(12) {
        Some(ETHERTYPE_IPV4) if holds(26, probe.address) => Heard::Address,
        Some(ETHERTYPE_ARP) if holds(28, probe.address) => Heard::Address,
        Some(ETHERTYPE_ARP)
            if number(20) == Some(2)
                && probe.sibling.is_some_and(|sibling| holds(28, sibling))
                && field(38, 4) == Some(&[0; 4]) =>
        {
            Heard::Sibling
        }
        _ => Heard::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const PROBE: Probe = Probe {
        port: 7,
        address: IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2)),
        mac: Mac([2, 0, 0, 0, 0, 0xa]),
        gateway_mac: Mac([2, 0, 0, 0, 0, 1]),
        sibling: Some(IpAddr::V4(Ipv4Addr::new(10, 244, 1, 9))),
    };

    fn asked() -> Vec<u8> {
        question(&PROBE, PROBE.address).unwrap().to_vec()
    }

    /// The answer of the container to a probe about one of its addresses.
    fn answer(address: IpAddr) -> Vec<u8> {
        let mut answer = asked();
        answer[..6].copy_from_slice(&PROBE.gateway_mac.0);
        answer[6..12].copy_from_slice(&PROBE.mac.0);
        answer[21] = 2;
        answer[28..32].copy_from_slice(&ipv4(address).unwrap().octets());
        answer[38..].fill(0);
        answer
    }

    #[test]
    fn the_question_is_an_arp_probe() {
        let expected =
            "02000000000a 020000000001 0806 0001 0800 06 04 0001 020000000001 00000000 000000000000 0af40102";
        let hex: String = asked().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected.replace(' ', ""));
        assert_eq!(heard(&asked(), &PROBE), Heard::Nothing, "our own question must prove nothing");
    }

    #[test]
    fn only_the_holder_itself_proves_life() {
        let mut reply = answer(PROBE.address);
        assert_eq!(heard(&reply, &PROBE), Heard::Address);
        for length in 0..32 {
            assert_eq!(heard(&reply[..length], &PROBE), Heard::Nothing, "{length}");
        }
        let mut other = reply.clone();
        other[31] = 3;
        assert_eq!(heard(&other, &PROBE), Heard::Nothing, "another address");
        reply[11] = 0xb;
        assert_eq!(heard(&reply, &PROBE), Heard::Nothing, "another MAC address");
    }

    #[test]
    fn only_what_comes_in_by_the_port_is_heard() {
        let reply = answer(PROBE.address);
        // An answer to the host, a broadcast, and a packet to another container.
        for (interface, packet_type, is_heard) in [
            (7, 0, true),
            (7, 1, true),
            (7, 3, true),
            (7, PACKET_OUTGOING, false),
            (8, 0, false),
            (8, 4, false),
        ] {
            let what = format!("interface {interface}, type {packet_type}");
            assert_eq!(is_from_port(interface as usize, packet_type, &PROBE), is_heard, "{what}");
            assert_eq!(
                packet_filter::takes(&filter(&PROBE), &reply, interface, packet_type),
                is_heard,
                "{what}"
            );
        }
        for at in 6..12 {
            let mut other = reply.clone();
            other[at] ^= 1;
            assert!(!packet_filter::takes(&filter(&PROBE), &other, 7, 0), "byte {at} of the frame");
        }
    }

    #[test]
    fn for_the_other_address_only_the_answer_to_a_probe_counts() {
        let sibling = PROBE.sibling.unwrap();
        let reply = answer(sibling);
        assert_eq!(heard(&reply, &PROBE), Heard::Sibling);
        assert_eq!(heard(&reply, &Probe { sibling: None, ..PROBE }), Heard::Nothing);
        for (at, value) in [(21, 1), (11, 0xb), (41, 1), (31, 8)] {
            let mut other = reply.clone();
            other[at] = value;
            assert_eq!(heard(&other, &PROBE), Heard::Nothing, "byte {at} is {value}");
        }
        let mut packet = reply;
        packet[12..14].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        packet[26..30].copy_from_slice(&ipv4(sibling).unwrap().octets());
        assert_eq!(heard(&packet, &PROBE), Heard::Nothing, "it may have been sent before");
    }
}
