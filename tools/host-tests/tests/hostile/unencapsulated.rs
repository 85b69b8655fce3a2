//! Frames without outer headers, which the stack would hand to our container: a network that encapsulates everything takes none
//! in a container's name.
use overlay_common::{Hook::Decap, Reason::NotEncapsulated};
use overlay_fuzz::{
    Bench, Nic,
    frames::{Frame, Transport},
    world::REMOTE,
};

use super::{SETUPS, overlay};

type Alteration = (&'static str, fn(&mut Frame));

/// All that the stack takes for the underlay device's own.
const ALTERATIONS: &[Alteration] = &[
    ("whole", |_| {}),
    ("with a priority alone in its VLAN tag", |frame| frame.ethernet.tag = Some(0x6000)),
    ("with options", |frame| frame.inner.options = vec![1; 4]),
    ("a first fragment", |frame| frame.inner.fragment = 0x2000),
    ("a later fragment", |frame| frame.inner.fragment = 5),
    ("bytes behind the packet", |frame| frame.inner_trailer = 6),
];

/// A packet without a tunnel, in the name of `source`.
fn bare(number: u32, source: [u8; 4], alter: fn(&mut Frame)) -> Vec<Vec<u8>> {
    let mut frame = Frame::valid(number, Transport::Udp, 40);
    frame.inner.from = source;
    frame.inner_ports[0] = 10_000 + number as u16;
    frame.unencapsulated = true;
    alter(&mut frame);
    frame.frames()
}

#[test]
fn a_container_is_not_spoken_for_without_encapsulation() {
    let mut number = 0;
    for setup in SETUPS {
        let mut bench = Bench::new(*setup, overlay()).unwrap();
        for (name, alter) in ALTERATIONS {
            // Another host's container, the other peer's, nobody's, a neighbour's.
            for source in [REMOTE, [10, 244, 3, 7], [10, 244, 33, 7], [10, 244, 1, 3]] {
                number += 1;
                let seen = bench.receive(Nic::Underlay, &bare(number, source, *alter)).unwrap();
                assert_eq!((seen.ours.len(), seen.kernel.len()), (0, 1), "{setup:?}: {name}, {source:?}");
                assert_eq!(seen.counted, [(Decap, NotEncapsulated, 1)], "{setup:?}: {name}, {source:?}");
            }
            // The underlay's own machines, one of which is a peer.
            for source in [[10, 99, 0, 66], [10, 99, 0, 2], [192, 0, 2, 1]] {
                number += 1;
                let seen = bench.receive(Nic::Underlay, &bare(number, source, *alter)).unwrap();
                assert_eq!(seen.counted, [], "{setup:?}: {name}, {source:?}");
                assert_eq!((seen.ours.len(), seen.kernel.len()), (1, 1), "{setup:?}: {name}, {source:?}");
                assert_eq!(seen.ours, seen.kernel, "{setup:?}: {name}, {source:?}");
            }
        }
    }
}
