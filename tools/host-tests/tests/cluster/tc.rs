//! Somebody else's queueing disciplines and filters at a container's port. What they do to packets under `--fast-path off`,
//! they must do whatever carries the packets.
use std::{
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use overlay_common::{Hook, Reason};
use overlay_lab::{Backend, Container, Host, Member, Options, transfer, wait_until};

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
/// How long a burst may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

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

/// A socket in a container, and how many datagrams of which size it has received.
struct Inbox {
    socket: UdpSocket,
    target: (Ipv4Addr, u16),
    sizes: Vec<usize>,
}

impl Inbox {
    fn of(container: &Container) -> Self {
        let socket = container.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?)).unwrap();
        setsockopt(&socket.as_fd(), RcvBufForce, &(8 << 20)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let target = (container.address(), socket.local_addr().unwrap().port());
        Self { socket, target, sizes: Vec::new() }
    }

    /// Sends it a burst of datagrams of each size, one after the other, by a connection that is new.
    fn fill(&self, from: &Container, sizes: &[usize]) {
        let (target, sizes) = (self.target, sizes.to_vec());
        let send = move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for size in sizes.into_iter().flat_map(|size| [size; BURST as usize]) {
                socket.send_to(&vec![7; size], target)?;
            }
            Ok(())
        };
        from.namespace().enter(send).unwrap();
    }

    /// Takes what has arrived, and returns how many datagrams of this size there have been.
    fn received(&mut self, size: usize) -> u32 {
        let mut bytes = [0; 2048];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            self.sizes.push(length);
        }
        self.sizes.iter().filter(|received| **received == size).count() as u32
    }
}

/// Sends a burst, and returns how many arrive.
fn burst(from: &Container, to: &Container, size: usize) -> u32 {
    let mut inbox = Inbox::of(to);
    inbox.fill(from, &[size]);
    let end = Instant::now() + PATIENCE;
    while inbox.received(size) < BURST && Instant::now() < end {}
    inbox.received(size)
}

/// Sends a burst of large datagrams and, behind it, one of small ones, and asserts that only these arrive.
#[track_caller]
fn only_small_arrive(what: &str, from: &Container, to: &Container) {
    let mut inbox = Inbox::of(to);
    inbox.fill(from, &[LARGE, SMALL]);
    let end = Instant::now() + PATIENCE;
    while inbox.received(SMALL) < BURST && Instant::now() < end {}
    assert_eq!((inbox.received(LARGE), inbox.received(SMALL)), (0, BURST), "{what}");
}

/// What the queueing discipline at a port's root has sent, has dropped and holds, in packets.
fn queue(host: &Host, port: &str) -> [u64; 3] {
    let shown = tc(host, &format!("-s -j qdisc show dev {port} root"));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    ["packets", "drops", "qlen"].map(|field| shown[0][field].as_u64().unwrap_or_else(|| panic!("{shown}")))
}

/// Waits until the programs know which path the packets of a container are to take.
#[track_caller]
fn path(member: &Member, container: &Container, path: &str, why: &str) {
    path_on_which(member, container, path, why, || {});
}

/// Does the same after something was put at the port. Before it fails because the path is not told, `is_obeyed` may fail because the
/// packets take another, which is worse.
#[track_caller]
fn path_on_which(member: &Member, container: &Container, path: &str, why: &str, is_obeyed: impl FnOnce()) {
    let what = format!("{}'s path to be {path} because of `{why}`", container.address());
    let told = wait_until(&what, Duration::from_secs(10), || {
        Ok(endpoint(member, container.address()).is_some_and(|row| {
            row["path"] == path && row["path_why"].as_str().is_some_and(|text| text.contains(why))
        }))
    });
    if told.is_err() {
        is_obeyed();
    }
    told.unwrap();
}

fn count(member: &Member, hook: Hook, reason: Reason) -> u64 {
    member.counters().unwrap().packets(hook, reason)
}

/// How many packets the fast path has delivered on a host.
fn delivered(member: &Member) -> u64 {
    count(member, Hook::Decap, Reason::Carried) + count(member, Hook::Xdp, Reason::Carried)
}

/// Asserts that the slow queue at the port of `to` got a burst, and let few of its packets pass: `least` at least, which is none
/// where the queue may still be full of an earlier burst. Returns the socket that what is still in the queue goes to: where there is
/// none, the container would send errors.
fn is_slow(member: &Member, from: &Container, to: &Container, least: u32) -> Inbox {
    let mut inbox = Inbox::of(to);
    let before = queue(&member.host, to.port());
    inbox.fill(from, &[LARGE]);
    let end = Instant::now() + PATIENCE;
    let (received, after) = loop {
        let (received, after) = (inbox.received(LARGE), queue(&member.host, to.port()));
        let taken = after.iter().sum::<u64>() - before.iter().sum::<u64>();
        // It sends one packet a second, so it must not be waited for until it is empty.
        let is_over = received == BURST || received >= least && taken == u64::from(BURST);
        if is_over || Instant::now() > end {
            break (received, after);
        }
    };
    let [sent, dropped] = [after[0] - before[0], after[1] - before[1]];
    println!("  {received} of {BURST} arrived; the queue sent {sent} and dropped {dropped}");
    assert!((least..=FEW).contains(&received), "{received} of {BURST} arrived through the slow queue");
    assert!(dropped >= u64::from(BURST - FEW) && sent >= u64::from(received), "{sent} {dropped}");
    inbox
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
        assert_eq!(burst(&b, &a, LARGE), BURST, "nobody slows it down yet");

        tc(&host, &format!("qdisc add dev {} root {SLOW}", a.port()));
        let is_obeyed = || drop(is_slow(&bed[0], &b, &a, 1));
        path_on_which(&bed[0], &a, "own-egress", "queueing discipline tbf", is_obeyed);
        path(&bed[0], &bed[0].containers[1], "fast", "");
        let before = bed[0].counters().unwrap();
        // The answer takes the fast path: what the queue delivers is no stack flow.
        assert!(b.ping(a.address(), pings(1)).unwrap().complete());
        let _inbox = is_slow(&bed[0], &b, &a, 1);
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
        drop(is_slow(&bed[0], &b, &a, 0));
        bed[0].restart_agent().unwrap();
        drop(is_slow(&bed[0], &b, &a, 0));
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
    drop(is_slow(&bed[0], b, a, 1));
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
            let is_slowed_down = || {
                let [before, ..] = queue(&bed[0].host, a.port());
                let took = transfer(b, a, 10 << 20).unwrap().time;
                let sent = queue(&bed[0].host, a.port())[0] - before;
                println!(
                    "wire-like: {wire_like}, {config}: 10 MB in {took:?}, {sent} packets through the queue"
                );
                assert!(sent > (10 << 20) / 1500, "past the queue: it sent {sent} packets");
                assert!(took > Duration::from_millis(150), "faster than the queue: {took:?}");
            };
            path_on_which(&bed[0], a, "own-egress", "tbf", is_slowed_down);
            let before = (delivered(&bed[0]), bed[0].counters().unwrap().carried().stack_in);
            is_slowed_down();
            let after = (delivered(&bed[0]), bed[0].counters().unwrap().carried().stack_in);
            assert!(after.0 - before.0 > (10 << 20) / 1500 && after.1 == before.1, "{before:?} {after:?}");
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
        // It is there already with clsact, and ours alone. It is no reason for another path, as the end of this test shows.
        let _ = host.exec(&format!("tc qdisc add dev {} clsact", a.port()));
        police(host, a.port(), "egress");
        path_on_which(&bed[0], a, "own-egress", "bpf filter", || only_small_arrive(method, b, a));
        let before = delivered(&bed[0]);
        only_small_arrive(method, b, a);
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
        path_on_which(&bed[0], a, "stack", "bpf filter", || only_small_arrive(method, a, b));
        let before = bed[0].counters().unwrap();
        only_small_arrive(method, a, b);
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
