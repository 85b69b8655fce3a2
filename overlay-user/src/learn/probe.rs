//! Asks the container behind one port whether it still has an address, by a unicast ARP probe (RFC 5227 section 2.1.1).
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
    learn::learner::Probe,
    model::{
        addr::{OtherFamily, ipv4},
        mac::Mac,
    },
};

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV4: u16 = 0x0800;
/// The type, from linux/if_packet.h, of a packet that leaves by the port. The socket receives such packets, too.
const PACKET_OUTGOING: u8 = 4;
/// How often the question is asked, and how long each answer may take. A container on this host answers in much less than
/// a millisecond. The rest is for a busy CPU.
const ATTEMPTS: u32 = 2;
const PATIENCE: Duration = Duration::from_millis(300);

/// A socket on the port, ready to ask. It is opened separately, in the namespace of the calling thread.
#[derive(Debug)]
pub struct Prober {
    socket: OwnedFd,
    probe: Probe,
    question: Bytes,
}

impl Prober {
    /// Opens a packet socket on the port with this name. This needs CAP_NET_RAW.
    pub fn open(probe: Probe, interface: &str) -> io::Result<Self> {
        let question = question(&probe).map_err(io::Error::other)?;
        // The socket receives all protocols, since any packet from the address is as good as an answer.
        let (flags, protocol) = (SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, protocol)?;
        bind(socket.as_raw_fd(), &link_address(interface)?)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(PATIENCE.as_millis() as i64))?;
        Ok(Self { socket, probe, question })
    }

    /// Asks, and waits for any packet from the address. Returns `false` if no attempt was answered. This blocks for at most
    /// twice [`PATIENCE`] in each attempt.
    pub fn ask(&self) -> io::Result<bool> {
        for _ in 0..ATTEMPTS {
            match self.attempt() {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) if is_gone(error) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    fn attempt(&self) -> Result<bool, Errno> {
        let socket = self.socket.as_raw_fd();
        send(socket, &self.question, MsgFlags::empty())?;
        let deadline = Instant::now() + PATIENCE;
        let mut frame = [0; 64];
        while Instant::now() < deadline {
            match recvfrom::<LinkAddr>(socket, &mut frame) {
                // The bridge flooded this packet to the port. It comes from another port, whose container has the same address
                // and MAC address.
                Ok((_, Some(from))) if from.pkttype() == PACKET_OUTGOING => {}
                Ok((length, _)) if proves(&frame[..length], &self.probe) => return Ok(true),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// Whether the error means that the port is down or gone. Then there is no answer either.
fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV)
}

/// The link-layer address to bind to, as the system lists it.
fn link_address(interface: &str) -> io::Result<LinkAddr> {
    let mut addresses = getifaddrs()?.filter(|entry| entry.interface_name == interface);
    addresses
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("interface {interface} is gone")))
}

/// An ARP request to the container alone. The sender's IP address is zero, so that nobody learns anything from it.
fn question(probe: &Probe) -> Result<Bytes, OtherFamily> {
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
    frame.put_slice(&ipv4(probe.address)?.octets());
    Ok(frame.freeze())
}

/// Whether a frame comes from the address: it has the known MAC address, and is ARP with the address as sender or IPv4
/// with the address as source.
fn proves(frame: &[u8], probe: &Probe) -> bool {
    let field = |at: usize, length: usize| frame.get(at..at + length);
    let from = |at| matches!(probe.address, IpAddr::V4(it) if field(at, 4) == Some(&it.octets()[..]));
    let Some(kind) = field(12, 2).map(|kind| u16::from_be_bytes([kind[0], kind[1]])) else {
        return false;
    };
    let mac = field(6, 6).and_then(|mac| mac.try_into().ok()).map(Mac);
    mac == Some(probe.mac)
        && match kind {
            ETHERTYPE_ARP => from(28),
            ETHERTYPE_IPV4 => from(26),
            _ => false,
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
    };

    #[test]
    fn the_question_is_an_arp_probe() {
        let expected =
            "02000000000a 020000000001 0806 0001 0800 06 04 0001 020000000001 00000000 000000000000 0af40102";
        let hex: String = question(&PROBE).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected.replace(' ', ""));
        assert!(!proves(&question(&PROBE).unwrap(), &PROBE), "our own question must prove nothing");
    }

    #[test]
    fn only_the_holder_itself_proves_life() {
        let mut reply = question(&PROBE).unwrap().to_vec();
        reply[..6].copy_from_slice(&PROBE.gateway_mac.0);
        reply[6..12].copy_from_slice(&PROBE.mac.0);
        reply[21] = 2;
        reply[28..32].copy_from_slice(&ipv4(PROBE.address).unwrap().octets());
        assert!(proves(&reply, &PROBE));
        for length in 0..32 {
            assert!(!proves(&reply[..length], &PROBE), "{length}");
        }
        let mut other = reply.clone();
        other[31] = 3;
        assert!(!proves(&other, &PROBE), "another address");
        reply[11] = 0xb;
        assert!(!proves(&reply, &PROBE), "another MAC address");
    }
}
