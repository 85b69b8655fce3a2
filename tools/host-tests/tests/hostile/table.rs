//! Frames from the underlay that arrive in three ways: at the underlay device, in outer fragments, and through another
//! device. The last two pass the first program and reach overlay0, where the same checks must hold.
use overlay_common::{
    Hook::{Decap, Receive},
    Reason::{self, *},
    Verdict,
};
use overlay_fuzz::{
    Bench, FastPath, Nic,
    frames::{Frame, Train, Transport},
    headers::Sum,
    table::forwarded,
    world::{CONTAINER, GATEWAY, LOCAL, PEERS, VTEP_MAC},
};

use super::{SETUPS, overlay};

/// How a frame must end.
struct Row {
    name: &'static str,
    alter: fn(&mut Frame),
    /// The reason that the program at the underlay device counts, or `None` if the frame is not ours.
    device: Option<Reason>,
    /// The reason that the program at overlay0 counts, or `None` if the kernel drops the frame before.
    overlay0: Option<Reason>,
    /// Whether our container gets the frame when it comes through overlay0.
    ours: bool,
    /// Whether the kernel's VXLAN device, as flannel sets it up, delivers it.
    kernel: bool,
}

const fn row(
    name: &'static str,
    device: Option<Reason>,
    overlay0: Option<Reason>,
    [ours, kernel]: [bool; 2],
    alter: fn(&mut Frame),
) -> Row {
    Row { name, alter, device, overlay0, ours, kernel }
}

const BOTH: [bool; 2] = [true, true];
const KERNEL: [bool; 2] = [false, true];
const NONE: [bool; 2] = [false, false];

const ROWS: &[Row] = &[
    row("nothing wrong", Some(Carried), Some(Carried), BOTH, |_| {}),
    row("no I flag", None, None, NONE, |frame| frame.vxlan[0] = 0),
    row("reserved flag", None, None, NONE, |frame| frame.vxlan[0] |= 0x80),
    row("reserved bits in the middle", None, None, NONE, |frame| frame.vxlan[2] = 1),
    row("reserved bits at the end", None, None, NONE, |frame| frame.vxlan[7] = 1),
    row("wrong VNI", None, None, NONE, |frame| frame.vxlan[6] = 2),
    row("another UDP port", None, None, NONE, |frame| frame.ports[1] = 4789),
    row("outer header checksum broken", None, None, NONE, |frame| frame.ip.sum = Sum::Wrong),
    row("UDP length too long", None, None, NONE, |frame| frame.udp_lie = 8),
    row("UDP length too short for VXLAN", None, None, NONE, |frame| frame.udp_lie = -90),
    row("inner length too long", Some(Malformed), Some(Carried), NONE, |frame| frame.inner.lie = 1),
    row("inner length of less than a header", Some(Malformed), Some(Carried), NONE, |frame| {
        frame.inner.lie = -60;
    }),
    row("inner length too short", Some(TrailingBytes), Some(Carried), BOTH, |frame| frame.inner.lie = -5),
    row("bytes behind the inner packet", Some(TrailingBytes), Some(Carried), BOTH, |frame| {
        frame.inner_trailer = 30;
    }),
    row("inner header checksum broken", Some(Malformed), Some(Carried), NONE, |frame| {
        frame.inner.sum = Sum::Wrong;
    }),
    row("inner version 6 in an IPv4 frame", Some(Malformed), Some(Carried), NONE, |frame| {
        frame.inner.version = 6;
    }),
    row("inner options: record route", Some(InnerOptions), Some(Carried), BOTH, |frame| {
        frame.inner.options = vec![7, 7, 4, 0, 0, 0, 0, 0];
    }),
    row("inner options that run out of the header", Some(InnerOptions), Some(Carried), NONE, |frame| {
        frame.inner.options = vec![7, 40, 4, 0];
    }),
    row("inner first fragment", Some(InnerFragment), Some(Carried), BOTH, |frame| {
        frame.inner.fragment = 0x2000;
    }),
    row("inner later fragment", Some(InnerFragment), Some(Carried), BOTH, |frame| frame.inner.fragment = 5),
    row("unknown outer source", Some(UnknownPeer), Some(UnknownPeer), KERNEL, |frame| {
        frame.ip.from = [10, 99, 0, 66];
    }),
    row("another peer's container", Some(PeerMismatch), Some(PeerMismatch), KERNEL, |frame| {
        frame.ip.from = PEERS[1].0;
    }),
    row("own outer source", Some(UnknownPeer), None, NONE, |frame| frame.ip.from = LOCAL),
    row("inner source in another peer's subnet", Some(PeerMismatch), Some(PeerMismatch), KERNEL, |frame| {
        frame.inner.from = [10, 244, 3, 7];
    }),
    row("inner source in nobody's subnet", Some(PeerMismatch), Some(PeerMismatch), KERNEL, |frame| {
        frame.inner.from = [10, 244, 9, 7];
    }),
    row("inner source: our other container", Some(PeerMismatch), Some(PeerMismatch), KERNEL, |frame| {
        frame.inner.from = [10, 244, 1, 3];
    }),
    row("inner source: our bridge", Some(PeerMismatch), Some(PeerMismatch), NONE, |frame| {
        frame.inner.from = GATEWAY;
    }),
    row("inner source: our underlay address", Some(ForeignSource), Some(Carried), NONE, |frame| {
        frame.inner.from = LOCAL;
    }),
    row("inner source outside Network", Some(ForeignSource), Some(Carried), BOTH, |frame| {
        frame.inner.from = [192, 0, 2, 1];
    }),
    row("inner source: loopback", Some(ForeignSource), Some(Carried), NONE, |frame| {
        frame.inner.from = [127, 0, 0, 1];
    }),
    row("inner source: zero", Some(ForeignSource), Some(Carried), NONE, |frame| frame.inner.from = [0; 4]),
    row("inner source: broadcast", Some(ForeignSource), Some(Carried), NONE, |frame| {
        frame.inner.from = [255; 4];
    }),
    row("inner source: multicast", Some(ForeignSource), Some(Carried), NONE, |frame| {
        frame.inner.from = [224, 0, 0, 5];
    }),
    row("inner destination: nobody here", Some(Unlearned), Some(Carried), NONE, |frame| {
        frame.inner.to = [10, 244, 1, 9];
    }),
    row("inner destination: our bridge", Some(Unlearned), Some(Carried), NONE, |frame| {
        frame.inner.to = GATEWAY;
    }),
    row("inner destination: our subnet's base", Some(Unlearned), Some(Carried), NONE, |frame| {
        frame.inner.to = [10, 244, 1, 0];
    }),
    row("inner destination: our subnet's broadcast", Some(Unlearned), Some(Carried), NONE, |frame| {
        frame.inner.to = [10, 244, 1, 255];
    }),
    row("inner destination: another host's", Some(NotOurSubnet), Some(NotOurSubnet), NONE, |frame| {
        frame.inner.to = [10, 244, 3, 7];
    }),
    row("inner destination: our underlay address", Some(NotOurSubnet), Some(NotOurSubnet), NONE, |frame| {
        frame.inner.to = LOCAL;
    }),
    row("inner destination: broadcast", Some(NotOurSubnet), Some(NotOurSubnet), NONE, |frame| {
        frame.inner.to = [255; 4];
    }),
    row("inner destination: multicast", Some(NotOurSubnet), Some(NotOurSubnet), NONE, |frame| {
        frame.inner.to = [224, 0, 0, 251];
    }),
    row("inner destination: loopback", Some(NotOurSubnet), Some(NotOurSubnet), NONE, |frame| {
        frame.inner.to = [127, 0, 0, 1];
    }),
    row("inner MAC: broadcast", Some(WrongVtepMac), Some(WrongVtepMac), NONE, |frame| {
        frame.inner_ethernet.to = [0xff; 6];
    }),
    row("inner MAC: multicast", Some(WrongVtepMac), Some(WrongVtepMac), NONE, |frame| {
        frame.inner_ethernet.to = [1, 0, 0x5e, 0, 0, 0xfb];
    }),
    row("inner MAC: another host's", Some(WrongVtepMac), Some(WrongVtepMac), NONE, |frame| {
        frame.inner_ethernet.to = [2, 0, 0, 0, 0, 9];
    }),
    row("inner source MAC: our own", Some(WrongVtepMac), None, NONE, |frame| {
        frame.inner_ethernet.from = VTEP_MAC;
    }),
    row("ARP inside", Some(NotIpv4), Some(NotIpv4), NONE, |frame| {
        frame.inner_ethernet.kind = 0x0806;
        frame.instead = Some([&[0, 1, 8, 0, 6, 4, 0, 1][..], &[2; 10], &[0; 6], &CONTAINER].concat());
    }),
    row("IPv6 inside", Some(NotIpv4), Some(NotIpv4), NONE, |frame| {
        frame.inner_ethernet.kind = 0x86dd;
        frame.instead = Some([&[0x60, 0, 0, 0, 0, 0, 59, 64][..], &[0xfd; 16], &[0xfd; 16]].concat());
    }),
    row("in a VLAN inside", Some(NotIpv4), Some(NotIpv4), NONE, |frame| frame.inner_ethernet.tag = Some(5)),
    // The kernel takes off a tag that has only a priority; nobody sends one through a tunnel.
    row("priority tag inside", Some(NotIpv4), Some(NotIpv4), KERNEL, |frame| {
        frame.inner_ethernet.tag = Some(0x6000);
    }),
    // The kernel takes this for a packet from the tunnel to itself, and decapsulates it twice.
    row("double encapsulation", Some(PeerMismatch), Some(PeerMismatch), KERNEL, |frame| {
        frame.inner.to = LOCAL;
        frame.inner.from = [10, 244, 3, 7];
        frame.inner_ports = [51_234, 8472];
        frame.payload = Frame::valid(1, Transport::Udp, 8).frames()[0][42..].to_vec();
    }),
    row("inner TTL 0", Some(TtlExpired), Some(Carried), NONE, |frame| frame.inner.ttl = 0),
    row("inner TTL 1", Some(TtlExpired), Some(Carried), NONE, |frame| frame.inner.ttl = 1),
    row("inner TTL 2", Some(Carried), Some(Carried), BOTH, |frame| frame.inner.ttl = 2),
    row("outer TTL 0", Some(Carried), Some(Carried), BOTH, |frame| frame.ip.ttl = 0),
    row("marked CE, not capable", Some(NotEctMarked), None, NONE, |frame| frame.ip.tos = 3),
    row("marked CE, capable", Some(Carried), Some(Carried), BOTH, |frame| {
        (frame.ip.tos, frame.inner.tos) = (3, 2);
    }),
];

/// The ways by which a frame comes to our host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    Device,
    Fragments,
    FragmentsReversed,
    SecondNic,
}

#[test]
fn every_row_ends_as_it_says_however_the_frame_arrives() {
    for setup in SETUPS {
        let mut bench = Bench::new(*setup, overlay()).unwrap();
        let mut number = 0;
        for row in ROWS {
            for arrival in
                [Arrival::Device, Arrival::Fragments, Arrival::FragmentsReversed, Arrival::SecondNic]
            {
                number += 1;
                let mode = setup.fast_path;
                check(
                    &mut bench,
                    row,
                    arrival,
                    mode,
                    number,
                    &format!("{setup:?}, {arrival:?}: {}", row.name),
                );
            }
        }
    }
}

fn check(bench: &mut Bench, row: &Row, arrival: Arrival, mode: FastPath, number: u32, what: &str) {
    let mut frame = Frame::valid(number, Transport::Udp, 40);
    // Each row has a connection of its own, because one that the stack has carried a packet of is a stack flow.
    frame.inner_ports[0] = 10_000 + number as u16;
    (row.alter)(&mut frame);
    let train = match arrival {
        Arrival::Fragments => Some(Train::InOrder),
        Arrival::FragmentsReversed => Some(Train::Reversed),
        Arrival::Device | Arrival::SecondNic => None,
    };
    frame.train = train.map(|train| (train, 64));
    let nic = if arrival == Arrival::SecondNic { Nic::Second } else { Nic::Underlay };
    let seen = bench.receive(nic, &frame.frames()).unwrap();

    let device = row.device.filter(|_| arrival == Arrival::Device).map(|reason| match (mode, reason) {
        // Nobody has answered, and the stack finds what the programs would find behind their question about the connection.
        (FastPath::Established, Carried | NotEctMarked) => NotEstablished,
        _ => reason,
    });
    let ended = device.filter(|reason| reason.verdict() != Verdict::Stack);
    let overlay0 = row.overlay0.filter(|_| ended.is_none());
    let expected: Vec<_> = device
        .map(|reason| (Decap, reason, 1))
        .into_iter()
        .chain(overlay0.map(|reason| (Receive, reason, 1)))
        .collect();
    assert_eq!(seen.counted, expected, "{what}");
    assert_eq!(seen.ours.len(), usize::from(row.ours), "{what}: {seen:02x?}");
    assert_eq!(seen.kernel.len(), usize::from(row.kernel), "{what}: {seen:02x?}");
    if row.ours {
        // The fast path is one hop from container to container; the stack, ours or the other kernel's, is one more.
        let fast = ended == Some(Carried);
        let ours = if fast { forwarded(&seen.ours[0]) } else { seen.ours[0][14..].to_vec() };
        assert_eq!(ours, seen.kernel[0][14..], "{what}");
        assert_eq!(seen.ours[0][..14], seen.kernel[0][..14], "{what}");
    }
}

/// This is the only kind of frame that the fast path delivers and the kernel does not. RFC 7348, section 5, leaves it
/// to the receiver whether it verifies the outer checksum, and a program cannot sum a whole packet.
#[test]
fn a_broken_outer_checksum_is_not_verified_by_the_fast_path_alone() {
    for setup in SETUPS {
        let mut bench = Bench::new(*setup, overlay()).unwrap();
        let mut frame = Frame::valid(1, Transport::Udp, 40);
        frame.udp_sum = Sum::Wrong;
        let seen = bench.receive(Nic::Underlay, &frame.frames()).unwrap();
        match setup.fast_path {
            FastPath::On => {
                assert_eq!((seen.counted, seen.kernel), (vec![(Decap, Carried, 1)], vec![]));
                assert_eq!(seen.ours.len(), 1);
            }
            FastPath::Established => {
                let left = vec![(Decap, NotEstablished, 1)];
                assert_eq!((seen.counted, seen.ours, seen.kernel), (left, vec![], vec![]));
            }
        }
        frame.inner_ports[0] += 1;
        let seen = bench.receive(Nic::Second, &frame.frames()).unwrap();
        assert_eq!((seen.counted, seen.ours, seen.kernel), (vec![], vec![], vec![]));
    }
}

#[test]
fn no_truncation_of_any_header_is_delivered_however_it_arrives() {
    for setup in SETUPS {
        let mut bench = Bench::new(*setup, overlay()).unwrap();
        let whole = Frame::valid(1, Transport::Udp, 0);
        let (outer, inner) = (whole.frames()[0].len(), whole.inner_frame().len());
        assert_eq!((outer, inner), (92, 42));
        for nic in [Nic::Underlay, Nic::Second] {
            let mut frames = Vec::new();
            for cut in 14..outer {
                frames.extend(Frame { cut: Some(cut), ..whole.clone() }.frames());
            }
            for cut in 0..inner {
                let mut honest = Frame { inner_cut: Some(cut), ..whole.clone() };
                frames.extend(honest.frames());
                // The cut frame is also sent in fragments, of the shortest kind.
                honest.ip.id = 0x8000 | cut as u16;
                honest.train = Some((Train::InOrder, 8));
                frames.extend(honest.frames());
            }
            let seen = bench.receive(nic, &frames).unwrap();
            assert_eq!((seen.ours, seen.kernel), (vec![], vec![]), "{setup:?} {nic:?}");
        }
    }
}
