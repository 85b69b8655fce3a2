//! A thousand containers come and go while others talk. Nothing is lost, and nothing is delivered to a container that
//! it was not meant for.
use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use overlay_common::{Hook, Reason};
use overlay_lab::{Container, Guesthouse, Ledger, Numbered, Traffic};

use super::bed::{Bed, Kind, endpoint, json, wait_for};

/// How many containers come and go, on both hosts together.
const VISITS: u64 = 1000;
/// How many containers stay at once on each host. The next party gets the same addresses a fraction of a second later.
const PARTY: u8 = 10;
/// How many questions each container asks. Each must be answered, since none is asked twice.
const QUESTIONS: u8 = 3;
/// The port at which residents answer and visitors are called.
const PORT: u16 = 7700;
/// Every fifth party stays until it is learned. That takes time, because attaching programs waits for the kernel's one
/// lock of all links (RTNL), which is held for a while when a party's links are deleted.
const LINGERING: u64 = 5;
const LEARNING: Duration = Duration::from_millis(700);
/// How long a packet may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// What every packet says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Letter {
    /// The container it is from, and the one it is for.
    from: Ipv4Addr,
    to: Ipv4Addr,
    /// The number of the stay, which is unique, whereas addresses are used again.
    stay: u64,
    number: u8,
}

impl Letter {
    const LENGTH: usize = 17;

    fn bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..4].copy_from_slice(&self.from.octets());
        bytes[4..8].copy_from_slice(&self.to.octets());
        bytes[8..16].copy_from_slice(&self.stay.to_be_bytes());
        bytes[16] = self.number;
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let bytes: &[u8; Self::LENGTH] = bytes.try_into().context("a packet of another length")?;
        let [a, b, c, d, e, f, g, h, ..] = *bytes;
        let stay = bytes[8..16].try_into().context("eight bytes")?;
        let (from, to) = ([a, b, c, d].into(), [e, f, g, h].into());
        Ok(Self { from, to, stay: u64::from_be_bytes(stay), number: bytes[16] })
    }

    /// Receives the next letter at this socket, and checks that its sender meant it for `me`.
    fn receive(socket: &UdpSocket, me: Ipv4Addr) -> Result<(Self, SocketAddr)> {
        let mut bytes = [0; 64];
        let (length, from) = socket.recv_from(&mut bytes)?;
        let letter = Self::parse(&bytes[..length])?;
        ensure!(letter.to == me, "{letter:?} was delivered to {me}");
        ensure!(from.ip() == letter.from, "{letter:?} came from {from}");
        Ok((letter, from))
    }
}

/// A container that stays. It answers visitors, and calls everyone who asks on a connection of its own.
struct Resident {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<u64>>,
}

impl Resident {
    fn start(container: &Container) -> Self {
        let (me, stop) = (container.address(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = container.namespace().thread(move || {
            let socket = UdpSocket::bind(("0.0.0.0", PORT))?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                let (letter, from) = match Letter::receive(&socket, me) {
                    Err(error) if error.is::<std::io::Error>() => continue,
                    other => other?,
                };
                let answer = Letter { from: letter.to, to: letter.from, ..letter }.bytes();
                socket.send_to(&answer, from)?;
                // Each call is a new connection, because a connection that began on the stack's path stays there.
                UdpSocket::bind("0.0.0.0:0")?.send_to(&answer, (letter.from, PORT))?;
                sent += 2;
            }
            Ok(sent)
        });
        Self { stop, thread }
    }

    /// Ends the resident and returns how many packets it sent.
    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap()
    }
}

/// What visitors saw.
#[derive(Debug, Default)]
struct Seen {
    stays: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    slowest: Mutex<Duration>,
}

/// One stay: each question is asked once, answered once, and brings one call.
fn stay(me: Ipv4Addr, resident: Ipv4Addr, stay: u64, seen: &Seen) -> Result<()> {
    let called = UdpSocket::bind(("0.0.0.0", PORT))?;
    called.set_read_timeout(Some(PATIENCE))?;
    for number in 0..QUESTIONS {
        if number == QUESTIONS - 1 && (stay / u64::from(PARTY)).is_multiple_of(LINGERING) {
            // By now the visitor is learned, unless the agent is stopped, so the last question and its call take the
            // fast path.
            thread::sleep(LEARNING);
        }
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let asked = Instant::now();
        let question = Letter { from: me, to: resident, stay, number };
        socket.send_to(&question.bytes(), (resident, PORT))?;
        seen.sent.fetch_add(1, Ordering::Relaxed);
        let expected = Letter { from: resident, to: me, ..question };
        for (inbox, what) in [(&socket, "answer"), (&called, "call")] {
            let (letter, _) =
                Letter::receive(inbox, me).with_context(|| format!("{what} to {question:?}"))?;
            ensure!(letter == expected, "{letter:?} is no {what} to {question:?}");
            seen.received.fetch_add(1, Ordering::Relaxed);
        }
        let mut slowest = seen.slowest.lock().unwrap();
        *slowest = asked.elapsed().max(*slowest);
    }
    seen.stays.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Has one party after the other come and go, until all stays are over.
fn host_parties(house: &Guesthouse, resident: Ipv4Addr, stays: &AtomicU64, seen: &Seen) -> Result<()> {
    let [a, b, c, _] = house.gateway.octets();
    loop {
        let first = stays.fetch_add(u64::from(PARTY), Ordering::Relaxed);
        if first >= VISITS {
            return Ok(());
        }
        // Each address goes to another container of the party than last time.
        let address =
            |index: u64| Ipv4Addr::new(a, b, c, 10 + ((index * 7 + first) % u64::from(PARTY)) as u8);
        let party: Vec<_> =
            (0..u64::from(PARTY)).map(|index| (format!("s{}", first + index), address(index))).collect();
        house.visit(&party, |index, me| stay(me, resident, first + index as u64, seen))?;
    }
}

#[test]
fn a_thousand_containers_come_and_go() {
    let mut bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let [a, b] = [0, 1].map(|host| bed[host].containers[0].clone());
    let residents = [0, 1].map(|host| Resident::start(&bed[host].containers[1]));
    let ledger = Ledger::open(&bed.members).unwrap();
    let streams = [(&a, &b), (&b, &a)].map(|(from, to)| Numbered::start(from, to, 1000).unwrap());
    let (started, stays, seen) = (Instant::now(), Arc::new(AtomicU64::new(0)), Arc::new(Seen::default()));
    let workers = [(0, 1), (1, 0)].map(|(host, other)| {
        let house = bed[host].host.guesthouse(&bed[host].subnet, bed[host].mtu).unwrap();
        let resident = bed[other].containers[1].address();
        let (stays, seen) = (Arc::clone(&stays), Arc::clone(&seen));
        thread::spawn(move || host_parties(&house, resident, &stays, &seen))
    });
    // An agent gets no CPU for a while, so that its netlink socket overflows and it has to list everything anew.
    while seen.stays.load(Ordering::Relaxed) < VISITS / 3
        && !workers.iter().all(|worker| worker.is_finished())
    {
        thread::sleep(Duration::from_millis(20));
    }
    let frozen = seen.stays.load(Ordering::Relaxed);
    bed[0].agent().unwrap().signal(Signal::SIGSTOP).unwrap();
    while seen.stays.load(Ordering::Relaxed) < frozen + VISITS / 3
        && !workers.iter().all(|worker| worker.is_finished())
    {
        thread::sleep(Duration::from_millis(20));
    }
    bed[0].agent().unwrap().signal(Signal::SIGCONT).unwrap();
    for worker in workers {
        worker.join().unwrap().unwrap();
    }
    let took = started.elapsed();
    let reports = streams.map(|stream| stream.finish().unwrap());
    let sent_by_residents: u64 = residents.map(Resident::finish).iter().sum();
    let accounts = ledger.close(&bed.members).unwrap();
    println!("{VISITS} stays in {took:?}, the slowest answer in {:?}", seen.slowest.lock().unwrap());
    println!("{reports:?}\n{accounts}");

    assert_eq!(seen.stays.load(Ordering::Relaxed), VISITS);
    for report in reports {
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }
    let mut traffic = Traffic::from(&reports[..]);
    let asked = VISITS * u64::from(QUESTIONS);
    // Every question brings three packets: the question, its answer, and a call.
    assert_eq!((seen.sent.load(Ordering::Relaxed), sent_by_residents), (asked, 2 * asked));
    assert_eq!(seen.received.load(Ordering::Relaxed), 2 * asked);
    traffic.sent += 3 * asked;
    traffic.received += 3 * asked;
    accounts.balance(traffic).unwrap();
    // The residents are learned, so they send and receive by the fast path, and so do the visitors that stay long
    // enough.
    let streamed = Traffic::from(&reports[..]).sent;
    for (hook, residents) in [(Hook::Encap, 2 * asked), (Hook::Decap, asked)] {
        let fast = accounts.packets(hook, Reason::Carried) as i64 - (streamed + residents) as i64;
        println!("{fast} of the visitors' packets took the fast path at {}", hook.as_str());
        assert!(fast > (VISITS / LINGERING / 4) as i64, "{accounts}");
    }
    assert_eq!((accounts.gaps(traffic), accounts.dropped()), ([0; 3], 0), "{accounts}");

    let log = bed[0].agent().unwrap().log();
    assert!(log.contains("listing everything again"), "no event was lost: {log}");
    // In the end exactly what exists is in force: no endpoint or port of a container that went, and all of those that
    // stay.
    for member in &bed.members {
        wait_for("the ports of containers that went", || {
            let status = json(member, &["status"]);
            let bridge = &status["agent"]["learned"]["bridges"][0];
            bridge["ports"].as_array().is_some_and(|ports| ports.len() == 2)
                && json(member, &["endpoints"]).as_array().unwrap().len() == 2
        });
        assert!(member.containers.iter().all(|container| endpoint(member, container.address()).is_some()));
    }
    bed.assert_all_reached();
}
