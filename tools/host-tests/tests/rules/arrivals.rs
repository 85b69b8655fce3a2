//! What arrives in a container, packet by packet, and the words for it that do not differ from bed to bed.
use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    ops::Range,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt::RcvBufForce,
};
use overlay_common::header::protocol::{ICMP, TCP, UDP};
use overlay_lab::Container;

/// Size of the socket's buffer in bytes: all packets of a row wait in it.
const BUFFER: usize = 16 << 20;
/// The ports of servers. Clients' ports are given out from [`FIRST_PORT`] on.
pub const SERVERS: Range<u16> = 1..20_000;
/// The first port of a client.
pub const FIRST_PORT: u16 = 20_000;

/// What addresses and ports are called in both beds.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Names of addresses.
    pub addresses: HashMap<Ipv4Addr, String>,
    /// The ports of the present row's clients. Those below belong to earlier rows.
    pub clients: Range<u16>,
}

impl Names {
    /// The name of an address.
    pub fn address(&self, address: Ipv4Addr) -> String {
        self.addresses.get(&address).cloned().unwrap_or_else(|| address.to_string())
    }

    /// A server's port has its number. A client's is its own, unless a rule has changed it.
    fn port(&self, port: u16) -> String {
        match port {
            _ if SERVERS.contains(&port) => port.to_string(),
            _ if self.clients.contains(&port) => "own".to_owned(),
            _ => "other".to_owned(),
        }
    }

    /// Whether a port belongs to a client of an earlier row.
    fn is_old(&self, port: u16) -> bool {
        (FIRST_PORT..self.clients.start).contains(&port)
    }
}

/// Everything that arrives in a container by IPv4.
#[derive(Debug)]
pub struct Arrivals(OwnedFd);

impl Arrivals {
    /// Begins to record.
    pub fn of(container: &Container) -> Self {
        let opened = container.namespace().enter(|| {
            // Of a packet socket that asks for one protocol, the kernel keeps away what is sent.
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthIp)?;
            setsockopt(&socket, RcvBufForce, &BUFFER)?;
            Ok(socket)
        });
        Self(opened.unwrap())
    }

    /// Takes what has arrived since the last call.
    pub fn take(&self) -> Vec<Packet> {
        let mut buffer = [0; 2048];
        let mut packets = Vec::new();
        while let Ok(length) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            packets.extend(Packet::read(&buffer[..length]));
        }
        packets
    }
}

/// An IPv4 packet.
#[derive(Clone, Debug)]
pub struct Packet {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    ttl: u8,
    tos: u8,
    /// Bytes from the beginning of the whole packet, if this is a fragment.
    fragment: Option<u16>,
    /// Whatever stands behind the header.
    data: Vec<u8>,
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

impl Packet {
    fn read(bytes: &[u8]) -> Option<Self> {
        let length = usize::from(*bytes.first()? & 0xf) * 4;
        let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
        let fragment = number(bytes, 6)? & 0x3fff;
        Some(Self {
            source: address(12)?,
            destination: address(16)?,
            protocol: *bytes.get(9)?,
            ttl: *bytes.get(8)?,
            tos: *bytes.get(1)?,
            fragment: (fragment != 0).then_some((fragment & 0x1fff) * 8),
            data: bytes.get(length..)?.to_vec(),
        })
    }

    /// Source and destination port, of TCP and UDP.
    fn ports(&self) -> Option<(u16, u16)> {
        Some((number(&self.data, 0)?, number(&self.data, 2)?))
    }

    /// What the packet is called, and its number where packets of that name are told from each other. `None` for a packet of
    /// an earlier row, and for one that is for many.
    fn describe(&self, names: &Names) -> Option<(String, Option<u64>)> {
        if self.destination.is_multicast() {
            return None;
        }
        let (from, to) = (names.address(self.source), names.address(self.destination));
        // A host takes one off the TTL of what its stack forwards, and none off that of what its fast path delivers.
        let how = format!("ttl about {} tos {:#x}", self.ttl.next_multiple_of(4), self.tos);
        if let Some(offset) = self.fragment {
            return Some((
                format!("fragment {from} > {to} protocol {} {how}", self.protocol),
                Some(offset.into()),
            ));
        }
        if self.protocol == ICMP {
            let (kind, code) = (*self.data.first()?, *self.data.get(1)?);
            let said = format!("icmp {from} > {to} type {kind} code {code} {how}");
            if matches!(kind, 0 | 8) {
                return Some((
                    format!("{said} {} bytes", self.data.len()),
                    Some(number(&self.data, 6)?.into()),
                ));
            }
            let quoted = Self::read(self.data.get(8..)?)?;
            let (about, number) = quoted.describe(names)?;
            // A quoted packet of TCP may have been sent again, so these are not counted.
            return Some((format!("{said} about [{about}]"), number));
        }
        if !matches!(self.protocol, TCP | UDP) {
            return Some((format!("protocol {} {from} > {to} {how}", self.protocol), None));
        }
        let (source, destination) = self.ports()?;
        if names.is_old(source) || names.is_old(destination) {
            return None;
        }
        let (source, destination) = (names.port(source), names.port(destination));
        let ends = format!("{from}:{source} > {to}:{destination} {how}");
        if self.protocol == UDP {
            let text = String::from_utf8_lossy(self.data.get(8..)?).into_owned();
            let (label, rest) = text.split_once('#').unwrap_or((&text, ""));
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            return Some((format!("udp {ends} {label}"), digits.parse().ok()));
        }
        let flags = self.data.get(13).copied().unwrap_or_default();
        let what = match (flags & 2 != 0, flags & 4 != 0) {
            (true, _) => format!(" opening, mss {:?}", self.mss()),
            (_, true) => " reset".to_owned(),
            _ => String::new(),
        };
        Some((format!("tcp {ends}{what}"), None))
    }

    /// The maximum segment size that a TCP packet names in its first option, where Linux puts it.
    fn mss(&self) -> Option<u16> {
        (self.data.get(20..22)? == [2, 4]).then(|| number(&self.data, 22)).flatten()
    }
}

/// One line for each name, with the numbers that arrived under it.
pub fn lines(place: &str, packets: &[Packet], names: &Names) -> Vec<String> {
    let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (name, number) in packets.iter().filter_map(|packet| packet.describe(names)) {
        found.entry(name).or_default().extend(number);
    }
    let line = |(name, mut numbers): (String, Vec<u64>)| {
        // Packets may overtake each other while their connection moves from one path to the other.
        numbers.sort_unstable();
        format!("{place} receives {name} {numbers:?}")
    };
    found.into_iter().map(line).collect()
}
