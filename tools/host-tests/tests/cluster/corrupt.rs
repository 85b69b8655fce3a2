//! Data that was altered on its path never reaches an application, even if a checksum around it was right.
use std::{
    io::{ErrorKind, Read as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use nix::{
    ifaddrs::getifaddrs,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
            sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};
use overlay_lab::{Container, Host, Member, Options};
use serde_json::Value;

use super::{
    bed::{Bed, Kind, wait_for},
    ingress::{REDIRECT, STRIP, delivered, xdp_targets},
};

const VXLAN_PORT: u16 = 8472;
/// Bytes in front of the inner IPv4 header.
const HEADERS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(5);

fn mac(host: &Host, device: &str) -> [u8; 6] {
    let link = host.exec(&format!("ip -j link show dev {device}")).unwrap();
    let link: Value = serde_json::from_str(&link).unwrap();
    let text = link[0]["address"].as_str().unwrap();
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A TCP client in no kernel: it makes its own frames, with addresses in the subnet of `peer`, and sends them on the
/// peer's wire.
struct Client {
    socket: OwnedFd,
    /// MAC addresses on the underlay: ours and theirs.
    macs: [[u8; 6]; 2],
    outer: [[u8; 4]; 2],
    vtep_macs: [[u8; 6]; 2],
    inner: [[u8; 4]; 2],
    ports: [u16; 2],
    sequence: u32,
    acknowledged: u32,
}

/// What is wrong with a segment that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A byte was altered after the inner checksum was made, and before the outer one.
    Altered,
}

impl Client {
    fn new(peer: &Member, ours: &Member, container: &Container, port: u16) -> Self {
        let socket = peer
            .host
            .namespace()
            .enter(|| {
                let (flags, protocol) = (SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
                let socket = socket(AddressFamily::Packet, SockType::Raw, flags, protocol)?;
                let eth0 = getifaddrs()?.find_map(|entry| {
                    let address = entry.address.filter(|_| entry.interface_name == "eth0")?;
                    address.as_link_addr().copied()
                });
                bind(socket.as_raw_fd(), &eth0.unwrap())?;
                setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(100))?;
                Ok(socket)
            })
            .unwrap();
        let base: Ipv4Addr = peer.subnet.split('/').next().unwrap().parse().unwrap();
        let [a, b, c, _] = base.octets();
        let both = [&peer.host, &ours.host];
        Self {
            socket,
            macs: both.map(|host| mac(host, "eth0")),
            outer: both.map(|host| host.address().octets()),
            vtep_macs: both.map(|host| mac(host, "overlay0")),
            inner: [[a, b, c, 77], container.address().octets()],
            ports: [40_000 + port % 10_000, port],
            sequence: 1000,
            acknowledged: 0,
        }
    }

    /// Sends a segment with this payload, or a SYN. `checked` says whether it has an outer checksum, which is then
    /// right.
    fn send(&self, syn: bool, payload: &[u8], fault: Fault, checked: bool) {
        let tcp = PacketBuilder::ipv4(self.inner[0], self.inner[1], 63).tcp(
            self.ports[0],
            self.ports[1],
            self.sequence,
            64_000,
        );
        let tcp = if syn { tcp.syn() } else { tcp.ack(self.acknowledged).psh() };
        let mut inner =
            [&[8, 0, 0, 0, 0, 0, 1, 0], self.vtep_macs[1].as_slice(), &self.vtep_macs[0], &[8, 0]].concat();
        tcp.write(&mut inner, payload).unwrap();
        if fault == Fault::Altered {
            *inner.last_mut().unwrap() ^= 0x20;
        }
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.macs[0], self.macs[1])
            .ipv4(self.outer[0], self.outer[1], 64)
            .udp(50_000, VXLAN_PORT)
            .write(&mut frame, &inner)
            .unwrap();
        if !checked {
            frame[40..42].fill(0);
        }
        send(self.socket.as_raw_fd(), &frame, MsgFlags::empty()).unwrap();
    }

    /// Performs TCP's three-way handshake.
    fn connect(&mut self, checked: bool) {
        self.send(true, &[], Fault::None, checked);
        self.sequence += 1;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let mut frame = [0; 2048];
            let Ok(length) = recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) else { continue };
            let Some(tcp) = frame[..length].get(HEADERS + 20..HEADERS + 40) else { continue };
            let is_ours = frame[36..38] == VXLAN_PORT.to_be_bytes()
                && frame[HEADERS + 12..HEADERS + 20] == [self.inner[1], self.inner[0]].concat();
            if is_ours && tcp[13] & 0x3f == 0x12 {
                self.acknowledged = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]) + 1;
                self.send(false, &[], Fault::None, checked);
                return;
            }
        }
        panic!("no SYN+ACK came");
    }

    /// Sends these pieces in a row, so that GRO may merge them, and returns what the application received.
    fn pieces(&mut self, stream: &mut TcpStream, pieces: [&[u8]; 3], fault: Fault, checked: bool) -> Vec<u8> {
        let start = self.sequence;
        for piece in pieces {
            self.send(false, piece, fault, checked);
            self.sequence += piece.len() as u32;
        }
        let wanted: usize = pieces.iter().map(|piece| piece.len()).sum();
        let patience = if fault == Fault::None { PATIENCE } else { Duration::from_millis(300) };
        stream.set_read_timeout(Some(patience)).unwrap();
        let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
        while got.len() < wanted {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => got.extend_from_slice(&buffer[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) => panic!("{error}"),
            }
        }
        if got.is_empty() {
            self.sequence = start;
        }
        got
    }
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    wait_for("the connection", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

#[test]
fn a_valid_outer_checksum_never_vouches_for_a_broken_inner_one() {
    let parts = [[b'a'; 1000], [b'b'; 1000], [b'c'; 1000]];
    let parts: [&[u8]; 3] = [&parts[0], &parts[1], &parts[2]];
    for options in [&["--ingress", "tc"], REDIRECT.as_slice(), &STRIP] {
        // GRO verifies checksums only where frames come one by one, as on a wire.
        let bed = Bed::with(Kind::Folder, Options { wire_like: true, ..Options::default() }, options);
        let (container, _) = bed.pair();
        bed.learn_all();
        if options == REDIRECT {
            wait_for("the containers' veths to take frames", || xdp_targets(&bed[0]) == 2);
        }
        for gro in ["on", "off"] {
            bed[0].host.exec(&format!("ethtool -K eth0 gro {gro}")).unwrap();
            for checked in [true, false] {
                let name = format!("{options:?}, GRO {gro}, outer checksum: {checked}");
                let listener = container.namespace().enter(|| Ok(TcpListener::bind("0.0.0.0:0")?)).unwrap();
                let port = listener.local_addr().unwrap().port();
                let before = delivered(&bed[0].counters().unwrap());
                let mut client = Client::new(&bed[1], &bed[0], container, port);
                client.connect(checked);
                let mut stream = accept(&listener);
                let broken = client.pieces(&mut stream, parts, Fault::Altered, checked);
                assert!(broken.is_empty(), "{name}: {} bytes reached the application", broken.len());
                let right = client.pieces(&mut stream, parts, Fault::None, checked);
                assert!(right == parts.concat(), "{name}: {} bytes", right.len());
                // All segments, broken or not, were delivered past the stack, so it was the container that discarded
                // the broken ones.
                let after = delivered(&bed[0].counters().unwrap());
                let [xdp, tc] = [0, 1].map(|hook| after[hook] - before[hook]);
                println!("{name}: XDP delivered {xdp}, TC {tc}");
                assert!(xdp + tc >= 8, "{name}");
                assert_eq!(xdp > 0, options == REDIRECT, "{name}");
            }
        }
        assert_eq!(bed[0].counters().unwrap().carried().dropped, 0);
    }
}
