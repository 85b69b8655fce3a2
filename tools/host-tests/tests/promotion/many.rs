//! As many promoted connections as the table has space for: what is in use stays fast, the agent's work for them is bounded, and new
//! rules end all of them at once.
use std::{
    thread,
    time::{Duration, Instant},
};

use overlay_common::{
    Addr4, FLOW_BACKWARD, FLOW_DELIVERED, FLOW_FORWARD, FLOW_SENT, Flow, FlowKey, Hook, Reason, epoch_bits,
    header::protocol::{TCP, UDP},
};
use overlay_lab::{Backend, Member, cpu::CpuTime, wait_until};
use overlay_user::datapath::tables::Tables;

use super::established::{asks, asserts_fast, promoted};
use crate::{
    bed::{MODES, pins, wait_for},
    traffic::{BOTH, Server, Talk, Tier, assert_nothing_invalid, nft, settle, strict_bed_of, tiers},
};

const MANY: u32 = 100_000;

/// A connection that has nothing to do with this test.
fn stranger(number: u32) -> FlowKey {
    let [_, a, b, c] = number.to_be_bytes();
    let protocol = if number.is_multiple_of(2) { TCP } else { UDP };
    FlowKey::new(Addr4::new([10, 244, 200, a]), Addr4::new([10, 244, 201, 1]), [[b, c], [0, 80]], protocol)
}

/// Fills the table with promoted connections, beside the conversations that are promoted already.
fn fill(member: &Member) {
    let mut tables = Tables::open(&pins(member)).unwrap();
    // The pings by which the bed was tried are stack flows too, promoted or not, and live for half a minute. If they stayed, the
    // table would have space again once they are over, which a slow machine sees before it has looked at everything.
    let talks: Vec<_> = tables.stack_flows.promoted().unwrap().into_iter().map(|(key, _)| key).collect();
    let stays = |key: &FlowKey| matches!(key.protocol, TCP | UDP) && talks.contains(key);
    let all: Vec<_> = tables.stack_flows.iter().map(|entry| entry.unwrap().0).collect();
    for key in all.iter().filter(|key| !stays(key)) {
        // The agent may have removed it meanwhile.
        let _ = tables.stack_flows.remove(key);
    }
    let state = FLOW_FORWARD | FLOW_BACKWARD | FLOW_SENT | FLOW_DELIVERED;
    let state = state | epoch_bits(tables.stack_flows.epoch().unwrap());
    let seen_ns = now_ns();
    let used = tables.stack_flows.iter().count() as u32;
    for number in 0..MANY - used {
        tables.stack_flows.insert(stranger(number), Flow { seen_ns, state, reserved: 0 }).unwrap();
    }
    assert!(
        tables.stack_flows.insert(stranger(MANY), Flow::default()).is_err(),
        "there is space for another"
    );
}

/// CLOCK_MONOTONIC, by which the programs stamp stack flows.
fn now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    Duration::from(now).as_nanos() as u64
}

/// How long a process itself has run on a CPU.
fn cpu_time(pid: u32) -> Duration {
    CpuTime::of(pid).unwrap().own
}

#[test]
fn a_hundred_thousand_promoted_connections() {
    let mut bed = strict_bed_of(Backend::Vxlan, 1, &[MODES[1], &["--max-flows", "100000"][..]].concat());
    for member in &bed.members {
        // However long the rest takes, nothing expires meanwhile.
        member.host.namespace().sysctl("netfilter/nf_conntrack_udp_timeout_stream", "3600").unwrap();
    }
    let _server = Server::of(&bed[1].containers[0]);
    let mut talks = promoted(&bed);
    fill(&bed[0]);

    // Connection tracking is told of all of them.
    let namespace = bed[0].host.namespace().clone();
    let tracked = || {
        let count = namespace.exec("cat /proc/sys/net/netfilter/nf_conntrack_count").unwrap();
        count.trim().parse::<u32>().unwrap()
    };
    let started = Instant::now();
    wait_until("all to be tracked", Duration::from_secs(120), || Ok(tracked() >= MANY - 100)).unwrap();
    println!("tracked after {:?}", started.elapsed());
    // From now on the agent only looks. Both times grow alike on a busy machine, and a look is followed by a pause.
    let pid = bed[0].agent().unwrap().pid().unwrap();
    let (before, started) = (cpu_time(pid), Instant::now());
    thread::sleep(Duration::from_secs(15));
    let share = (cpu_time(pid) - before).as_secs_f64() / started.elapsed().as_secs_f64();
    println!("the agent takes {:.1} % of a CPU", share * 100.0);
    assert!(share < 0.15, "{share}");

    for talk in &mut talks {
        let carried = tiers(&bed, || (0..5).for_each(|_| asks(talk)));
        assert_eq!(carried, [Tier::Fast, Tier::Fast]);
    }
    // What is new has no space on this host, and is counted.
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let full = || bed[0].counters().unwrap().packets(Hook::Send, Reason::FlowTableFull);
    for protocol in BOTH {
        let before = full();
        let mut beyond = Talk::open(a.namespace(), protocol, b.address(), 8080).unwrap();
        asks(&mut beyond);
        let carried = tiers(&bed, || (0..5).for_each(|_| asks(&mut beyond)));
        assert_eq!(carried, [Tier::Stack, Tier::Fast], "{protocol:?}");
        assert!(full() > before);
    }

    // New rules end all of them.
    let promoted = || Tables::open(&pins(&bed[0])).unwrap().stack_flows.promoted().unwrap().len();
    assert!(promoted() > MANY as usize - 100);
    let started = Instant::now();
    nft(&bed[0].host, "table ip other { }");
    wait_for("the promotions to end", || promoted() < 100);
    println!("taken back after {:?}", started.elapsed());
    settle(&bed);
    for talk in &mut talks {
        asserts_fast(&bed, talk);
    }
    assert_nothing_invalid(&bed);
}
