//! The same conversations under the same rules on two pairs of hosts, whose agents differ in the fast path only.
use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt, socket,
    sockopt::{Ipv4Tos, Ipv4Ttl},
};
use overlay_lab::{Container, Namespace};

use super::{
    arrivals::{Arrivals, FIRST_PORT, lines},
    conversation::{Conversation, Servers},
    stage::{NEWS, SERVICE, Stage, decided, keep_to_cpu},
    table::{Path, Row},
};

/// What the agents under test are started with.
const UNDER_TEST: &str = "auto";
/// The variable that names a part of the names of those rows that are to be run.
const ROWS: &str = "OVERLAY_RULES";
/// Longer than TCP waits with an acknowledgement, which is 200 ms at most.
const ACKNOWLEDGED: Duration = Duration::from_millis(300);
/// How many numbered datagrams are sent in a row.
const BURST: usize = 20;
/// The ports of servers that answer.
const ANSWERED: [u16; 2] = [8080, 8081];
/// The port of numbered requests, and that of datagrams which nobody answers.
const BURSTS: [u16; 2] = [9001, 9000];
/// Bytes of a datagram that nobody answers: no other packet is as long.
const ONE_WAY: usize = 123;
/// Pings as bytes, TTL and TOS. The second is a whole packet of the overlay, the third has to be fragmented, the fourth ends at the
/// second host, and the fifth at the first.
const PINGS: [(usize, i32, i32); 6] =
    [(56, 64, 0), (1400, 64, 0), (2000, 64, 0), (57, 2, 0), (58, 1, 0), (59, 64, 0x20)];

/// What was asked of, and seen on, one pair of hosts.
struct Actors {
    stage: Stage,
    containers: [Container; 2],
    servers: [Servers; 2],
    arrivals: [Arrivals; 2],
    /// The next port that no client has had.
    port: u16,
    /// How often somebody has sent pings. Each time has an identifier of its own, as each conversation has a port.
    pings: u16,
}

/// What was seen under the rules of one row.
#[derive(Debug, Default)]
struct Seen {
    lines: BTreeSet<String>,
    /// The path that the first host's agent has decided on, and why.
    decided: (String, String),
    /// What the row's script said if it failed.
    failed: String,
}

impl Actors {
    fn new(mode: &str) -> Self {
        let stage = Stage::new(mode);
        let containers = [0, 1].map(|host| stage.bed[host].containers[0].clone());
        let servers = [0, 1].map(|host| {
            let container = &containers[host];
            Servers::start(
                container.namespace(),
                container.address(),
                &ANSWERED,
                &[8080, 8081, 9001],
                &[9000],
            )
        });
        let arrivals = [0, 1].map(|host| Arrivals::of(&containers[host]));
        Self { stage, containers, servers, arrivals, port: FIRST_PORT, pings: 0 }
    }

    /// One client by each protocol.
    fn both(&mut self, name: &str, from: &Namespace, to: SocketAddrV4) -> [Conversation; 2] {
        self.port += 2;
        let (name, port) = (format!("{name}:{}", to.port()), self.port);
        self.stage.names.clients.end = port;
        [
            Conversation::tcp(format!("{name}-tcp"), from, port - 2, to),
            Conversation::udp(format!("{name}-udp"), from, port - 1, to),
        ]
    }

    /// Conversations between both containers, at each server's both ports.
    fn between(&mut self, age: &str) -> Vec<Conversation> {
        let mut all = Vec::new();
        for (from, name) in [(0, "a>b"), (1, "b>a")] {
            for port in ANSWERED {
                let namespace = self.containers[from].namespace().clone();
                all.extend(self.both(
                    &format!("{age}-{name}"),
                    &namespace,
                    self.stage.container(1 - from, port),
                ));
            }
        }
        self.stage.drain();
        all
    }

    /// Every client asks, and hears what comes back.
    fn round(&mut self, all: &mut [Conversation]) {
        all.iter_mut().for_each(Conversation::ask);
        self.answer(all);
    }

    fn answer(&mut self, all: &mut [Conversation]) {
        self.stage.drain();
        for servers in &mut self.servers {
            servers.answer(&self.stage.names);
        }
        self.stage.drain();
        all.iter_mut().for_each(Conversation::listen);
    }

    /// Tells a host's agent that a script has made rules of which it gets no news, but for the row that is to show that it finds
    /// them by itself.
    fn tell(&self, host: usize, script: &str, row: &Row) {
        if script.contains("iptables-legacy") && !row.untold {
            self.stage.apply(host, NEWS).unwrap();
        }
    }

    /// Puts the rules of a row in force, and returns what is seen under them.
    fn see(&mut self, row: &Row) -> Seen {
        self.stage.names.clients = self.port..self.port;
        self.stage.clear();
        if let Err(failed) = self.stage.apply(0, row.before) {
            return Seen { failed, ..Seen::default() };
        }
        self.tell(0, row.before, row);
        self.stage.settle();
        let mut all = if row.older { self.between("old") } else { Vec::new() };
        all.iter_mut().for_each(Conversation::look);
        (0..2).for_each(|_| self.round(&mut all));
        let lines: Vec<_> = all.iter().map(Conversation::line).collect();
        assert!(lines.iter().all(|line| line.contains("[0, 1]")), "{}: {lines:#?}", row.name);
        let said = Instant::now();
        for (host, script) in [(0, row.first), (1, row.second)] {
            if let Err(failed) = self.stage.apply(host, script) {
                return Seen { failed, ..Seen::default() };
            }
            self.tell(host, script, row);
        }
        if !row.ready.is_empty() {
            self.stage.wait_for(0, row.ready);
        }
        self.stage.settle();
        let decided = decided(&self.stage.bed[0]);
        thread::sleep(ACKNOWLEDGED.saturating_sub(said.elapsed()));
        self.stage.drain();
        for arrivals in &self.arrivals {
            arrivals.take();
        }
        all.iter_mut().for_each(Conversation::forget);
        let lines = self.converse(all);
        Seen { lines, decided, failed: String::new() }
    }

    /// Says everything that there is to say, in the same order on both pairs of hosts, and returns what was heard and received.
    fn converse(&mut self, mut all: Vec<Conversation>) -> BTreeSet<String> {
        let mut news = self.between("new");
        let (a, here) = (self.containers[0].namespace().clone(), self.stage.bed[0].host.namespace().clone());
        let there = self.stage.bed[1].host.address();
        news.extend(self.both("new-a>service", &a, SocketAddrV4::new(SERVICE, 80)));
        news.extend(self.both("new-a>published", &a, SocketAddrV4::new(there, 8090)));
        news.extend(self.both("new-h1>b", &here, self.stage.container(1, 8080)));
        self.stage.drain();
        news.iter_mut().for_each(Conversation::look);
        all.extend(news);
        (0..4).for_each(|_| self.round(&mut all));
        for (from, name) in [(0, "a>b"), (1, "b>a")] {
            let namespace = self.containers[from].namespace().clone();
            for (port, size) in BURSTS.into_iter().zip([0, ONE_WAY]) {
                self.port += 1;
                self.stage.names.clients.end = self.port;
                let to = self.stage.container(1 - from, port);
                let mut burst =
                    [Conversation::udp(format!("burst-{name}:{port}"), &namespace, self.port - 1, to)];
                (0..BURST).for_each(|_| burst[0].say(size));
                self.answer(&mut burst);
                all.extend(burst);
            }
            self.pings += 1;
            ping(&namespace, self.pings, self.containers[1 - from].address());
            self.stage.drain();
        }
        // Nothing is under way any more, but what TCP sends again because it was dropped.
        let heard = all.iter().map(Conversation::line);
        let received = ["a", "b"]
            .into_iter()
            .zip(&self.arrivals)
            .flat_map(|(place, arrivals)| lines(place, &arrivals.take(), &self.stage.names));
        let lines = heard.chain(received).collect();
        drop(all);
        self.servers.iter_mut().for_each(Servers::hang_up);
        self.stage.drain();
        lines
    }
}

/// Sends [`PINGS`] with numbers from one.
fn ping(from: &Namespace, identifier: u16, to: Ipv4Addr) {
    let sent = from.enter(move || {
        let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?;
        for (number, (size, ttl, tos)) in (1_u16..).zip(PINGS) {
            setsockopt(&socket, Ipv4Ttl, &ttl)?;
            setsockopt(&socket, Ipv4Tos, &tos)?;
            let mut request = vec![8, 0, 0, 0];
            request.extend(identifier.to_be_bytes());
            request.extend(number.to_be_bytes());
            request.resize(8 + size, 0);
            let sum =
                request.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
            let sum = sum.sum::<u32>();
            let sum = (sum & 0xffff) + (sum >> 16);
            request[2..4].copy_from_slice(&(!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes());
            let [a, b, c, d] = to.octets();
            sendto(socket.as_raw_fd(), &request, &SockaddrIn::new(a, b, c, d, 0), MsgFlags::empty())?;
        }
        Ok(())
    });
    sent.unwrap();
}

/// What one of the two has that the other has not.
fn difference(off: &Seen, tested: &Seen) -> String {
    let mut text = String::new();
    for (who, these, others) in [("off", off, tested), (UNDER_TEST, tested, off)] {
        for line in these.lines.difference(&others.lines) {
            let _ = writeln!(text, "  {who:>11}: {line}");
        }
    }
    text
}

/// Runs rows, and fails with everything in which the two pairs of hosts differ.
pub fn run(rows: &[Row]) {
    let wanted = env::var(ROWS).unwrap_or_default();
    // Another path than the one asked for cannot be tested by an agent that was started with a fixed one.
    let possible = |path| UNDER_TEST == "auto" || path != Path::Off;
    let rows: Vec<_> =
        rows.iter().filter(|row| row.name.contains(&wanted) && possible(row.path)).copied().collect();
    assert!(!rows.is_empty(), "no row has {wanted:?} in its name");
    let plain = Row {
        name: "no rules",
        is_seen: false,
        older: true,
        untold: false,
        path: Path::On,
        before: "",
        first: "",
        second: "",
        ready: "",
    };
    let rows = &[vec![plain], rows].concat();
    let (off, tested) = thread::scope(|scope| {
        let seen = |number, mode: &'static str| {
            scope.spawn(move || {
                keep_to_cpu(number);
                let mut actors = Actors::new(mode);
                rows.iter().map(|row| actors.see(row)).collect::<Vec<_>>()
            })
        };
        let (off, tested) = (seen(0, "off"), seen(1, UNDER_TEST));
        (off.join().unwrap(), tested.join().unwrap())
    });
    let mut report = String::new();
    for ((row, saw), tested) in rows.iter().zip(&off).zip(&tested) {
        let mut wrong = difference(saw, tested);
        let (path, why) = &tested.decided;
        if UNDER_TEST == "auto" && path != row.path.name() {
            let _ = writeln!(wrong, "  the path is {path}, not {}: {why}", row.path.name());
        }
        if !saw.failed.is_empty() {
            let _ = writeln!(report, "{}\n  its script fails: {}", row.name, saw.failed.trim());
            continue;
        }
        let is_seen = saw.lines != off[0].lines;
        if is_seen != row.is_seen {
            let _ = writeln!(wrong, "  with the fast path off the containers saw these rules: {is_seen}");
            for line in off[0].lines.symmetric_difference(&saw.lines) {
                let _ = writeln!(wrong, "    {line}");
            }
        }
        if !wrong.is_empty() {
            let _ = write!(report, "{}\n{wrong}", row.name);
        }
    }
    assert!(report.is_empty(), "of {} sets of rules:\n{report}", rows.len());
}
