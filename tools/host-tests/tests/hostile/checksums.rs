//! "A valid outer checksum over a broken inner one never reaches an application": a device, or GRO, that has verified the
//! outer checksum vouches for the packet, and the inner one must not be believed for it.
use std::net::UdpSocket;

use overlay_fuzz::{
    Bench, Nic,
    frames::{Frame, Transport},
    headers::Sum,
};

use super::{SETUPS, overlay};

/// How many frames of each kind are sent.
const EACH: u16 = 6;
/// This is not the port of the frames that mark the end of a table.
const PORT: u16 = 4100;

fn frames(transport: Transport, sum: Sum, first: u16) -> Vec<Vec<u8>> {
    let frame = |number: u16| {
        let mut frame = Frame::valid(u32::from(number), transport, 40);
        // The outer checksum covers whatever is inside, and is right.
        frame.udp_sum = Sum::Right;
        frame.transport_sum = sum;
        frame.inner_ports = [number, PORT];
        frame.frames().remove(0)
    };
    (first..first + EACH).map(frame).collect()
}

#[test]
fn a_valid_outer_checksum_does_not_vouch_for_a_broken_inner_one() {
    for setup in SETUPS {
        let mut bench = Bench::new(*setup, overlay()).unwrap();
        let socket = bench.container().namespace().enter(|| Ok(UdpSocket::bind(("0.0.0.0", PORT))?)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let read = || std::iter::from_fn(|| socket.recv(&mut [0; 100]).ok()).count();
        let mut first = 1000;
        for gro in ["off", "on"] {
            bench.host().exec(&format!("ethtool -K eth0 gro {gro}")).unwrap();
            for nic in [Nic::Underlay, Nic::Second] {
                for (transport, counter) in [
                    (Transport::Udp, "Udp.InCsumErrors"),
                    (Transport::Tcp, "Tcp.InCsumErrors"),
                    (Transport::Icmp, "Icmp.InCsumErrors"),
                ] {
                    let what = format!("{setup:?}, GRO {gro}, {nic:?}, {transport:?}");
                    first += 100;
                    let before = bench.counter(counter).unwrap();
                    let right = bench.receive(nic, &frames(transport, Sum::Right, first)).unwrap();
                    assert_eq!(right.ours.len(), usize::from(EACH), "{what}: {:?}", right.counted);
                    assert_eq!(bench.counter(counter).unwrap(), before, "{what}: right ones");
                    let expected = if transport == Transport::Udp { usize::from(EACH) } else { 0 };
                    assert_eq!(read(), expected, "{what}: right ones reach the application");

                    let broken = bench.receive(nic, &frames(transport, Sum::Wrong, first + 50)).unwrap();
                    // The frames reach the container, whose own kernel discards them.
                    assert_eq!(broken.ours.len(), usize::from(EACH), "{what}: {:?}", broken.counted);
                    assert_eq!(
                        bench.counter(counter).unwrap() - before,
                        i64::from(EACH),
                        "{what}: broken ones"
                    );
                    assert_eq!(read(), 0, "{what}: broken ones reached the application");
                }
            }
        }
    }
}
