//! Conversations whose server tells which address it saw, the rules that they pass, and the tier that carried them.
use std::{
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use overlay_lab::{Backend, Carried, Container, Host, Namespace, Options};
use overlay_user::{datapath::tables::Tables, host::firewall::fingerprint::fingerprint};
use serde_json::Value;

use crate::bed::{Bed, Kind, assert_reaches, pins, wait_for};

/// How long an answer may take. It is generous because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon threads notice that the test is over.
const TICK: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

pub const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Answers each line and each datagram with the address it came from, on one TCP and one UDP port, until it is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn start(namespace: &Namespace, address: Ipv4Addr, port: u16) -> Self {
        let sockets = namespace
            .enter(move || Ok((TcpListener::bind((address, port))?, UdpSocket::bind((address, port))?)));
        let (listener, socket) = sockets.unwrap();
        listener.set_nonblocking(true).unwrap();
        socket.set_read_timeout(Some(TICK)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = (stop.clone(), stop.clone());
        let threads = vec![
            thread::spawn(move || {
                while !tcp.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, from)) => {
                            let stop = tcp.clone();
                            thread::spawn(move || answer(stream, from, &stop));
                        }
                        Err(_) => thread::sleep(Duration::from_millis(5)),
                    }
                }
            }),
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while !udp.load(Ordering::Relaxed) {
                    if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                        // The client may be gone already.
                        let _ = socket.send_to(format!("{}\n", from.ip()).as_bytes(), from);
                    }
                }
            }),
        ];
        Self { stop, threads }
    }

    /// Starts a server in a container, at port 8080.
    pub fn of(container: &Container) -> Self {
        Self::start(container.namespace(), container.address(), 8080)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer(stream: TcpStream, from: SocketAddr, stop: &AtomicBool) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(TICK)).unwrap();
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while !stop.load(Ordering::Relaxed) {
        match stream.read_line(&mut line) {
            Ok(1..) => {
                line.clear();
                if stream.get_mut().write_all(format!("{}\n", from.ip()).as_bytes()).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => return,
        }
    }
}

/// A conversation that goes on: one connection between the same two ports.
pub enum Talk {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

impl Talk {
    pub fn open(from: &Namespace, protocol: Protocol, to: Ipv4Addr, port: u16) -> Result<Self> {
        from.enter(move || {
            Ok(match protocol {
                Protocol::Tcp => {
                    let stream = TcpStream::connect_timeout(&(to, port).into(), PATIENCE)?;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    Self::Tcp(BufReader::new(stream))
                }
                Protocol::Udp => {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    socket.connect((to, port))?;
                    socket.set_read_timeout(Some(PATIENCE))?;
                    Self::Udp(socket)
                }
            })
        })
        .with_context(|| format!("{protocol:?} to {to}:{port}"))
    }

    /// Asks once and returns the client's address as the server saw it.
    pub fn ask(&mut self) -> Result<Ipv4Addr> {
        let mut line = String::new();
        match self {
            Self::Tcp(stream) => {
                stream.get_mut().write_all(b"who?\n")?;
                stream.read_line(&mut line).context("no answer")?;
            }
            Self::Udp(socket) => {
                socket.send(b"who?\n")?;
                let mut buffer = [0; 64];
                let length = socket.recv(&mut buffer).context("no answer")?;
                line = String::from_utf8(buffer[..length].to_vec())?;
            }
        }
        match line.trim().parse() {
            Ok(address) => Ok(address),
            Err(_) => bail!("an answer like {line:?}"),
        }
    }

    /// The local port.
    pub fn port(&self) -> u16 {
        let address = match self {
            Self::Tcp(stream) => stream.get_ref().local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        };
        address.unwrap().port()
    }
}

/// Which tier carried a conversation on one host. Only these combinations of the two directions may occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Both directions by the programs.
    Fast,
    /// Both directions by the stack and overlay0.
    Stack,
    /// One direction by the stack and overlay0, the other without the overlay.
    HalfStack,
    /// The overlay did not see it.
    Neither,
}

/// The tier that carried `work`, by the counters of each host. Nothing may be dropped.
#[track_caller]
pub fn tiers(bed: &Bed, work: impl FnOnce()) -> Vec<Tier> {
    let count = || bed.members.iter().map(|member| member.counters().unwrap().carried()).collect::<Vec<_>>();
    let before = count();
    work();
    // Late acknowledgements and the answers to a FIN are counted too.
    thread::sleep(Duration::from_millis(100));
    let after = count();
    let tier = |(before, after): (&Carried, &Carried)| {
        assert_eq!(before.dropped, after.dropped, "dropped: {before:?} {after:?}");
        let fast = [after.fast_out - before.fast_out, after.fast_in - before.fast_in];
        let stack = [after.stack_out - before.stack_out, after.stack_in - before.stack_in];
        match (fast.map(|packets| packets > 0), stack.map(|packets| packets > 0)) {
            ([true, true], [false, false]) => Tier::Fast,
            ([false, false], [true, true]) => Tier::Stack,
            ([false, false], [true, false] | [false, true]) => Tier::HalfStack,
            ([false, false], [false, false]) => Tier::Neither,
            _ => panic!(
                "one direction is not as the other (out, in): by programs {fast:?}, by the stack {stack:?}"
            ),
        }
    };
    before.iter().zip(&after).map(tier).collect()
}

/// Waits until the agents know the present rules, so that no promotion is taken back any more.
pub fn settle(bed: &Bed) {
    for member in &bed.members {
        let rules = || {
            let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
            member.host.namespace().enter(move || runtime()?.block_on(fingerprint())).unwrap()
        };
        wait_for("the agent to know the rules", || {
            Tables::open(&pins(member)).unwrap().stack_flows.epoch().unwrap() == rules()
        });
    }
}

/// Has a conversation leave the stack where it can. Where every connection begins on the stack, it can after the first answer, under
/// rules that the agents know.
pub fn promote(bed: &Bed, talk: &mut Talk) -> Result<()> {
    if bed.established {
        settle(bed);
        talk.ask()?;
    }
    Ok(())
}

/// Converses by both protocols with `to`, several rounds each. Returns which address the server saw, and which tiers
/// carried the packets, once the conversation had left the stack where it could.
#[track_caller]
pub fn talk(bed: &Bed, from: &Namespace, to: Ipv4Addr, port: u16) -> (Ipv4Addr, Vec<Tier>) {
    let results = BOTH.map(|protocol| {
        let mut heard = None;
        let open = || Talk::open(from, protocol, to, port).unwrap();
        let mut begun = bed.established.then(open);
        if let Some(talk) = &mut begun {
            promote(bed, talk).unwrap_or_else(|error| panic!("{protocol:?} {to}:{port}: {error:#}"));
        }
        let tiers = tiers(bed, || {
            let mut talk = begun.take().unwrap_or_else(open);
            let all: Vec<_> = (0..5)
                .map(|round| {
                    talk.ask()
                        .unwrap_or_else(|error| panic!("{protocol:?} {to}:{port} round {round}: {error:#}"))
                })
                .collect();
            assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:?}");
            heard = Some(all[0]);
        });
        (heard.unwrap(), tiers)
    });
    assert_eq!(results[0], results[1], "TCP and UDP differ");
    let [first, _] = results;
    first
}

/// Makes two hosts whose containers are all learned, and which drop packets that connection tracking finds invalid, as
/// kube-proxy and ufw do.
pub fn strict_bed(rp_filter: u8, agent: &[&str]) -> Bed {
    strict_bed_of(Backend::Vxlan, rp_filter, agent)
}

/// Does the same with another backend.
pub fn strict_bed_of(backend: Backend, rp_filter: u8, agent: &[&str]) -> Bed {
    println!("backend {}", backend.name());
    let options = Options { rp_filter, ..Options::default() };
    // The rules below are obeyed by `auto`, so that what these tests are about is asked for by name.
    let on = ["--fast-path", "on"];
    let agent = if agent.contains(&on[0]) { agent.to_vec() } else { [&on[..], agent].concat() };
    let bed = Bed::with_config(Kind::Folder, options, backend.config(), &agent);
    bed.learn_all();
    for member in &bed.members {
        nft(
            &member.host,
            "table ip strict {
                counter invalid { }
                chain forward { type filter hook forward priority filter; ct state invalid counter name invalid drop; }
                chain input { type filter hook input priority filter; ct state invalid counter name invalid drop; }
            }",
        );
    }
    assert_reaches(&bed[0].containers[0], bed[1].containers[0].address());
    bed
}

/// Asserts that connection tracking found no packet invalid.
#[track_caller]
pub fn assert_nothing_invalid(bed: &Bed) {
    for member in &bed.members {
        let listed = member.host.exec("nft -j list counters table ip strict").unwrap();
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let counters = listed["nftables"].as_array().unwrap();
        let invalid = counters.iter().find_map(|object| object["counter"]["packets"].as_u64());
        assert_eq!(invalid, Some(0), "{}: {listed}", member.host.name());
    }
}

/// Runs an nftables script on a host.
#[track_caller]
pub fn nft(host: &Host, script: &str) {
    let file = host.folder().join("script.nft");
    std::fs::write(&file, script).unwrap();
    host.exec(&format!("nft -f {}", file.display())).unwrap_or_else(|error| panic!("{error:#}: {script}"));
}

/// Has a host translate `address`:`port` to port 8080 of a container, for packets that it receives and for those that
/// it sends.
pub fn publish(host: &Host, address: Ipv4Addr, port: u16, backend: &Container) {
    let table = format!("publish-{}-{port}", address.to_string().replace('.', "-"));
    let rule =
        |protocol| format!("ip daddr {address} {protocol} dport {port} dnat to {}:8080;", backend.address());
    let rules = rule("tcp") + &rule("udp");
    nft(
        host,
        &format!(
            "table ip {table} {{
                chain in {{ type nat hook prerouting priority -100; {rules} }}
                chain own {{ type nat hook output priority -100; {rules} }}
            }}"
        ),
    );
}

/// Address number `last` of a host's subnet: 0 is overlay0's, 1 the bridge's.
pub fn own(bed: &Bed, host: usize, last: u8) -> Ipv4Addr {
    let [a, b, c, _] = bed[host].containers[0].address().octets();
    Ipv4Addr::new(a, b, c, last)
}
