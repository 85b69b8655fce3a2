//! A connection that begins before its container is learned.
use std::{thread, time::Duration};

use nix::sys::signal::Signal;
use overlay_common::{Hook, Reason};
use overlay_lab::{Backend, Container, Numbered, Options};

use crate::{
    bed::{Bed, Kind, endpoint, ping_df, wait_for},
    traffic::{BOTH, Server, Talk, Tier, tiers},
};

/// A container that its host's agent, which sleeps, has not learned.
fn unlearned(bed: &mut Bed) -> Container {
    bed[0].agent().unwrap().signal(Signal::SIGSTOP).unwrap();
    let (subnet, mtu) = bed[0].agent().unwrap().subnet().unwrap();
    bed[0].host.add_container("late", &subnet, 77, mtu).unwrap()
}

fn wakes(bed: &mut Bed, container: &Container) {
    bed[0].agent().unwrap().signal(Signal::SIGCONT).unwrap();
    let member = &bed[0];
    wait_for("the container to be learned", || endpoint(member, container.address()).is_some());
}

#[test]
fn a_first_connection_takes_the_fast_path_one_round_trip_after_its_container_is_learned() {
    for backend in Backend::ALL {
        println!("backend {}", backend.name());
        let mut bed = Bed::with_config(Kind::Folder, Options::default(), backend.config(), &[]);
        bed.learn_all();
        let late = unlearned(&mut bed);
        let old = bed[1].containers[0].clone();
        let _servers = [Server::of(&late), Server::of(&old)];
        // It asks, and it is asked.
        let mut talks: Vec<_> = BOTH
            .into_iter()
            .flat_map(|protocol| {
                [
                    Talk::open(late.namespace(), protocol, old.address(), 8080).unwrap(),
                    Talk::open(old.namespace(), protocol, late.address(), 8080).unwrap(),
                ]
            })
            .collect();
        for talk in &mut talks {
            talk.ask().unwrap();
        }
        // A stream's first packets are as large as the container's MTU allows.
        for (from, to) in [(&late, &old), (&old, &late)] {
            let full = ping_df(from, to.address(), bed[0].mtu - 28);
            assert!(full.complete(), "{}", full.output);
        }
        wakes(&mut bed, &late);
        for (number, talk) in talks.iter_mut().enumerate() {
            // No program was there to see what the stack has delivered so far. It sees this round trip.
            talk.ask().unwrap();
            let carried = tiers(&bed, || {
                for _ in 0..5 {
                    talk.ask().unwrap();
                }
            });
            assert_eq!(carried, [Tier::Fast, Tier::Fast], "conversation {number}");
        }
    }
}

/// The stack's path and the fast path are not equally long, but both keep what they get.
#[test]
fn nothing_is_lost_or_doubled_while_connections_change_their_path() {
    let mut bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let late = unlearned(&mut bed);
    let old = bed[1].containers[0].clone();
    let streams = [(&late, &old), (&old, &late)].map(|(a, b)| Numbered::start(a, b, 20_000).unwrap());
    thread::sleep(Duration::from_millis(500));
    wakes(&mut bed, &late);
    thread::sleep(Duration::from_millis(500));
    for report in streams.map(|stream| stream.finish().unwrap()) {
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }
    let counted = bed[0].counters().unwrap();
    assert!(counted.packets(Hook::Encap, Reason::Unlearned) > 0, "{counted:?}");
    assert!(counted.packets(Hook::Encap, Reason::Carried) > 0, "{counted:?}");
}
