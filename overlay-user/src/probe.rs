//! Asks one container, on one port, whether it still has an address: a unicast ARP probe (RFC 5227 section 2.1.1).
use std::{io, net::Ipv4Addr, os::fd::AsRawFd, os::fd::OwnedFd, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
    },
};
use tokio::{io::unix::AsyncFd, time::timeout};

use crate::{endpoints::Probe, mac::Mac};

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV4: u16 = 0x0800;
/// How often the question is asked, and how long each answer may take. A container on this host answers in well under
/// a millisecond; the rest is patience with a busy CPU.
const ATTEMPTS: u32 = 2;
const PATIENCE: Duration = Duration::from_millis(300);

/// A socket on the port, ready to ask. Opened apart from asking, in the namespace of the calling thread.
#[derive(Debug)]
pub struct Prober {
    socket: AsyncFd<OwnedFd>,
    probe: Probe,
}

impl Prober {
    /// Opens a packet socket on the port of that name. Needs CAP_NET_RAW and a tokio runtime.
    pub fn open(probe: Probe, interface: &str) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // All protocols, since any packet from the address proves as much as an answer does.
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        bind(socket.as_raw_fd(), &link_address(interface)?)?;
        Ok(Self {
            socket: AsyncFd::new(socket)?,
            probe,
        })
    }

    /// Asks, and waits for a sign of life; `false` after all attempts went unanswered.
    pub async fn ask(&self) -> io::Result<bool> {
        let question = question(&self.probe);
        for _ in 0..ATTEMPTS {
            // The port going down or away is as silent as can be.
            if send(self.socket.as_raw_fd(), &question, MsgFlags::empty()).is_err() {
                return Ok(false);
            }
            if let Ok(answered) = timeout(PATIENCE, self.sign_of_life()).await {
                return answered;
            }
        }
        Ok(false)
    }

    async fn sign_of_life(&self) -> io::Result<bool> {
        let mut frame = [0; 64];
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| Ok(recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty())?)) {
                Ok(Ok(length)) if proves(&frame[..length], &self.probe) => return Ok(true),
                Ok(Ok(_)) => {}
                // The port went down or away.
                Ok(Err(_)) => return Ok(false),
                Err(_would_block) => {}
            }
        }
    }
}

/// The link-layer address to bind to, as the system lists it.
fn link_address(interface: &str) -> io::Result<LinkAddr> {
    let mut addresses = getifaddrs()?.filter(|entry| entry.interface_name == interface);
    addresses
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("interface {interface} is gone")))
}

/// An ARP request to the container alone. The sender's IP address is zero, so that nobody learns anything from it.
fn question(probe: &Probe) -> Bytes {
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
    frame.put_slice(&probe.address.octets());
    frame.freeze()
}

/// The frame comes from the address: ARP with it as sender, or IPv4 with it as source, and the known MAC address.
fn proves(frame: &[u8], probe: &Probe) -> bool {
    let field = |at: usize, length: usize| frame.get(at..at + length);
    let from = |at| field(at, 4) == Some(&Ipv4Addr::octets(&probe.address)[..]);
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
    use super::*;

    const PROBE: Probe = Probe {
        port: 7,
        address: Ipv4Addr::new(10, 244, 1, 2),
        mac: Mac([2, 0, 0, 0, 0, 0xa]),
        gateway_mac: Mac([2, 0, 0, 0, 0, 1]),
    };

    #[test]
    fn the_question_is_an_arp_probe() {
        let expected =
            "02000000000a 020000000001 0806 0001 0800 06 04 0001 020000000001 00000000 000000000000 0af40102";
        let hex: String = question(&PROBE)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, expected.replace(' ', ""));
        assert!(
            !proves(&question(&PROBE), &PROBE),
            "our own question must prove nothing"
        );
    }

    #[test]
    fn only_the_holder_itself_proves_life() {
        let mut reply = question(&PROBE).to_vec();
        reply[..6].copy_from_slice(&PROBE.gateway_mac.0);
        reply[6..12].copy_from_slice(&PROBE.mac.0);
        reply[21] = 2;
        reply[28..32].copy_from_slice(&PROBE.address.octets());
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
