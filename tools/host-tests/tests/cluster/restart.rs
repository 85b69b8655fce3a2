//! Agents end and start again while packets are under way, and none is lost.
use std::{thread, time::Duration};

use overlay_common::Hook;
use overlay_lab::{
    Container, Ledger, Numbered, NumberedReport, Options, Traffic,
    endurance::{Binaries, Deck, Endurance},
    queue_overflows, transfer,
};

use super::bed::{Bed, Kind, MODES, filters, ids, overlay};

/// Packets per second, in each direction.
const RATE: u32 = 50_000;

/// Sends packets in both directions while `work` goes on, from half a second before it to half a second after it.
pub fn under_packets(a: &Container, b: &Container, rate: u32, work: impl FnOnce()) -> [NumberedReport; 2] {
    let streams = [(a, b), (b, a)].map(|(from, to)| Numbered::start(from, to, rate).unwrap());
    thread::sleep(Duration::from_millis(500));
    work();
    thread::sleep(Duration::from_millis(500));
    streams.map(|stream| stream.finish().unwrap())
}

#[test]
fn no_packet_is_lost_when_an_agent_is_killed_ended_and_started() {
    no_packet_is_lost(Bed::new(Kind::Etcd, 2), 3, |bed| {
        let ids = ids(&bed[0]);
        assert_eq!((ids.maps.len(), ids.links.len() >= 8), (11, true), "{ids:?}");
        (vec![ids.maps, ids.links], ids.programs)
    });
}

#[test]
fn nor_when_its_programs_are_filters() {
    let bed = Bed::with(Kind::Folder, Options::default(), &["--attach", "clsact"]);
    no_packet_is_lost(bed, 2, |bed| {
        let ids = ids(&bed[0]);
        assert_eq!((ids.maps.len(), ids.links.len()), (11, 0), "{ids:?}");
        let filters = filters(&bed[0].host).into_iter();
        let programs: Vec<_> =
            filters.map(|(device, kind, name, id)| (format!("{device} {kind} {name}"), id)).collect();
        assert_eq!(programs.len(), 8, "{programs:?}");
        (vec![ids.maps], programs)
    });
}

/// Ids by name.
type Named = Vec<(String, u64)>;

/// Replaces agents under packets. `ids` returns the ids that must stay the same when an agent is replaced, and those of
/// the programs, which must all change.
fn no_packet_is_lost(mut bed: Bed, rounds: u32, ids: impl Fn(&Bed) -> (Vec<Named>, Named)) {
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    bed.learn_all();
    let stack = |bed: &Bed| {
        [0, 1].map(|host| {
            let carried = bed[host].counters().unwrap().carried();
            (carried.stack_out, carried.stack_in)
        })
    };
    let before = stack(&bed);
    for round in 0..rounds {
        let (lasting, programs) = ids(&bed);
        let dropped = queue_overflows().unwrap();
        let ledger = Ledger::open(&bed.members).unwrap();
        let reports = under_packets(&a, &b, RATE, || {
            bed[0].kill_agent().unwrap();
            thread::sleep(Duration::from_millis(300));
            bed[0].restart_agent().unwrap();
            thread::sleep(Duration::from_millis(300));
            assert!(bed[0].end_agent().unwrap().success());
            thread::sleep(Duration::from_millis(300));
            bed[0].restart_agent().unwrap();
        });
        let dropped = queue_overflows().unwrap() - dropped;
        let accounts = ledger.close(&bed.members).unwrap();
        let (still, others) = ids(&bed);
        accounts.balance(Traffic::from(&reports[..])).unwrap();
        for report in reports {
            println!("round {round}: {report:?}; the machine's queues overflowed {dropped} times");
            assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
            // A busy machine sends at a tenth of the rate at least.
            assert!(report.rate > u64::from(RATE) / 10, "{report:?}");
        }
        assert_eq!(lasting, still);
        assert_eq!(programs.len(), others.len());
        for (old, new) in programs.iter().zip(&others) {
            assert!(old.0 == new.0 && old.1 != new.1, "{old:?} was not replaced: {new:?}");
        }
    }
    // A moment without a program would lose nothing, because the stack carries what the fast path does not. So the
    // stack's counters must not have changed.
    assert_eq!(stack(&bed), before);
    for host in [0, 1] {
        let counters = bed[host].counters().unwrap();
        assert_eq!(counters.carried().dropped, 0, "{counters:?}");
    }
}

#[test]
fn a_connection_survives_and_traffic_needs_no_agent() {
    MODES.into_iter().for_each(survive);
}

fn survive(mode: &[&str]) {
    let mut bed = Bed::with(Kind::Folder, Options::default(), mode);
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    bed.learn_all();
    let ledger = Ledger::open(&bed.members).unwrap();
    let stream = {
        let (a, b) = (a.clone(), b.clone());
        thread::spawn(move || transfer(&a, &b, 300 << 20))
    };
    thread::sleep(Duration::from_millis(300));
    let mut restarts = 0;
    while !stream.is_finished() {
        bed[0].kill_agent().unwrap();
        bed[0].restart_agent().unwrap();
        restarts += 1;
    }
    let done = stream.join().unwrap().unwrap();
    println!("{} MB in {:?} over {restarts} restarts", done.bytes >> 20, done.time);
    assert!(restarts >= 2, "the stream was over too soon to say anything");
    let accounts = ledger.close(&bed.members).unwrap();
    // TCP's packets can be accounted for on the wire only: what one host sent, the other must have seen.
    let lost = accounts.gaps(Traffic::default())[1];
    let by_devices: u64 = accounts.devices.values().sum();
    assert!((0..=by_devices as i64).contains(&lost) && accounts.dropped() == 0, "{accounts}");
    assert!(accounts.bytes(Hook::Decap) >= done.bytes, "{accounts}");

    // No agent runs anywhere, as after two crashes, so only the kernel carries the packets.
    bed[0].kill_agent().unwrap();
    bed[1].kill_agent().unwrap();
    let before = bed[0].counters().unwrap().carried();
    bed.assert_all_reached();
    transfer(&b, &a, 10 << 20).unwrap();
    let after = bed[0].counters().unwrap().carried();
    assert!(after.fast_in - before.fast_in > (10 << 20) / 1400, "{before:?} {after:?}");
    assert_eq!(after.dropped, 0, "{after:?}");
    if bed.established {
        // A ping is a connection, of which the stack decides on the request and the answer; the stream is one that leaves it.
        assert!(after.stack_in - before.stack_in < 200, "{before:?} {after:?}");
    } else {
        assert_eq!(after.stack_in, before.stack_in, "{after:?}");
    }
}

#[test]
fn no_packet_is_lost_when_agents_are_killed_ended_started_and_upgraded() {
    endure(2, &[]);
}

#[test]
fn nor_when_what_is_upgraded_are_filters() {
    endure(1, &["--attach", "clsact"]);
}

/// Here the stack carries the numbered packets, which nobody answers, and the connection leaves it. One round is enough, because the
/// agents replace programs and maps in the same way in every mode.
#[test]
fn nor_when_the_stack_decides_on_connections() {
    endure(1, MODES[1]);
}

/// Runs rounds of `cargo xtask endure`.
fn endure(rounds: u32, agent: &[&str]) {
    let binaries = Binaries::beside(overlay().to_owned()).unwrap();
    let mut endurance = Endurance::start(Options::default(), binaries, agent, RATE, Deck::empty()).unwrap();
    for number in 0..rounds {
        let round = endurance.round(100_000, |step| println!("round {number}: {step}")).unwrap();
        println!("round {number}: {round:?}");
        for direction in round.directions {
            assert_eq!((direction.lost, direction.duplicated), (0, 0), "{round:?}");
            assert!(direction.sent >= 100_000, "{round:?}");
        }
        assert_eq!(round.dropped, 0, "{round:?}");
    }
    let connection = endurance.finish().unwrap();
    println!("{connection:?}");
    assert!(connection.bytes > 5 << 20, "{connection:?}");
}
