//! What promoted connections leave behind in connection tracking: no more than they would without a fast path.
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use overlay_common::{Hook, Reason};
use overlay_lab::{Backend, Namespace, join, wait_until};

use super::{
    losses::Losses,
    overflows::{Overflow, Watch, unexplained},
};
use crate::{
    bed::{Bed, MODES, wait_for},
    traffic::{BOTH, Protocol, Server, Talk, strict_bed_of},
};

/// Longer than connection tracking keeps anything in this test, and than the agent waits between two looks.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn connection_tracking_forgets_what_has_ended() {
    const MANY: usize = 300;
    let bed = strict_bed_of(Backend::Vxlan, 1, &["--fast-path", "established"]);
    for member in &bed.members {
        let udp = ["udp_timeout", "udp_timeout_stream"];
        for name in ["tcp_timeout_syn_recv", "tcp_timeout_time_wait", "icmp_timeout"].iter().chain(&udp) {
            member.host.namespace().sysctl(&format!("netfilter/nf_conntrack_{name}"), "3").unwrap();
        }
    }
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let _server = Server::of(&b);
    // The kernel's own count includes what is over and not yet taken out of the table.
    let listed = |host: usize| bed[host].host.exec("cat /proc/net/nf_conntrack").unwrap();
    let known = |host: usize| listed(host).lines().filter(|line| line.contains("dport=8080")).count();
    for number in 0..MANY {
        let mut talk = Talk::open(a.namespace(), BOTH[number % 2], b.address(), 8080).unwrap();
        talk.ask().unwrap();
    }
    assert!((0..2).all(|host| known(host) >= MANY / 2), "{} {}", known(0), known(1));
    for host in [0, 1] {
        let forgets = wait_until("connection tracking to forget them", SOON, || Ok(known(host) == 0));
        forgets.unwrap_or_else(|error| panic!("{error}: {}", listed(host)));
    }
    // One that lives long is upheld, and then forgotten when it ends, long before its entry's own end.
    let mut talk = Talk::open(a.namespace(), Protocol::Tcp, b.address(), 8080).unwrap();
    talk.ask().unwrap();
    let upheld = |host: usize| {
        listed(host).lines().any(|line| line.contains("ESTABLISHED") && line.contains("dport=8080"))
    };
    wait_for("the connection to be upheld", || upheld(0) && upheld(1));
    talk.ask().unwrap();
    drop(talk);
    wait_for("the connection to be forgotten", || !upheld(0) && !upheld(1));
}

/// The ports of the servers for many short connections. Each has a client thread.
const PORTS: std::ops::Range<u16> = 8080..8084;

/// Whether a socket only had nothing to read in its time.
fn is_tick(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Serves short conversations by both protocols until `stop`: one byte each way.
fn serve(
    namespace: &Namespace,
    address: Ipv4Addr,
    stop: &Arc<AtomicBool>,
) -> Vec<std::thread::JoinHandle<Result<()>>> {
    const TICK: Duration = Duration::from_millis(100);
    let mut threads = Vec::new();
    for port in PORTS {
        let udp = namespace.enter(move || Ok(UdpSocket::bind((address, port))?)).unwrap();
        udp.set_read_timeout(Some(TICK)).unwrap();
        let stopped = stop.clone();
        threads.push(namespace.thread(move || {
            while !stopped.load(Ordering::Relaxed) {
                match udp.recv_from(&mut [0; 8]) {
                    Ok((_, from)) => drop(udp.send_to(b"!", from).with_context(|| format!("answer {from}"))?),
                    Err(error) if is_tick(error.kind()) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        }));
        let tcp = namespace.enter(move || Ok(TcpListener::bind((address, port))?)).unwrap();
        let stopped = stop.clone();
        threads.push(namespace.thread(move || {
            loop {
                let (mut stream, _) = tcp.accept()?;
                // The last connection only ends the waiting for it.
                if stopped.load(Ordering::Relaxed) {
                    return Ok(());
                }
                stream.read_exact(&mut [0])?;
                stream.write_all(b"!")?;
                // The client ends it.
                let _ = stream.read(&mut [0])?;
            }
        }));
    }
    threads
}

/// How long an answer is waited for. It is generous because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// Holds so many short conversations by each protocol, each of its own connection. Returns the clients' ports of those by UDP in
/// which a question or an answer was lost, so that only a second question was answered, and when the first was sent.
fn converse(bed: &Bed, by_each: usize) -> Vec<(u16, Instant)> {
    let (a, b) = bed.pair();
    let (to, stop) = (b.address(), Arc::new(AtomicBool::new(false)));
    let servers = serve(b.namespace(), to, &stop);
    // The kernel would choose some ports twice, and forget connections whose ports it needs.
    a.namespace().sysctl("ipv4/tcp_max_tw_buckets", "262144").unwrap();
    let each = by_each / PORTS.len();
    let clients = PORTS.enumerate().map(|(client, port)| {
        a.namespace().thread(move || {
            let mut lost = Vec::new();
            for number in 0..each {
                let mut stream = TcpStream::connect((to, port))?;
                stream.write_all(b"?")?;
                stream.read_exact(&mut [0])?;
                drop(stream);
                let own = (10_000 + client * each + number) as u16;
                let socket = UdpSocket::bind(("0.0.0.0", own))?;
                socket.connect((to, port))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                let asked = Instant::now();
                socket.send(b"?")?;
                match socket.recv(&mut [0]) {
                    Err(error) if is_tick(error.kind()) => {
                        lost.push((own, asked));
                        socket.send(b"?")?;
                        let again = socket.recv(&mut [0]);
                        again.with_context(|| format!("no answer by UDP from port {own}, asked twice"))?;
                    }
                    answer => drop(answer.with_context(|| format!("by UDP from port {own}"))?),
                }
            }
            Ok(lost)
        })
    });
    let clients: Vec<_> = clients.collect();
    let lost: Vec<_> = clients.into_iter().flat_map(|client| join(client).unwrap()).collect();
    stop.store(true, Ordering::Relaxed);
    let wake = move || PORTS.into_iter().try_for_each(|port| Ok(TcpStream::connect((to, port)).map(drop)?));
    a.namespace().enter(wake).unwrap();
    for server in servers {
        join(server).unwrap();
    }
    lost
}

/// Asserts that the conversations of these clients' ports lost their packets in a CPU's queue, which overflowed at that time. That is
/// one queue for all that the machine does, so that it loses packets without a fast path as well; no other loss is excused. How far a packet came is shown by
/// connection tracking: a host where it has no entry has not seen the question, and one where the entry is UNREPLIED has not seen
/// the answer.
fn only_queues_lost(bed: &Bed, before: &Losses, lost: &[(u16, Instant)], overflows: &[Overflow]) {
    let counted = Losses::read(bed).unwrap().since(before);
    let (ports, times): (Vec<u16>, Vec<Instant>) = lost.iter().copied().unzip();
    println!("no answer at first from the ports {ports:?}; counted meanwhile: {counted:?}");
    if lost.is_empty() {
        return;
    }
    for member in &bed.members {
        let listed = member.host.exec("cat /proc/net/nf_conntrack").unwrap();
        let is_one = |line: &&str| {
            line.contains("udp") && ports.iter().any(|port| line.contains(&format!("sport={port} ")))
        };
        listed.lines().filter(is_one).for_each(|line| println!("{}: {line}", member.host.name()));
    }
    let without = unexplained(&times, overflows);
    assert_eq!(
        without, 0,
        "no queue overflowed when packets of {lost:?} were lost: {overflows:?}, {counted:?}"
    );
}

/// As many connections as one host makes in a while, all of which the kernel still remembers.
#[test]
fn as_much_is_known_of_many_short_connections_as_without_a_fast_path() {
    const BY_EACH: usize = 50_000;
    let [without, with] = [&["--fast-path", "off"][..], MODES[1]].map(|mode| {
        let bed = strict_bed_of(Backend::Vxlan, 1, mode);
        for member in &bed.members {
            for name in ["tcp_timeout_time_wait", "udp_timeout", "udp_timeout_stream"] {
                member.host.namespace().sysctl(&format!("netfilter/nf_conntrack_{name}"), "600").unwrap();
            }
        }
        let before = Losses::read(&bed).unwrap();
        let (started, watch) = (Instant::now(), Watch::start());
        let lost = converse(&bed, BY_EACH);
        only_queues_lost(&bed, &before, &lost, &watch.finish().unwrap());
        let known = |host: usize, port: &str| {
            let listed = bed[host].host.exec("cat /proc/net/nf_conntrack").unwrap();
            listed.lines().filter(|line| line.contains(port)).count()
        };
        // Connection tracking knows the tunnel's own packets too, as one connection for each outer port and direction.
        let outer = [0, 1].map(|host| known(host, "dport=8472 "));
        assert!(outer.iter().all(|known| (1..=2 * 256).contains(known)), "{outer:?}");
        let known = [0, 1].map(|host| known(host, "dport=808"));
        println!("{mode:?}: {known:?} of {} after {:?}", 2 * BY_EACH, started.elapsed());
        let fast = bed[0].counters().unwrap().packets(Hook::Encap, Reason::Carried);
        assert_eq!(fast > BY_EACH as u64, bed.established, "{fast} by the fast path");
        known
    });
    assert!(without.iter().all(|known| *known >= 2 * BY_EACH), "{without:?}");
    // The last connections only wake the servers.
    assert!((0..2).all(|host| with[host] <= without[host]), "{with:?} {without:?}");
}
