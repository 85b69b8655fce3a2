//! TCP streams side by side, and the CPU time that the machine spends on them.
use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    exchange::{connected, pin},
    network::Network,
};
use overlay_lab::join;

/// The figures of several streams together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Streams {
    /// Payload that arrived, in megabits per second.
    pub(super) megabits_per_second: f64,
    /// CPU time of the whole machine, including interrupts and softirqs, in seconds per 10^9 bytes that arrived.
    pub(super) cpu_seconds_per_gigabyte: f64,
}

const BLOCK: usize = 128 * 1024;

/// Sends `count` streams for `time`, and checks that every byte has arrived.
pub(super) fn streams(network: &Network, count: u32, time: Duration) -> Result<Streams> {
    measured((0..count).map(|_| connected(network.ends())).collect::<Result<_>>()?, time)
}

/// Does the same with two streams, one each way. Each container's threads have a CPU for themselves.
pub(super) fn both_ways(network: &Network, time: Duration) -> Result<Streams> {
    let there = connected(network.ends())?;
    let (receiver, sender) = connected(network.ends())?;
    measured(vec![there, (sender, receiver)], time)
}

/// Sends by the first socket of each pair, and receives by the second. The two ends of a stream are pinned to two CPUs, by turns,
/// because placement alone changes a single stream by a tenth.
fn measured(connected: Vec<(TcpStream, TcpStream)>, time: Duration) -> Result<Streams> {
    let (started, before) = (Instant::now(), busy()?);
    let cpus = thread::available_parallelism().context("how many CPUs are there")?.get();
    let ends = |index| [index % cpus, (index + 1) % cpus];
    let pairs: Vec<_> = (0..)
        .zip(connected)
        .map(|(index, (sender, receiver))| pair(sender, receiver, ends(index), time))
        .collect();
    let joined: Vec<_> =
        pairs.into_iter().map(|(sending, receiving)| (join(sending), join(receiving))).collect();
    let (elapsed, after) = (started.elapsed(), busy()?);
    let mut bytes = 0;
    for (sent, received) in joined {
        let (sent, received) = (sent?, received?);
        ensure!(sent == received, "{sent} bytes were sent, {received} arrived");
        bytes += received;
    }
    let bytes = bytes as f64;
    Ok(Streams {
        megabits_per_second: bytes * 8.0 / 1e6 / elapsed.as_secs_f64(),
        cpu_seconds_per_gigabyte: (after - before).as_secs_f64() / (bytes / 1e9),
    })
}

/// The threads of one stream: one returns the bytes that were sent, the other those that arrived.
type Pair = (JoinHandle<Result<u64>>, JoinHandle<Result<u64>>);

fn pair(mut sender: TcpStream, mut receiver: TcpStream, [here, there]: [usize; 2], time: Duration) -> Pair {
    let receiving = thread::spawn(move || {
        pin(there)?;
        let (mut block, mut received) = (vec![0; BLOCK], 0_u64);
        loop {
            match receiver.read(&mut block).context("receive")? {
                0 => return Ok(received),
                length => received += length as u64,
            }
        }
    });
    let sending = thread::spawn(move || {
        pin(here)?;
        let (block, mut sent, begun) = (vec![0; BLOCK], 0_u64, Instant::now());
        while begun.elapsed() < time {
            sender.write_all(&block).context("send")?;
            sent += BLOCK as u64;
        }
        Ok(sent)
    });
    (sending, receiving)
}

/// CPU time that was not idle, of all CPUs, since the machine started.
fn busy() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    parse(&stat).context("/proc/stat without a line of all CPUs")
}

fn parse(stat: &str) -> Option<Duration> {
    // The columns are user nice system idle iowait irq softirq steal ... (proc_stat(5)), in units of USER_HZ, which is
    // 100 on all machines of Linux but Alpha and ia64.
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else { return None };
    Some(Duration::from_millis((user + nice + system + irq + softirq) * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_does_not_count() {
        let stat = "cpu  100 20 300 9000 50 6 70 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\nintr 1\n";
        assert_eq!(parse(stat), Some(Duration::from_millis(4960)));
        assert_eq!(parse("cpu0 1 2 3 4 5 6 7 8 0 0\n"), None);
        assert_eq!(parse("cpu  1 2 3\n"), None);
    }
}
