//! Request and response: many connections at once, each with one thread at either end and all on one CPU, or
//! connections that live for a single exchange.
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use nix::{
    libc,
    sched::{CpuSet, sched_setaffinity},
    sys::{
        socket::{setsockopt, sockopt},
        time::{TimeVal, TimeValLike as _},
    },
    unistd::Pid,
};

use super::statistics::percentile;
use overlay_lab::{Container, join};

/// The protocol of the exchanges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Protocol {
    /// TCP with TCP_NODELAY.
    Tcp,
    /// UDP.
    Udp,
}

/// The figures of one-byte exchanges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Exchanges {
    /// Exchanges per second, of all connections together.
    pub(super) per_second: f64,
    /// Half of the exchanges took at most so many microseconds.
    pub(super) p50_us: f64,
    /// 99 of 100 exchanges took at most so many microseconds.
    pub(super) p99_us: f64,
}

/// How long a response may take. UDP exchanges are not repeated, so a lost packet takes this long, and the sample
/// becomes an error.
const PATIENCE: Duration = Duration::from_secs(5);

/// Has `flows` connections between these containers exchange bytes for `time`. Everything is pinned to CPU 0, because placement alone changes
/// the figure tenfold.
pub(super) fn exchanges(
    ends: [&Container; 2],
    protocol: Protocol,
    flows: u32,
    time: Duration,
) -> Result<Exchanges> {
    let pairs = (0..flows).map(|_| match protocol {
        Protocol::Tcp => by_tcp(ends, time),
        Protocol::Udp => by_udp(ends, time),
    });
    let (mut times, mut failed) = (Vec::new(), None);
    // All threads are joined even after an error, because one that is left behind would disturb the next sample.
    for pair in pairs.collect::<Result<Vec<_>>>()? {
        let (asked, answered) = (join(pair.asking), join(pair.answering));
        match asked.and_then(|asked| Ok((asked, answered?))) {
            Ok((asked, answered)) if asked.len() as u64 == answered => times.extend(asked),
            Ok((asked, answered)) => {
                failed = Some(anyhow::anyhow!("{} responses to {answered} requests", asked.len()));
            }
            Err(error) => failed = Some(error),
        }
    }
    if let Some(failed) = failed {
        return Err(failed);
    }
    figures(&times, time)
}

fn figures(times: &[Duration], elapsed: Duration) -> Result<Exchanges> {
    let mut sorted: Vec<_> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |percent| percentile(&sorted, percent).context("not one exchange");
    let per_second = times.len() as f64 / elapsed.as_secs_f64();
    Ok(Exchanges { per_second, p50_us: at(50)?, p99_us: at(99)? })
}

/// The threads at both ends of a connection: one returns the times of the exchanges, the other the number of requests
/// that came.
struct Pair {
    asking: JoinHandle<Result<Vec<Duration>>>,
    answering: JoinHandle<Result<u64>>,
}

fn by_udp([from, to]: [&Container; 2], time: Duration) -> Result<Pair> {
    let inbox = to.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let target = (to.address(), inbox.local_addr()?.port());
    let answering = to.namespace().thread(move || {
        pin(0)?;
        inbox.set_read_timeout(Some(PATIENCE))?;
        let mut requests = 0;
        loop {
            let mut byte = [0];
            let (_, sender) = inbox.recv_from(&mut byte).context("wait for a request")?;
            if byte == [LAST] {
                return Ok(requests);
            }
            requests += 1;
            inbox.send_to(&byte, sender)?;
        }
    });
    let asking = from.namespace().thread(move || {
        pin(0)?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let asked = repeat(time, || {
            socket.send(&[0])?;
            socket.recv(&mut [0]).context("wait for the response").map(drop)
        });
        socket.send(&[LAST])?;
        asked
    });
    Ok(Pair { asking, answering })
}

/// The byte that ends a UDP conversation.
const LAST: u8 = 1;

fn by_tcp(ends: [&Container; 2], time: Duration) -> Result<Pair> {
    let [from, to] = ends;
    let (mut client, mut server) = connected(ends)?;
    let answering = to.namespace().thread(move || {
        pin(0)?;
        let mut requests = 0;
        let mut byte = [0];
        while server.read(&mut byte).context("wait for a request")? == 1 {
            requests += 1;
            server.write_all(&byte)?;
        }
        Ok(requests)
    });
    let asking = from.namespace().thread(move || {
        pin(0)?;
        repeat(time, || {
            client.write_all(&[0])?;
            client.read_exact(&mut [0]).context("wait for the response")
        })
    });
    Ok(Pair { asking, answering })
}

/// Both ends of a TCP connection between the containers.
pub(super) fn connected([from, to]: [&Container; 2]) -> Result<(TcpStream, TcpStream)> {
    let listener = to.namespace().enter(|| Ok(TcpListener::bind("0.0.0.0:0")?))?;
    let target = (to.address(), listener.local_addr()?.port());
    let client = from
        .namespace()
        .enter(move || TcpStream::connect_timeout(&target.into(), PATIENCE).context("connect"))?;
    // The connection exists already, so this does not wait.
    let (server, _) = listener.accept().context("accept")?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((client, server))
}

fn repeat(time: Duration, mut exchange: impl FnMut() -> Result<()>) -> Result<Vec<Duration>> {
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        let started = Instant::now();
        exchange()?;
        times.push(started.elapsed());
    }
    Ok(times)
}

/// Connects, requests and responds over and over for `time`, one connection at a time.
pub(super) fn connections([from, to]: [&Container; 2], time: Duration) -> Result<Exchanges> {
    let listener = to.namespace().enter(|| Ok(TcpListener::bind("0.0.0.0:0")?))?;
    let target = (to.address(), listener.local_addr()?.port());
    // On a listener, this option limits how long `accept` waits.
    let patience = TimeVal::seconds(PATIENCE.as_secs().try_into()?);
    setsockopt(&listener.as_fd(), sockopt::ReceiveTimeout, &patience)?;
    let answering = to.namespace().thread(move || {
        pin(0)?;
        let mut requests = 0;
        loop {
            let (mut stream, _) = listener.accept().context("accept")?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut byte = [0];
            stream.read_exact(&mut byte).context("wait for a request")?;
            if byte == [LAST] {
                return Ok(requests);
            }
            requests += 1;
            stream.write_all(&byte)?;
        }
    });
    let asking = from.namespace().thread(move || {
        pin(0)?;
        let connect = || {
            let stream = TcpStream::connect_timeout(&target.into(), PATIENCE).context("connect")?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            // The connection ends by a reset: with a few thousand connections a second, those in TIME_WAIT would use up
            // all ports.
            setsockopt(&stream.as_fd(), sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
            Ok::<_, anyhow::Error>(stream)
        };
        let asked = repeat(time, || {
            let mut stream = connect()?;
            stream.write_all(&[0])?;
            stream.read_exact(&mut [0]).context("wait for the response")
        });
        // This connection is closed in order, so that the other end can read the byte first.
        let mut last = TcpStream::connect_timeout(&target.into(), PATIENCE).context("connect")?;
        last.write_all(&[LAST])?;
        asked
    });
    let (asked, answered) = (join(asking), join(answering));
    let (asked, answered) = (asked?, answered?);
    ensure!(asked.len() as u64 == answered, "{} responses to {answered} requests", asked.len());
    figures(&asked, time)
}

/// Pins the calling thread to this CPU from now on.
pub(super) fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    // Process 0 means the calling thread.
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("pin to CPU {cpu}"))
}
