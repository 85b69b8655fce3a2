//! Single packets of the UDP backend, which are sent by hand and compared byte by byte.
use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, TcpStream, UdpSocket},
    path::Path,
    time::Duration,
};

use etherparse::PacketBuilder;
use overlay_lab::{Container, Namespace};

/// The bytes of the first packet in a capture.
pub fn first_packet(capture: &Path) -> Vec<u8> {
    // The file has a header of 24 bytes, and another 16 bytes before each packet, the third word of which is the
    // captured length.
    let file = fs::read(capture).unwrap();
    let length = u32::from_le_bytes(file[32..36].try_into().unwrap()) as usize;
    file[40..40 + length].to_vec()
}

/// Sends one ping with this TTL and returns what ping prints.
pub fn ping_with_ttl(from: &Container, to: Ipv4Addr, ttl: u32) -> String {
    let line = format!("ping -n -c 1 -W 1 -t {ttl} {to}");
    let words: Vec<_> = line.split(' ').collect();
    let output = from.namespace().command(&words).unwrap().output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Connects to a port that nobody listens on, and returns the error.
pub fn connect(from: &Container, to: Ipv4Addr) -> ErrorKind {
    let connect = move || Ok(TcpStream::connect_timeout(&(to, 9).into(), Duration::from_secs(1)));
    from.namespace().enter(connect).unwrap().unwrap_err().kind()
}

/// A container that waits for one datagram.
pub struct Inbox {
    socket: UdpSocket,
    address: Ipv4Addr,
}

impl Inbox {
    pub fn of(container: &Container) -> Self {
        let socket =
            container.namespace().enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?)).unwrap();
        Self { socket, address: container.address() }
    }

    /// An IPv4 packet for this inbox, with a UDP payload of `payload` bytes, as it is before encapsulation.
    pub fn packet(&self, source: Ipv4Addr, payload: usize) -> Vec<u8> {
        let port = self.socket.local_addr().unwrap().port();
        let builder = PacketBuilder::ipv4(source.octets(), self.address.octets(), 9).udp(9, port);
        let mut packet = Vec::new();
        builder.write(&mut packet, &vec![0x5a; payload]).unwrap();
        // etherparse sets DF and computes the checksum accordingly, so both are changed.
        assert_eq!(packet[6] & 0x40, 0x40);
        packet[6] = 0;
        let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x4000;
        packet[10..12].copy_from_slice(&((sum + (sum >> 16)) as u16).to_be_bytes());
        packet
    }

    /// The length of the next datagram, if one arrives within this time.
    pub fn next(&self, limit: Duration) -> Option<usize> {
        self.socket.set_read_timeout(Some(limit)).unwrap();
        self.socket.recv(&mut vec![0; 65536]).ok()
    }
}

/// Sends a packet from one host to another, encapsulated as the UDP backend does.
pub fn send_bare(from: &Namespace, to: Ipv4Addr, packet: Vec<u8>) {
    let send = move || Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(&packet, (to, 8285))?);
    from.enter(send).unwrap();
}
