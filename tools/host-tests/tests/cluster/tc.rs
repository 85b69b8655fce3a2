//! Somebody else's queueing disciplines and filters at a container's port. What they do to packets under `--fast-path off`,
//! they must do whatever carries the packets.
use std::{
    net::UdpSocket,
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use overlay_common::{Hook, Reason};
use overlay_lab::{Backend, Container, Host, Member, Options, transfer};

use super::{
    bed::{Bed, Kind, endpoint, pings, wait_for},
    ingress::{REDIRECT, STRIP, xdp_targets},
};

/// Three packets of 1,000 bytes more than this fit into the queue: about six pass at once, and one a second later on.
const SLOW: &str = "tbf rate 8kbit burst 2000 latency 25ms";
/// A policer stands in for any filter: a classic BPF program that drops frames of more than 300 bytes (`ld len; jgt 300; ret 2`)
/// and leaves all others to the next filter (`ret -1`).
const POLICE: &str = "4,128 0 0 0,37 0 1 300,6 0 0 2,6 0 0 4294967295";
/// Packets of a burst.
const BURST: u32 = 200;
/// More than pass the slow queue in the time that a burst and its stragglers take, on a machine however slow.
const FEW: u32 = 60;

const SMALL: usize = 100;
const LARGE: usize = 900;

fn tc(host: &Host, line: &str) -> String {
    host.exec(&format!("tc {line}")).unwrap()
}

/// Puts the policer at one side of a container's port.
fn police(host: &Host, port: &str, side: &str) {
    let file = host.folder().join("police");
    std::fs::write(&file, POLICE).unwrap();
    let line =
        format!("filter add dev {port} {side} protocol all pref 100 bpf da bytecode-file {}", file.display());
    tc(host, &line);
}

/// Sends a burst of datagrams, whose connection is new, and returns how many arrive.
fn burst(from: &Container, to: &Container, size: usize) -> u32 {
    let inbox = to.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?)).unwrap();
    setsockopt(&inbox.as_fd(), RcvBufForce, &(8 << 20)).unwrap();
    let target = (to.address(), inbox.local_addr().unwrap().port());
    let send = move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..BURST {
            socket.send_to(&vec![7; size], target)?;
        }
        Ok(())
    };
    from.namespace().enter(send).unwrap();
    // A queue that sends one packet a second must not be waited for until it is empty.
    let end = Instant::now() + Duration::from_secs(3);
    inbox.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let (mut received, mut bytes) = (0, [0; 2048]);
    while received < BURST && Instant::now() < end {
        received += u32::from(inbox.recv(&mut bytes).is_ok());
    }
    received
}

/// What the queueing discipline at a port's root has sent and dropped, in packets.
fn queue(host: &Host, port: &str) -> [u64; 2] {
    let shown = tc(host, &format!("-s -j qdisc show dev {port} root"));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    ["packets", "drops"].map(|field| shown[0][field].as_u64().unwrap_or_else(|| panic!("{shown}")))
}

/// Waits until the programs know which path the packets of a container are to take.
#[track_caller]
fn path(member: &Member, container: &Container, path: &str, why: &str) {
    wait_for(&format!("{}'s path to be {path} because of `{why}`", container.address()), || {
        endpoint(member, container.address()).is_some_and(|row| {
            row["path"] == path && row["path_why"].as_str().is_some_and(|text| text.contains(why))
        })
    });
}

fn count(member: &Member, hook: Hook, reason: Reason) -> u64 {
    member.counters().unwrap().packets(hook, reason)
}

/// How many packets the fast path has delivered on a host.
fn delivered(member: &Member) -> u64 {
    count(member, Hook::Decap, Reason::Carried) + count(member, Hook::Xdp, Reason::Carried)
}

/// Asserts that the slow queue at the port of `to` got a burst, and let few of its packets pass.
fn is_slow(member: &Member, from: &Container, to: &Container) {
    let before = queue(&member.host, to.port());
    let received = burst(from, to, LARGE);
    let after = queue(&member.host, to.port());
    let [sent, dropped] = [after[0] - before[0], after[1] - before[1]];
    println!("  {received} of {BURST} arrived; the queue sent {sent} and dropped {dropped}");
    assert!(received > 0 && received <= FEW, "{received} of {BURST} arrived through the slow queue");
    assert!(dropped >= u64::from(BURST - FEW) && sent >= u64::from(received), "{sent} {dropped}");
}

/// Every way in, and every mode.
fn beds() -> Vec<(&'static str, Bed)> {
    let bed = |config: &str, wire_like: bool, agent: &[&str]| {
        let options = Options { wire_like, ..Options::default() };
        let bed = Bed::with_config(Kind::Folder, options, config, agent);
        bed.learn_all();
        bed
    };
    let vxlan = Backend::Vxlan.config();
    vec![
        ("tcx", bed(vxlan, false, &[])),
        ("clsact", bed(vxlan, true, &["--attach", "clsact"])),
        ("xdp", bed(vxlan, false, &REDIRECT)),
        ("xdp-strip", bed(vxlan, true, &STRIP)),
        ("udp", bed(Backend::Udp.config(), false, &[])),
        ("host-gw", bed(Backend::HostGw.config(), false, &[])),
    ]
}

#[test]
fn a_queueing_discipline_at_a_port_is_obeyed_whatever_carries_the_packets() {
    for (name, mut bed) in beds() {
        println!("{name}");
        let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
        let host = bed[0].host.clone();
        if name == "xdp" {
            wait_for("the containers' veths to take frames", || xdp_targets(&bed[0]) >= 2);
        }
        path(&bed[0], &a, "fast", "");
        assert_eq!(burst(&b, &a, LARGE), BURST, "nobody slows it down yet");

        tc(&host, &format!("qdisc add dev {} root {SLOW}", a.port()));
        path(&bed[0], &a, "own-egress", "queueing discipline tbf");
        path(&bed[0], &bed[0].containers[1], "fast", "");
        let before = bed[0].counters().unwrap();
        // The answer takes the fast path: what the queue delivers is no stack flow.
        assert!(b.ping(a.address(), pings(1)).unwrap().complete());
        is_slow(&bed[0], &b, &a);
        let after = bed[0].counters().unwrap();
        let of = |hook, reason| after.packets(hook, reason) - before.packets(hook, reason);
        assert_eq!(of(Hook::Decap, Reason::Carried), u64::from(BURST) + 1, "{after:?}");
        assert_eq!((of(Hook::Encap, Reason::Carried), of(Hook::Encap, Reason::StackFlow)), (1, 0));
        let (stack, fast) = (after.carried().stack_in, before.carried().stack_in);
        assert_eq!((stack, of(Hook::Xdp, Reason::Carried)), (fast, 0), "{after:?}");
        // The other container of this host is not slowed down, and neither is what this one sends.
        assert_eq!(burst(&b, &bed[0].containers[1], LARGE), BURST);
        assert_eq!(burst(&a, &b, LARGE), BURST);

        // The programs know it without an agent, and the next agent does not forget it.
        bed[0].kill_agent().unwrap();
        is_slow(&bed[0], &b, &a);
        bed[0].restart_agent().unwrap();
        is_slow(&bed[0], &b, &a);
        tc(&host, &format!("qdisc delete dev {} root", a.port()));
        path(&bed[0], &a, "fast", "");
        assert_eq!(burst(&b, &a, LARGE), BURST);
    }
}

#[test]
fn a_queueing_discipline_under_fast_path_off_does_the_same() {
    let bed = Bed::with(Kind::Folder, Options::default(), &["--fast-path", "off"]);
    bed.learn_all();
    let (a, b) = bed.pair();
    tc(&bed[0].host, &format!("qdisc add dev {} root {SLOW}", a.port()));
    path(&bed[0], a, "stack", "--fast-path off");
    is_slow(&bed[0], b, a);
}

#[test]
fn a_stream_through_a_queueing_discipline_arrives_whole() {
    for wire_like in [false, true] {
        for config in [Backend::Vxlan.config(), Backend::Udp.config(), Backend::HostGw.config()] {
            let options = Options { wire_like, ..Options::default() };
            let bed = Bed::with_config(Kind::Folder, options, config, &[]);
            bed.learn_all();
            let (a, b) = bed.pair();
            // The burst is smaller than a GSO frame, which the queueing discipline must cut into segments itself.
            let line = format!("qdisc add dev {} root tbf rate 400mbit burst 8000 latency 200ms", a.port());
            tc(&bed[0].host, &line);
            path(&bed[0], a, "own-egress", "tbf");
            let before = (delivered(&bed[0]), bed[0].counters().unwrap().carried().stack_in);
            let took = transfer(b, a, 10 << 20).unwrap().time;
            let after = (delivered(&bed[0]), bed[0].counters().unwrap().carried().stack_in);
            println!("wire-like: {wire_like}, {config}: 10 MB in {took:?}");
            assert!(after.0 - before.0 > (10 << 20) / 1500 && after.1 == before.1, "{before:?} {after:?}");
            assert!(took > Duration::from_millis(150), "faster than the queue: {took:?}");
            assert!(queue(&bed[0].host, a.port())[0] > 0);
        }
    }
}

#[test]
fn a_filter_at_a_ports_egress_is_obeyed() {
    for method in ["tcx", "clsact"] {
        let bed = Bed::with(Kind::Folder, Options::default(), &["--attach", method]);
        bed.learn_all();
        let (a, b) = bed.pair();
        let host = &bed[0].host;
        // It is there already with clsact, and ours alone.
        let _ = host.exec(&format!("tc qdisc add dev {} clsact", a.port()));
        thread::sleep(Duration::from_millis(300));
        path(&bed[0], a, "fast", "");
        police(host, a.port(), "egress");
        path(&bed[0], a, "own-egress", "bpf filter");
        let before = delivered(&bed[0]);
        assert_eq!((burst(b, a, LARGE), burst(b, a, SMALL)), (0, BURST), "{method}");
        assert_eq!(delivered(&bed[0]) - before, 2 * u64::from(BURST), "{method}");
        tc(host, &format!("filter delete dev {} egress pref 100", a.port()));
        path(&bed[0], a, "fast", "");
        assert_eq!(burst(b, a, LARGE), BURST, "{method}");
    }
}

#[test]
fn a_filter_at_a_ports_ingress_is_obeyed_and_both_directions_take_the_stack() {
    for method in ["tcx", "clsact"] {
        let bed = Bed::with(Kind::Folder, Options::default(), &["--attach", method]);
        bed.learn_all();
        let (a, b) = bed.pair();
        let host = &bed[0].host;
        let _ = host.exec(&format!("tc qdisc add dev {} clsact", a.port()));
        police(host, a.port(), "ingress");
        path(&bed[0], a, "stack", "bpf filter");
        let before = bed[0].counters().unwrap();
        assert_eq!((burst(a, b, LARGE), burst(a, b, SMALL)), (0, BURST), "{method}");
        // A connection that begins at the other end takes the stack from its first packet on.
        assert_eq!(burst(b, a, LARGE), BURST, "{method}");
        assert!(b.ping(a.address(), pings(1)).unwrap().complete());
        let after = bed[0].counters().unwrap();
        let of = |hook, reason| after.packets(hook, reason) - before.packets(hook, reason);
        assert_eq!((of(Hook::Encap, Reason::Carried), of(Hook::Decap, Reason::Carried)), (0, 0), "{after:?}");
        assert_eq!(of(Hook::Encap, Reason::ForeignFilter), 2 * u64::from(BURST) + 1, "{after:?}");
        assert_eq!(of(Hook::Decap, Reason::ForeignFilter), u64::from(BURST) + 1, "{after:?}");
        assert_eq!(after.carried().dropped, before.carried().dropped, "{after:?}");
        tc(host, &format!("filter delete dev {} ingress pref 100", a.port()));
        path(&bed[0], a, "fast", "");
        assert_eq!(burst(a, b, LARGE), BURST, "{method}");
    }
}
