//! Frames from a container. What is malformed or has another's source ends on its host, and what leaves is checked by
//! an independent library.
use overlay_common::{
    Hook::{self, Encap, Send},
    Reason::{self, *},
};
use overlay_fuzz::{
    Bench, FastPath, Ingress, Setup,
    frames::{Frame, Transport},
    headers::Sum,
    rows::hex,
    table::{from_container, is_from_us},
    world::GATEWAY,
};
use overlay_lab::{PingOptions, command, wait_until};

use super::overlay;

type Row = (&'static str, &'static [(Hook, Reason)], usize, fn(&mut Frame));

/// The columns are: name, what is counted, how many frames leave, and what is wrong.
const ROWS: &[Row] = &[
    ("nothing wrong", &[(Encap, Carried)], 1, |_| {}),
    ("length too long", &[(Encap, Malformed)], 0, |frame| frame.inner.lie = 1),
    ("length of less than a header", &[(Encap, Malformed)], 0, |frame| frame.inner.lie = -60),
    ("length too short", &[(Encap, TrailingBytes), (Send, Carried)], 1, |frame| frame.inner.lie = -5),
    ("bytes behind the packet", &[(Encap, TrailingBytes), (Send, Carried)], 1, |frame| {
        frame.inner_trailer = 30;
    }),
    ("header checksum broken", &[(Encap, Malformed)], 0, |frame| frame.inner.sum = Sum::Wrong),
    ("version 6 in an IPv4 frame", &[(Encap, Malformed)], 0, |frame| frame.inner.version = 6),
    ("options: record route", &[(Encap, InnerOptions), (Send, Carried)], 1, |frame| {
        frame.inner.options = vec![7, 7, 4, 0, 0, 0, 0, 0];
    }),
    ("options that run out of the header", &[(Encap, InnerOptions)], 0, |frame| {
        frame.inner.options = vec![7, 40, 4, 0];
    }),
    ("first fragment", &[(Encap, InnerFragment), (Send, Carried)], 1, |frame| frame.inner.fragment = 0x2000),
    ("later fragment", &[(Encap, InnerFragment), (Send, Carried)], 1, |frame| frame.inner.fragment = 5),
    ("TTL 0", &[(Encap, TtlExpired)], 0, |frame| frame.inner.ttl = 0),
    ("TTL 1", &[(Encap, TtlExpired)], 0, |frame| frame.inner.ttl = 1),
    ("source: another host's container", &[(Encap, SourceNotOurs)], 0, |frame| {
        frame.inner.from = [10, 244, 2, 9];
    }),
    ("source: nobody's subnet", &[(Encap, SourceNotOurs)], 0, |frame| frame.inner.from = [10, 244, 9, 9]),
    ("source: the neighbour", &[(Encap, SourceAtWrongPort)], 0, |frame| frame.inner.from = [10, 244, 1, 3]),
    ("source: the gateway", &[(Encap, Unlearned)], 0, |frame| frame.inner.from = GATEWAY),
    ("source: not learned", &[(Encap, Unlearned), (Send, Carried)], 1, |frame| {
        frame.inner.from = [10, 244, 1, 9];
    }),
    // The receiving host decides whether this is allowed (`--peer-check strict`), as for a LAN behind this host.
    ("source: outside Network", &[(Encap, ForeignSource), (Send, Carried)], 1, |frame| {
        frame.inner.from = [192, 0, 2, 9];
    }),
    ("source: loopback", &[(Encap, ForeignSource)], 0, |frame| frame.inner.from = [127, 0, 0, 1]),
    ("source: broadcast", &[(Encap, ForeignSource)], 0, |frame| frame.inner.from = [255; 4]),
    ("source: multicast", &[(Encap, ForeignSource)], 0, |frame| frame.inner.from = [224, 0, 0, 5]),
    ("destination: own subnet", &[], 0, |frame| frame.inner.to = [10, 244, 1, 9]),
    ("destination: own subnet's broadcast", &[], 0, |frame| frame.inner.to = [10, 244, 1, 255]),
    ("destination: Network's broadcast", &[], 0, |frame| frame.inner.to = [10, 244, 255, 255]),
    ("destination: outside the leasable range", &[], 0, |frame| frame.inner.to = [10, 244, 64, 1]),
    ("destination: broadcast", &[], 0, |frame| frame.inner.to = [255; 4]),
    ("destination: multicast", &[], 0, |frame| frame.inner.to = [224, 0, 0, 251]),
    ("destination: nobody's subnet", &[(Encap, NoPeer)], 0, |frame| frame.inner.to = [10, 244, 7, 1]),
    ("larger than the path", &[(Encap, NeedsFragmentation), (Send, Carried), (Send, Carried)], 2, |frame| {
        frame.payload.resize(1460, 7);
    }),
    ("larger than the path, not to be fragmented", &[(Encap, TooBig)], 0, |frame| {
        frame.payload.resize(1460, 7);
        frame.inner.fragment = 0x4000;
    }),
];

/// What is counted of the same frames where the stack decides on every connection: it does what the programs would have done behind
/// their question about the connection.
fn by_the_stack(counted: &[(Hook, Reason)]) -> Vec<(Hook, Reason)> {
    let by_the_stack: &[(Hook, Reason)] = match counted[..] {
        [(Encap, Carried)] => &[(Send, Carried)],
        [(Encap, NoPeer)] => &[(Send, NoPeer)],
        [(Encap, NeedsFragmentation), ref sent @ ..] => sent,
        [(Encap, TtlExpired | TooBig)] => &[],
        _ => return counted.to_vec(),
    };
    [&[(Encap, NotEstablished)][..], by_the_stack].concat()
}

#[test]
fn what_a_container_sends_broken_ends_on_its_host() {
    for fast_path in [FastPath::On, FastPath::Established] {
        ends_on_its_host(fast_path);
    }
}

fn ends_on_its_host(fast_path: FastPath) {
    let mut bench = Bench::new(Setup { ingress: Ingress::Tc, fast_path }, overlay()).unwrap();
    let neighbour = &bench.member().containers[1];
    wait_until("the neighbour to be learned", std::time::Duration::from_secs(10), || {
        neighbour.ping(GATEWAY.into(), PingOptions { count: 1, ..PingOptions::default() })?;
        Ok(bench.member().overlay(&["endpoints"])?.contains("10.244.1.3 "))
    })
    .unwrap();
    // The container does not know the overlay's MTU.
    bench.host().namespace().ip(&format!("link set {} mtu 1500", bench.container().port())).unwrap();
    bench.container().namespace().ip("link set eth0 mtu 1500").unwrap();

    let mut left = Vec::new();
    for (number, (name, expected, leaves, alter)) in ROWS.iter().enumerate() {
        let mut frame = Frame::valid(number as u32, Transport::Udp, 40);
        frame.inner_ports = [10_000 + number as u16, 4000];
        (frame.inner.from, frame.inner.to) = (frame.inner.to, frame.inner.from);
        alter(&mut frame);
        let seen = bench.send(&[from_container(&frame)]).unwrap();
        let mut counted = Vec::new();
        for (hook, reason, packets) in &seen.counted {
            counted.extend((0..*packets).map(|_| (*hook, *reason)));
        }
        let expected = match fast_path {
            FastPath::On => expected.to_vec(),
            FastPath::Established => by_the_stack(expected),
        };
        assert_eq!(counted, expected, "{fast_path:?}: {name}");
        let out: Vec<_> = seen.ours.into_iter().filter(|frame| is_from_us(frame)).collect();
        assert_eq!(
            out.len(),
            *leaves,
            "{name}: {:?}",
            out.iter().map(|frame| hex(frame)).collect::<Vec<_>>()
        );
        left.extend(out);
    }

    // Other frames than IPv4 go to the gateway, and an IPv4 frame cut off at every length.
    let valid = || {
        let mut frame = Frame::valid(1, Transport::Udp, 40);
        (frame.inner.from, frame.inner.to) = (frame.inner.to, frame.inner.from);
        frame
    };
    let (mut arp, mut v6, mut tagged) = (valid(), valid(), valid());
    arp.inner_ethernet.kind = 0x0806;
    v6.inner_ethernet.kind = 0x86dd;
    tagged.inner_ethernet.tag = Some(5);
    let mut broadcast = from_container(&valid());
    broadcast[..6].fill(0xff);
    let mut frames = vec![from_container(&arp), from_container(&v6), from_container(&tagged), broadcast];
    let whole = from_container(&valid());
    frames.extend((14..whole.len()).map(|cut| whole[..cut].to_vec()));
    let seen = bench.send(&frames).unwrap();
    let out: Vec<_> = seen.ours.iter().filter(|frame| is_from_us(frame)).collect();
    assert!(out.is_empty(), "{out:02x?}");
    // Those long enough that the addresses could be read were ours, and their length fields are wrong.
    assert_eq!(seen.counted, [(Encap, Malformed, (whole.len() - 34) as u64)]);

    are_whole(&left);
}

/// scapy parses each frame and computes lengths and header checksums anew: the same bytes must result.
fn are_whole(frames: &[Vec<u8>]) {
    const SCRIPT: &str = "
import sys
from scapy.all import Ether, IP, UDP, Padding
from scapy.layers.vxlan import VXLAN
for line in sys.argv[1:]:
    frame = bytes.fromhex(line)
    read = Ether(frame)
    inner = read[VXLAN][Ether][IP]
    assert Padding not in read, read
    for header in (read[IP], inner):
        del header.len, header.chksum
    del read[UDP].len
    assert bytes(read) == frame, (line, bytes(read).hex())
print(len(sys.argv) - 1)
";
    assert!(frames.len() > 8);
    let lines: Vec<_> = frames.iter().map(|frame| hex(frame)).collect();
    let words = ["-c", SCRIPT].into_iter().chain(lines.iter().map(String::as_str));
    let checked = command::run("/usr/bin/python3", words).unwrap();
    assert_eq!(checked.trim(), frames.len().to_string());
}
