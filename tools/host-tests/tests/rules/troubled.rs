//! Hosts with more rules than anybody can read, and hosts whose rules never stay the same. These tests look at the time, so xtask
//! runs them apart from the other tests of rules, which do not (`timed` in `xtask/src/test/hosts.rs`).
use std::{
    fmt::Write as _,
    fs, thread,
    time::{Duration, Instant},
};

use overlay_lab::{Member, Numbered, Options, cpu::CpuTime};

use super::stage::{AUTO, decided, eventually};
use crate::{
    bed::{Bed, Kind, json},
    traffic::{Protocol, Server, Talk, nft},
};

/// More than any host is known to have.
const MANY: u32 = 50_000;
/// How often rules change, and for how long.
const CHANGES: usize = 8;
const PAUSE: Duration = Duration::from_secs(1);

/// The time that a member's agent and the commands it has waited for have spent on CPUs.
fn cpu_time(member: &mut Member) -> Duration {
    CpuTime::of(member.agent().unwrap().pid().unwrap()).unwrap().whole()
}

/// Asserts that the agent answers while it looks at many rules, that it soon says why it asks about each, and that connections
/// go by the stack first and then by the fast path.
#[track_caller]
fn asserts_bounded(bed: &mut Bed, put: impl FnOnce(&Bed)) {
    let (a, b) = bed.pair();
    let (a, b) = (a.clone(), b.clone());
    let _servers = [Server::of(&b), Server::start(b.namespace(), b.address(), 8081)];
    eventually(bed, 0, "on");
    let before = cpu_time(&mut bed[0]);
    put(bed);
    let began = Instant::now();
    while decided(&bed[0]).0 != "established" {
        let asked = Instant::now();
        json(&bed[0], &["status"]);
        assert!(asked.elapsed() < Duration::from_secs(10), "a status after {:?}", asked.elapsed());
        assert!(began.elapsed() < Duration::from_secs(60), "no decision: {:?}", decided(&bed[0]));
    }
    let (_, why) = decided(&bed[0]);
    assert!(!why.is_empty());
    // An analysis without a bound would take this again and again.
    let spent = cpu_time(&mut bed[0]) - before;
    assert!(spent < Duration::from_secs(30), "{spent:?} for {MANY} rules");
    let asked = Talk::open(a.namespace(), Protocol::Udp, b.address(), 8081).unwrap().ask();
    assert!(asked.is_err(), "{asked:?}");
    let mut talk = Talk::open(a.namespace(), Protocol::Tcp, b.address(), 8080).unwrap();
    for _ in 0..5 {
        talk.ask().unwrap();
    }
    // Nothing has changed since, so nothing is looked at again.
    let before = cpu_time(&mut bed[0]);
    thread::sleep(Duration::from_secs(3));
    let spent = cpu_time(&mut bed[0]) - before;
    assert!(spent < Duration::from_secs(2), "{spent:?} in three seconds without a change");
}

#[test]
fn tens_of_thousands_of_rules_of_nftables_are_followed_for_a_bounded_time() {
    let mut bed = Bed::with(Kind::Folder, Options::default(), &AUTO);
    bed.learn_all();
    asserts_bounded(&mut bed, |bed| {
        let mut rules = String::from("table ip many { chain c { type filter hook forward priority 0;\n");
        for number in 0..MANY {
            let _ = writeln!(rules, "ip saddr 192.168.{}.{} udp dport 9 drop", number >> 8, number & 0xff);
        }
        nft(&bed[0].host, &(rules + "udp dport 8081 drop; }; }"));
    });
}

#[test]
fn tens_of_thousands_of_rules_of_iptables_are_followed_for_a_bounded_time() {
    for variant in ["iptables-nft", "iptables-legacy"] {
        println!("{variant}");
        let mut bed = Bed::with(Kind::Folder, Options::default(), &AUTO);
        bed.learn_all();
        asserts_bounded(&mut bed, |bed| {
            let mut rules = String::from("*filter\n");
            for number in 0..MANY {
                let (c, d) = (number >> 8, number & 0xff);
                let _ = writeln!(rules, "-A FORWARD -s 192.168.{c}.{d}/32 -p udp -m udp --dport 9 -j DROP");
            }
            let file = bed[0].host.folder().join("many");
            fs::write(&file, rules + "-A FORWARD -p udp -m udp --dport 8081 -j DROP\nCOMMIT\n").unwrap();
            bed[0].host.exec(&format!("{variant}-restore {}", file.display())).unwrap();
        });
    }
}

#[test]
fn rules_that_change_every_second_cost_little_and_lose_nothing() {
    let mut bed = Bed::with(Kind::Folder, Options::default(), &AUTO);
    bed.learn_all();
    eventually(&bed, 0, "on");
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let _server = Server::of(&b);
    let mut talk = Talk::open(a.namespace(), Protocol::Tcp, b.address(), 8080).unwrap();
    let streams = [(&a, &b), (&b, &a)].map(|(from, to)| Numbered::start(from, to, 2000).unwrap());
    let (before, began) = (cpu_time(&mut bed[0]), Instant::now());
    for number in 0..CHANGES {
        // Each leads to another path: for each connection, by the stack, and past the stack.
        nft(
            &bed[0].host,
            match number % 3 {
                0 => "table ip t { chain c { type filter hook forward priority 0; udp dport 9 drop; }; }",
                1 => "add rule ip t c udp dport 9 limit rate 1/hour drop",
                _ => "flush ruleset",
            },
        );
        let until = Instant::now() + PAUSE;
        while Instant::now() < until {
            talk.ask().unwrap();
            thread::sleep(Duration::from_millis(20));
        }
    }
    let (spent, passed) = (cpu_time(&mut bed[0]) - before, began.elapsed());
    for report in streams.map(|stream| stream.finish().unwrap()) {
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }
    assert!(spent < passed / 2, "{spent:?} of {passed:?}");
    nft(&bed[0].host, "flush ruleset");
    eventually(&bed, 0, "on");
}
