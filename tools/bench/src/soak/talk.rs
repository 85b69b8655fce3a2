//! Short connections between containers: each asks one question, gets an answer of some kilobytes, and ends.
use std::{
    fmt,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use overlay_lab::{Container, join, random::Random};
use serde::Serialize;

use super::draw::pause;

/// The port at which containers answer.
const PORT: u16 = 7000;
/// How long a connection may take. A first SYN that is lost is sent again after one second.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection that takes longer than this has probably lost its first SYN, which fails nothing, but is told.
const SLOW: Duration = Duration::from_millis(900);
/// The most connections that are made one after the other from the same container.
const IN_A_ROW: usize = 4;
/// How many errors are kept as text.
const KEPT: usize = 10;

/// A container that answers, until this is dropped.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Has a container answer.
    pub(super) fn start(container: &Container) -> Result<Self> {
        let listener =
            container.namespace().enter(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                if poll(&mut ready, PollTimeout::from(200_u16))? > 0 {
                    // What goes wrong is seen, and told, by who asks.
                    let _ = answer(&listener);
                }
            }
            Ok(())
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The namespace would live on with the socket.
            let _ = join(thread);
        }
    }
}

fn answer(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut question = [0; 4];
    stream.read_exact(&mut question)?;
    stream.write_all(&vec![question[3]; u32::from_be_bytes(question) as usize])?;
    Ok(())
}

/// Asks for so many bytes, and compares them.
fn ask(address: Ipv4Addr, bytes: u32) -> Result<()> {
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::from((address, PORT)), PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let question = bytes.to_be_bytes();
    stream.write_all(&question).context("ask")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    ensure!(answer.len() == bytes as usize, "{} bytes of {bytes} came", answer.len());
    ensure!(answer.iter().all(|byte| *byte == question[3]), "other bytes than were sent");
    Ok(())
}

/// A container that asks and answers.
#[derive(Clone)]
pub(super) struct Place {
    /// Number of its host.
    pub(super) host: usize,
    /// The container.
    pub(super) container: Container,
}

/// The containers that are there. Whoever removes one holds the lock, and so does a connection while it lasts, so that none is
/// cut off on purpose.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<Vec<Place>>>);

impl Places {
    /// The containers that are there.
    pub(super) fn all(&self) -> MutexGuard<'_, Vec<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of the connections.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Connections {
    /// Those whose answer came, whole.
    pub(super) answered: u64,
    /// Those that failed.
    pub(super) failed: u64,
    /// How long the slowest took, failed ones included.
    pub(super) slowest_ms: u128,
    /// How many took more than 0.9 s, as one does whose first SYN was lost.
    pub(super) slow: u64,
    /// How many were asked for per second.
    pub(super) rate_asked: f64,
    /// How many there were per second.
    pub(super) rate: f64,
    /// How the first of them did.
    pub(super) errors: Vec<String>,
}

impl Connections {
    /// Adds one, which took so long.
    fn add(&mut self, took: Duration, done: Result<(), String>) {
        self.slowest_ms = self.slowest_ms.max(took.as_millis());
        self.slow += u64::from(took > SLOW);
        match done {
            Ok(()) => self.answered += 1,
            Err(error) => {
                self.failed += 1;
                if self.errors.len() < KEPT {
                    self.errors.push(error);
                }
            }
        }
    }
}

impl fmt::Display for Connections {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered, failed, slowest_ms, slow, rate_asked, rate, .. } = self;
        write!(
            to,
            "{answered} connections were answered, {failed} failed; {rate:.1} per second of {rate_asked:.1} asked for; the slowest took \
             {slowest_ms} ms, {slow} took over {} ms",
            SLOW.as_millis()
        )
    }
}

/// Connections that are made one after the other until they are told to end.
pub(super) struct Talk {
    stop: Arc<AtomicBool>,
    made: Arc<Mutex<Connections>>,
    asked: f64,
    started: Instant,
    thread: JoinHandle<Result<()>>,
}

impl Talk {
    /// Starts making connections between containers of different hosts, `rate` a second on average.
    pub(super) fn start(places: Places, rate: f64, mut random: Random) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Connections::default())));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&made));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let count = 1 + random.below(IN_A_ROW);
                talk(&places, count, &mut random, &counted)?;
                thread::sleep(pause(Duration::from_secs_f64(count as f64 / rate), &mut random));
            }
            Ok(())
        });
        Self { stop, made, asked: rate, started: Instant::now(), thread }
    }

    /// What became of them so far.
    pub(super) fn so_far(&self) -> Connections {
        so_far(&self.made, self.asked, self.started)
    }

    /// Whether they have ended although nobody told them to. [`Self::finish`] says why.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends them.
    pub(super) fn finish(self) -> Result<Connections> {
        self.stop.store(true, Ordering::Relaxed);
        join(self.thread).context("make connections")?;
        Ok(so_far(&self.made, self.asked, self.started))
    }
}

fn so_far(made: &Mutex<Connections>, asked: f64, started: Instant) -> Connections {
    let made = made.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let rate = (made.answered + made.failed) as f64 / started.elapsed().as_secs_f64();
    Connections { rate_asked: asked, rate, ..made }
}

/// Makes some connections from a container to one of another host, each drawn.
fn talk(places: &Places, count: usize, random: &mut Random, made: &Mutex<Connections>) -> Result<()> {
    let places = places.all();
    let from = places[random.below(places.len())].clone();
    let others: Vec<&Place> = places.iter().filter(|place| place.host != from.host).collect();
    let to = others[random.below(others.len())].clone();
    let sizes: Vec<u32> = (0..count).map(|_| 1 + random.below(16 << 10) as u32).collect();
    let address = to.container.address();
    let done = from.container.namespace().enter(move || {
        Ok(sizes.into_iter().map(|bytes| timed(|| ask(address, bytes))).collect::<Vec<_>>())
    })?;
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    for (took, one) in done {
        let one = one.map_err(|error| {
            let timed_out = error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock));
            let late = if timed_out { " (too late)" } else { "" };
            format!("{} to {address}: {error:#}{late}", from.container.address())
        });
        made.add(took, one);
    }
    Ok(())
}

/// How long something took, and what came of it.
fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let started = Instant::now();
    let done = work();
    (started.elapsed(), done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_connections_are_counted_whether_they_fail_or_not() {
        let mut made = Connections { rate_asked: 20.0, rate: 18.04, ..Connections::default() };
        made.add(Duration::from_millis(3), Ok(()));
        made.add(Duration::from_millis(1020), Ok(()));
        made.add(Duration::from_millis(5000), Err("no answer".into()));
        assert_eq!((made.answered, made.failed, made.slow, made.slowest_ms), (2, 1, 2, 5000));
        assert_eq!(made.errors, ["no answer"]);
        assert_eq!(
            made.to_string(),
            "2 connections were answered, 1 failed; 18.0 per second of 20.0 asked for; the slowest took 5000 ms, 2 took over 900 ms"
        );
        (0..20).for_each(|_| made.add(Duration::ZERO, Err("no answer".into())));
        assert_eq!((made.failed, made.errors.len()), (21, KEPT));
    }
}
