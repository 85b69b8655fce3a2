//! The scenario: pings, a transfer, and an agent that is killed and started again under a connection, all on the fast
//! path.
use std::{thread, time::Duration};

use overlay_common::{Hook, Reason};
use overlay_lab::{
    self as lab, Backend, Container, Lab, Member, Options, PingOptions, Store, transfer, wait_until,
};

use super::{connection::Connection, evidence};

/// How long anything may take. A VM without KVM runs at a tenth of the speed.
const PATIENCE: Duration = Duration::from_secs(60);
const PINGS: u32 = 5;
const TRANSFER: u64 = 8 << 20;
/// A size that no packet's payload exceeds. A transfer therefore takes at least its bytes divided by this many packets.
const LARGEST_PAYLOAD: u64 = 1500;

/// Prints a fact that was just seen, for docs/kernels.md: the section, what was seen, and how it was.
fn fact(section: &str, what: &str, how: &str) {
    println!("fact: {section} / {what} = {how}");
}

pub fn run(backend: Backend, ingress: &str, attach: &str, options: &[&str]) {
    let mode = if backend == Backend::Vxlan { String::new() } else { format!("{}: ", backend.name()) };
    let setup = format!("{mode}--ingress {ingress} --attach {attach}");
    let seen = |what: &str, how: &str| fact(&setup, what, how);
    // The underlay is as between real NICs, because an XDP program takes unfinished checksums for finished ones.
    let lab = Lab::new(Options { wire_like: true, ..Options::default() }).unwrap();
    let store = Store::folder(&lab);
    let options = [&["--ingress", ingress, "--attach", attach], options].concat();
    let binary = overlay_host_tests::overlay();
    let mut members = lab::populate_with(&lab, binary, &store, backend.config(), &options).unwrap();
    learn_all(&members);
    if ingress == "xdp" && evidence::kernel() >= (6, 3) {
        // The containers are learned before they are looked at.
        let receive = |member: &Member| {
            let status: serde_json::Value = serde_json::from_str(&member.overlay(&["status", "--json"])?)?;
            anyhow::Ok(status["agent"]["datapath"]["receivers"] == 2)
        };
        wait_until("the containers' veths to take frames", PATIENCE, || {
            Ok(receive(&members[0])? && receive(&members[1])?)
        })
        .unwrap();
    }
    let [a, b] = [0, 1].map(|host| members[host].containers[0].clone());

    assert_reaches(&a, &b);
    assert_reaches(&b, &a);
    seen("ping", "both ways");

    let carried = on_the_fast_path(&members, || {
        transfer(&a, &b, TRANSFER).unwrap();
        transfer(&b, &a, TRANSFER).unwrap();
    });
    for [tc, xdp] in carried {
        assert!(tc + xdp > TRANSFER / LARGEST_PAYLOAD, "TC carried {tc}, XDP {xdp}");
        // Before 6.3 the kernel does not tell which veths can receive redirected frames, so XDP leaves all frames to
        // TC.
        let redirects = ingress == "xdp" && evidence::kernel() >= (6, 3);
        assert_eq!(redirects, xdp > 0, "under {ingress}, XDP carried {xdp} packets, TC {tc}");
    }
    if ingress == "xdp" {
        let redirects = evidence::kernel() >= (6, 3);
        seen("XDP delivers", if redirects { "into containers" } else { "nothing; instead: TC" });
    }
    seen("TCP transfer", &format!("{} MB each way, every byte compared", TRANSFER >> 20));

    through_a_queue(&members, &b, &a);

    let mut connection = Connection::open(&a, &b).unwrap();
    let before = members.iter().map(evidence::of).collect::<Vec<_>>();
    on_the_fast_path(&members, || connection.exchange().unwrap());
    for member in &mut members {
        member.kill_agent().unwrap();
    }
    // No agent runs anywhere, so the kernel alone carries the packets.
    connection.exchange().unwrap();
    assert_reaches(&b, &a);
    for member in &mut members {
        member.restart_agent().unwrap();
    }
    learn_all(&members);
    on_the_fast_path(&members, || connection.exchange().unwrap());
    seen("agents killed and restarted", "the connection lives on");
    seen("fast path", "all of it, before, meanwhile and after");

    let after = members.iter().map(evidence::of).collect::<Vec<_>>();
    assert_eq!(before, after, "the next agent attached otherwise than the one before");
    assert!(after.iter().all(|host| *host == after[0]), "{after:?}");
    for (what, how) in after[0].facts() {
        seen(what, how);
    }
    for (what, how) in after[0].features() {
        fact("Features", what, how);
    }
    for member in &mut members {
        assert_eq!(member.agent().unwrap().status().unwrap(), None, "an agent ended");
        assert_eq!(member.counters().unwrap().carried().dropped, 0, "{:?}", member.counters());
    }
}

/// Somebody else puts a queueing discipline at the port of `to`, on the first host. What the fast path delivers must pass it,
/// and must not be taken for what the stack delivers.
fn through_a_queue(members: &[Member], from: &Container, to: &Container) {
    let tc = |line: &str| members[0].host.exec(&format!("tc {line} dev {} root", to.port())).unwrap();
    let path = |path: &str| {
        let is_told = || {
            let rows: serde_json::Value =
                serde_json::from_str(&members[0].overlay(&["endpoints", "--json"])?)?;
            let mut rows = rows.as_array().into_iter().flatten();
            Ok(rows.any(|row| row["address"] == to.address().to_string() && row["path"] == path))
        };
        wait_until(&format!("the path {path}"), PATIENCE, is_told).unwrap();
    };
    members[0]
        .host
        .exec(&format!("tc qdisc add dev {} root tbf rate 1gbit burst 20000 latency 400ms", to.port()))
        .unwrap();
    path("own-egress");
    on_the_fast_path(members, || {
        transfer(from, to, TRANSFER / 8).unwrap();
        assert_reaches(from, to);
    });
    let shown = tc("-s -j qdisc show");
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert!(shown[0]["bytes"].as_u64().is_some_and(|sent| sent > TRANSFER / 8), "{shown}");
    tc("qdisc delete");
    path("fast");
}

/// Runs `work` and returns how many packets TC and XDP received meanwhile on each host. It fails if the stack carried
/// any.
fn on_the_fast_path(members: &[Member], work: impl FnOnce()) -> Vec<[u64; 2]> {
    let counters = || members.iter().map(|member| member.counters().unwrap()).collect::<Vec<_>>();
    let before = counters();
    work();
    let carried = before.iter().zip(counters()).map(|(before, after)| {
        let more = |hook| after.packets(hook, Reason::Carried) - before.packets(hook, Reason::Carried);
        let stack = (more(Hook::Send), more(Hook::Receive));
        assert_eq!(stack, (0, 0), "the stack carried some: {:?}, before: {:?}", after.all(), before.all());
        [more(Hook::Decap), more(Hook::Xdp)]
    });
    carried.collect()
}

/// Waits until every container reaches every other host's and all are learned, so that the fast path carries everything
/// from now on.
fn learn_all(members: &[Member]) {
    let once = PingOptions { count: 1, ..PingOptions::default() };
    for (from, to) in [(0, 1), (1, 0)] {
        for (from, to) in members[from].containers.iter().zip(&members[to].containers) {
            let answered = || Ok(from.ping(to.address(), once)?.complete());
            wait_until(&format!("an answer from {}", to.address()), PATIENCE, answered).unwrap();
        }
    }
    for member in members {
        wait_until(&format!("the endpoints of {}", member.host.name()), PATIENCE, || {
            let endpoints = member.overlay(&["endpoints"])?;
            Ok(member.containers.iter().all(|container| endpoints.contains(&container.address().to_string())))
        })
        .unwrap();
    }
    // The connections of earlier pings are stack flows; later ones are not.
    thread::sleep(Duration::from_millis(100));
}

fn assert_reaches(from: &Container, to: &Container) {
    let options = PingOptions { count: PINGS, timeout: 5.0, ..PingOptions::default() };
    let ping = from.ping(to.address(), options).unwrap();
    assert!(ping.complete(), "{} -> {}: {}", from.address(), to.address(), ping.output);
}
