//! Request and response by UDP, one at a time, both ends on one CPU.
use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{container::Container, namespace::join};

/// Round trip times in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Half of the exchanges were at most this long.
    pub p50_us: f64,
    /// 99 of 100 were at most this long.
    pub p99_us: f64,
}

const PATIENCE: Duration = Duration::from_secs(5);

/// Exchanges `count` one-byte packets. Both ends are pinned to CPU 0, because their placement alone changes the figure
/// tenfold.
pub fn latency(from: &Container, to: &Container, count: u32) -> Result<Latency> {
    ensure!(count > 0, "a latency takes at least one exchange");
    let inbox = to.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let target = (to.address(), inbox.local_addr()?.port());
    let echo = to.namespace().thread(move || {
        pin()?;
        inbox.set_read_timeout(Some(PATIENCE))?;
        let mut byte = [0];
        for _ in 0..count {
            let (_, sender) = inbox.recv_from(&mut byte).context("wait for a request")?;
            inbox.send_to(&byte, sender)?;
        }
        Ok(())
    });
    let asking = from.namespace().thread(move || {
        pin()?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut times = Vec::new();
        let mut byte = [0];
        for _ in 0..count {
            let started = Instant::now();
            socket.send(&byte)?;
            socket.recv(&mut byte).context("wait for the response")?;
            times.push(started.elapsed());
        }
        Ok(times)
    });
    let times = join(asking);
    let echoed = join(echo);
    let mut times = times?;
    echoed?;
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    Ok(Latency { p50_us: at(50), p99_us: at(99) })
}

fn pin() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    // Process 0 means the calling thread.
    sched_setaffinity(Pid::from_raw(0), &cpus).context("pin to CPU 0")
}
