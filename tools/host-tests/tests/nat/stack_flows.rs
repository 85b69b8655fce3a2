//! How long a connection remains a stack flow: as long as connection tracking knows it, however many there are.
use std::{net::Ipv4Addr, thread, time::Duration};

use nix::time::{ClockId, clock_gettime};
use overlay_common::{
    Addr4, FLOW_BACKWARD, FLOW_FORWARD, Flow, FlowKey,
    Hook::{Send, Track},
    Reason,
};
use overlay_lab::Member;
use overlay_user::datapath::{lifetimes::Lifetimes, tables::Tables};

use super::traffic::{
    BOTH, Protocol, Server, Talk,
    Tier::{Fast, Stack},
    assert_nothing_invalid, own, promote, publish, strict_bed, tiers,
};
use crate::bed::{Bed, Kind, MODES, json, pins, wait_for};

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

fn now_ns() -> u64 {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap()).as_nanos() as u64
}

fn flows(member: &Member) -> Vec<(FlowKey, Flow)> {
    let tables = Tables::open(&pins(member)).unwrap();
    tables.stack_flows.iter().map(|entry| entry.unwrap()).collect()
}

/// Makes every stack flow of a host look as if its last packet had passed `seconds` ago.
fn age(member: &Member, seconds: u64) {
    let mut tables = Tables::open(&pins(member)).unwrap();
    for (key, flow) in flows(member) {
        let seen_ns = flow.seen_ns.saturating_sub(seconds * 1_000_000_000);
        tables.stack_flows.insert(key, Flow { seen_ns, ..flow }).unwrap();
    }
}

/// Restarts the agent, which removes expired stack flows as soon as it starts. Returns how many it says are left.
fn restart(member: &mut Member) -> u64 {
    member.kill_agent().unwrap();
    member.restart_agent().unwrap();
    let mut left = 0;
    wait_for("the stack flows to be counted", || {
        let status = json(member, &["status"]);
        left = status["agent"]["datapath"]["flows"].as_u64().unwrap();
        left as usize == flows(member).len()
    });
    left
}

/// Conversations that are translated on the sender's host and on the receiver's.
fn talks(bed: &Bed) -> Vec<Talk> {
    let (a, b) = bed.pair();
    publish(&bed[0].host, SERVICE, 80, b);
    publish(&bed[1].host, own(bed, 1, 1), 81, b);
    let targets = [(SERVICE, 80), (own(bed, 1, 1), 81)];
    let open = |protocol| targets.map(|(to, port)| Talk::open(a.namespace(), protocol, to, port).unwrap());
    BOTH.into_iter().flat_map(open).collect()
}

fn ask_all(bed: &Bed, talks: &mut [Talk]) {
    for (index, talk) in talks.iter_mut().enumerate() {
        let expected = if index % 2 == 0 { [Stack, Fast] } else { [Fast, Stack] };
        promote(bed, talk).unwrap_or_else(|error| panic!("conversation {index}: {error:#}"));
        let tiers = tiers(bed, || {
            for _ in 0..2 {
                let heard = talk.ask().unwrap_or_else(|error| panic!("conversation {index}: {error:#}"));
                assert_eq!(heard, bed[0].containers[0].address());
            }
        });
        assert_eq!(tiers, expected, "conversation {index}");
    }
}

#[test]
fn ten_idle_minutes_change_nothing() {
    MODES.into_iter().for_each(ten_idle_minutes);
}

fn ten_idle_minutes(mode: &[&str]) {
    let mut bed = strict_bed(1, &[&["--ip-masq"][..], mode].concat());
    let _server = Server::of(&bed[1].containers[0]);
    // UDP's state in connection tracking must outlive the ten minutes too; TCP's is kept for days by default.
    for member in &bed.members {
        let namespace = member.host.namespace();
        namespace.sysctl("netfilter/nf_conntrack_udp_timeout_stream", "900").unwrap();
        namespace.sysctl("netfilter/nf_conntrack_udp_timeout", "900").unwrap();
    }
    let mut talks = talks(&bed);
    ask_all(&bed, &mut talks);
    for host in [0, 1] {
        // An attempt to connect that is as old and was never answered has expired. That it goes shows that the agent
        // looked at the ages.
        let mut tables = Tables::open(&pins(&bed[host])).unwrap();
        let attempt = FlowKey::new(Addr4::new([10, 244, 1, 9]), Addr4::new([10, 244, 2, 9]), [[1, 2]; 2], 6);
        let seen = Flow { seen_ns: now_ns(), state: FLOW_FORWARD, reserved: 0 };
        tables.stack_flows.insert(attempt, seen).unwrap();
        age(&bed[host], 600);
        let before = flows(&bed[host]);
        restart(&mut bed[host]);
        let after = flows(&bed[host]);
        assert!(after.iter().all(|(key, _)| *key != attempt), "the attempt was not forgotten");
        // The flows of pings have expired too. Those of the conversations that this host does not translate are known only where
        // they began on its stack.
        let talks = before.iter().filter(|(key, _)| *key != attempt && key.protocol != 1).count();
        let known = if bed.established { 4 } else { 2 };
        assert_eq!((talks, after.len()), (known, known), "{before:?} {after:?}");
    }
    ask_all(&bed, &mut talks);
    assert_nothing_invalid(&bed);
}

#[test]
fn what_connection_tracking_forgot_begins_anew() {
    MODES.into_iter().for_each(begin_anew);
}

fn begin_anew(mode: &[&str]) {
    let mut bed = strict_bed(1, &[&["--ip-masq"][..], mode].concat());
    let _server = Server::of(&bed[1].containers[0]);
    for member in &bed.members {
        // Of a connection that has left the stack before the agent's first look, connection tracking knows the handshake alone, and
        // would find later packets of it invalid. By default it forgets the handshake long before an agent forgets the connection.
        for name in ["udp_timeout_stream", "udp_timeout", "tcp_timeout_established", "tcp_timeout_syn_recv"] {
            member.host.namespace().sysctl(&format!("netfilter/nf_conntrack_{name}"), "1").unwrap();
        }
    }
    let mut talks = talks(&bed);
    ask_all(&bed, &mut talks);
    // This is longer than connection tracking keeps a connection, and than a stack flow is kept beyond that.
    thread::sleep(Duration::from_millis(3500));
    for host in [0, 1] {
        let udp = |(key, _): &(FlowKey, Flow)| key.protocol == 17;
        assert!(flows(&bed[host]).iter().any(udp));
        restart(&mut bed[host]);
        assert!(!flows(&bed[host]).iter().any(udp), "{:?}", flows(&bed[host]));
    }
    // The same ports are translated and become stack flows again. nf_conntrack_tcp_loose lets connection tracking
    // accept a TCP connection in its middle.
    ask_all(&bed, &mut talks);
    assert_nothing_invalid(&bed);
}

#[test]
fn a_stack_flow_that_comes_to_life_while_old_ones_are_sorted_out_stays() {
    let bed = Bed::new(Kind::Folder, 2);
    let mut tables = Tables::open(&pins(&bed[0])).unwrap();
    let [stale, used] = [stranger(1), stranger(2)];
    for key in [stale, used] {
        let old = Flow { seen_ns: 0, state: FLOW_FORWARD, reserved: 0 };
        tables.stack_flows.insert(key, old).unwrap();
    }
    // All lifetimes are zero, so that it does not matter for how long this machine has been up.
    let none = Duration::ZERO;
    let lifetimes = Lifetimes { tcp: none, tcp_attempt: none, tcp_closing: none, ..Lifetimes::DEFAULT };
    let (over, _) = lifetimes.sort(&tables.stack_flows).unwrap();
    assert!(over.contains(&stale) && over.contains(&used), "{over:?}");
    // A packet that passes meanwhile uses the ports again.
    let seen = Flow { seen_ns: now_ns(), state: FLOW_FORWARD, reserved: 0 };
    tables.stack_flows.insert(used, seen).unwrap();
    assert_eq!(lifetimes.forget(&mut tables.stack_flows, &over).unwrap(), 1);
    assert!(tables.stack_flows.get(&stale).is_none() && tables.stack_flows.get(&used).is_some());
}

/// A TCP connection that has nothing to do with this test.
fn stranger(number: u32) -> FlowKey {
    let [_, a, b, c] = number.to_be_bytes();
    FlowKey::new(Addr4::new([10, 244, 200, a]), Addr4::new([10, 244, 201, 1]), [[b, c], [0, 80]], 6)
}

#[test]
fn among_a_hundred_thousand_stack_flows_none_in_use_is_evicted() {
    const MANY: u32 = 100_000;
    let mut bed = strict_bed(1, &["--ip-masq", "--max-flows", "100000"]);
    let _server = Server::of(&bed[1].containers[0]);
    // However long the rest takes, what is in use here must not expire meanwhile.
    for member in &bed.members {
        for name in ["udp_timeout_stream", "udp_timeout", "icmp_timeout"] {
            member.host.namespace().sysctl(&format!("netfilter/nf_conntrack_{name}"), "3600").unwrap();
        }
    }
    let mut talks = talks(&bed);
    ask_all(&bed, &mut talks);
    for host in [0, 1] {
        let mut tables = Tables::open(&pins(&bed[host])).unwrap();
        let used = flows(&bed[host]).len() as u32;
        let established = Flow { seen_ns: now_ns(), state: FLOW_FORWARD | FLOW_BACKWARD, reserved: 0 };
        for number in 0..MANY - used {
            tables.stack_flows.insert(stranger(number), established).unwrap();
        }
        // The map has no space for another.
        assert!(tables.stack_flows.insert(stranger(MANY), established).is_err());
    }
    ask_all(&bed, &mut talks);
    assert_eq!(restart(&mut bed[0]), u64::from(MANY));
    assert_eq!(restart(&mut bed[1]), u64::from(MANY));
    ask_all(&bed, &mut talks);

    // A connection beyond these is counted and evicts none.
    let full = |host: usize, hook| bed[host].counters().unwrap().packets(hook, Reason::FlowTableFull);
    let before = full(0, Send);
    let a = bed[0].containers[0].clone();
    let mut beyond = Talk::open(a.namespace(), Protocol::Udp, SERVICE, 80).unwrap();
    // Its answers take the fast path, because it is no stack flow, and nothing translates them back there.
    assert!(beyond.ask().is_err());
    assert!(full(0, Send) > before && full(0, Track) == 0);
    assert_eq!(flows(&bed[0]).len(), MANY as usize);
    ask_all(&bed, &mut talks);

    // Expired flows are removed and make space; those in use stay.
    let mut tables = Tables::open(&pins(&bed[0])).unwrap();
    for number in 0..1000 {
        let over = Flow { seen_ns: 0, state: FLOW_FORWARD, reserved: 0 };
        tables.stack_flows.insert(stranger(number), over).unwrap();
    }
    bed[0].host.namespace().sysctl("netfilter/nf_conntrack_tcp_timeout_syn_sent", "1").unwrap();
    assert_eq!(restart(&mut bed[0]), u64::from(MANY - 1000));
    let mut again = Talk::open(a.namespace(), Protocol::Udp, SERVICE, 80).unwrap();
    assert_eq!(tiers(&bed, || assert_eq!(again.ask().unwrap(), a.address())), [Stack, Fast]);
    assert!(flows(&bed[0]).iter().any(|(key, _)| key.ports.contains(&again.port().to_be_bytes())));
    ask_all(&bed, &mut talks);
    assert_nothing_invalid(&bed);
}
