//! What is kept of the kernel's answers about containers' ports: for how long it is believed, and for which packets.
//!
//! The tests see it from a packet that is too long for its container's port: it is delivered only if what is kept says otherwise.
use aya::maps::PerCpuValues;
use nix::sched::sched_getcpu;
use overlay_common::{KeptPort, PORTS_PLACES};

use super::bed::*;
use crate::support::ip;

/// So many times what must not be believed is tried. It would be, if the tick did not change in between.
const TRIES: u64 = 50;

fn run(bed: &mut Bed, data: usize) -> i32 {
    let skb = Skb { ifindex: bed.underlay, ..Skb::default() };
    let frame = Tunnel::default().encapsulate(&udp(REMOTE, CONTAINER, [1, 2], data));
    bed.run_uncounted("overlay_decap", skb, &frame).0
}

fn kept(bed: &mut Bed) -> KeptPort {
    let place = bed.container % PORTS_PLACES;
    bed.ports().get(&place, 0).unwrap()[sched_getcpu().unwrap()]
}

/// Whether a packet of 528 bytes is delivered into a port whose MTU is 500 bytes when this is kept of the port. The packet before
/// leaves the tick. `ahead` are ticks until the kernel is said to have been asked, for a machine on which the program runs later.
#[track_caller]
fn is_believed(bed: &mut Bed, ahead: u64, alter: impl Fn(&mut KeptPort)) -> bool {
    assert_eq!(run(bed, 100), REDIRECT);
    let mut kept = kept(bed);
    assert_eq!((kept.ifindex, kept.mtu), (bed.container, 500));
    kept = KeptPort { jiffies: kept.jiffies + ahead, mtu: 528, ..kept };
    alter(&mut kept);
    let place = bed.container % PORTS_PLACES;
    let mut ports = bed.ports();
    let mut values = ports.get(&place, 0).unwrap().to_vec();
    values[sched_getcpu().unwrap()] = kept;
    ports.set(place, PerCpuValues::try_from(values).unwrap(), 0).unwrap();
    let verdict = run(bed, 500);
    assert!([NEXT, REDIRECT].contains(&verdict));
    // What is kept now may be of a tick that is still to come.
    let mut ports = bed.ports();
    let nothing = vec![KeptPort::default(); ports.get(&place, 0).unwrap().len()];
    ports.set(place, PerCpuValues::try_from(nothing).unwrap(), 0).unwrap();
    verdict == REDIRECT
}

#[test]
fn what_is_kept_of_a_port_is_believed_in_its_tick_for_its_index_and_its_length_alone() {
    with_bed(|bed| {
        ip("link set c1 mtu 500");
        let ahead = (0..20_000).map(|number| number % 20);
        let believed = ahead.clone().find(|ahead| is_believed(bed, *ahead, |_| {}));
        let ahead = believed.expect("what is kept of a port is never believed");
        let alterations: [fn(&mut KeptPort); 4] = [
            |kept| kept.jiffies -= 1000,
            |kept| kept.jiffies = 0,
            |kept| kept.ifindex += PORTS_PLACES,
            |kept| kept.mtu = 527,
        ];
        for (number, alter) in alterations.into_iter().enumerate() {
            for _ in 0..TRIES {
                assert!(!is_believed(bed, ahead, alter), "{number}");
            }
        }
        // A refusal is not kept.
        assert_eq!(run(bed, 500), NEXT);
        ip("link set c1 mtu 1500");
        assert_eq!(run(bed, 500), REDIRECT);
    });
}
