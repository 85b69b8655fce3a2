//! Numbered UDP packets at a steady rate, which show whether a restart lost, duplicated or reordered any.
use std::{
    net::UdpSocket,
    os::fd::AsFd as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use crate::{container::Container, namespace::join};

/// A stream that runs until it is finished.
#[derive(Debug)]
pub struct Numbered {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    /// How many were sent in all, once the sender has ended.
    total: Arc<OnceLock<u64>>,
    sender: JoinHandle<Result<Sent>>,
    receiver: JoinHandle<Result<Received>>,
}

/// What became of the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NumberedReport {
    /// Numbers given out, one packet each.
    pub sent: u64,
    /// Numbers that arrived at least once.
    pub received: u64,
    /// Numbers that never arrived.
    pub lost: u64,
    /// Packets that arrived again after their number had arrived already.
    pub duplicated: u64,
    /// Packets that arrived after a higher number.
    pub reordered: u64,
    /// Packets per second as sent.
    pub rate: u64,
    /// The longest time in which the receiver saw no packet.
    pub longest_gap: Duration,
}

#[derive(Debug)]
struct Sent {
    count: u64,
    time: Duration,
}

#[derive(Debug, Default)]
struct Received {
    seen: Vec<bool>,
    count: u64,
    duplicated: u64,
    reordered: u64,
    longest_gap: Duration,
}

/// UDP payload in bytes. 18 would make Ethernet frames of 64 bytes; 32 holds the packet's number and keeps frames
/// small.
const PAYLOAD: usize = 32;
/// Size of the receiver's socket buffer in bytes. It must be large enough that nothing is lost there while the
/// receiver's thread waits for a CPU.
const SOCKET_BUFFER: usize = 64 << 20;

/// The most frames that are sent in a row.
const BURST: u64 = 64;

impl Numbered {
    /// Starts sending `rate` packets per second from one container to another.
    pub fn start(from: &Container, to: &Container, rate: u32) -> Result<Self> {
        let inbox = to.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        // The limit net.core.rmem_max applies in the container's namespace; RCVBUFFORCE lets root exceed it.
        setsockopt(&inbox.as_fd(), RcvBufForce, &SOCKET_BUFFER)?;
        let target = (to.address(), inbox.local_addr()?.port());
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let sender = from.namespace().thread(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(target)?;
            Ok(send(&socket, rate, &stopped, &counted))
        });
        let total = Arc::new(OnceLock::new());
        let expected = Arc::clone(&total);
        let receiver = thread::spawn(move || receive(&inbox, &expected));
        Ok(Self { stop, sent, total, sender, receiver })
    }

    /// Numbers given out so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the stream, waits for stragglers, and counts.
    pub fn finish(self) -> Result<NumberedReport> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = join(self.sender);
        // Without this the receiver would never end.
        self.total.get_or_init(|| sent.as_ref().map_or(0, |sent| sent.count));
        let received = join(self.receiver)?;
        let sent = sent?;
        ensure!(received.seen.len() as u64 <= sent.count, "a number arrived that was never sent");
        Ok(NumberedReport {
            sent: sent.count,
            received: received.count,
            lost: sent.count - received.count,
            duplicated: received.duplicated,
            reordered: received.reordered,
            rate: (sent.count as f64 / sent.time.as_secs_f64()) as u64,
            longest_gap: received.longest_gap,
        })
    }
}

fn send(socket: &UdpSocket, rate: u32, stop: &AtomicBool, counted: &AtomicU64) -> Sent {
    let started = Instant::now();
    let mut payload = [0; PAYLOAD];
    let mut count: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        // A sender that fell behind on a busy machine catches up in short bursts. A CPU's queue for veths holds only
        // 1000 frames (net.core.netdev_max_backlog), and all tests share it.
        let burst = due.min(count + BURST);
        while count < burst {
            payload[..8].copy_from_slice(&count.to_be_bytes());
            // An error here is an ICMP message about an earlier packet; the present one was not sent. It is sent once
            // more, and if that fails too, it counts as lost.
            let _ = socket.send(&payload).or_else(|_| socket.send(&payload));
            count += 1;
        }
        counted.store(count, Ordering::Relaxed);
        thread::sleep(Duration::from_micros(200));
    }
    Sent { count, time: started.elapsed() }
}

/// How many frames this machine's CPUs have thrown away so far because their queues were full. The kernel does not tell
/// who sent them.
pub fn queue_overflows() -> Result<u64> {
    // One line for each CPU; the second column counts them (net/core/net-procfs.c).
    let table = std::fs::read_to_string("/proc/net/softnet_stat")?;
    let dropped = |cpu: &str| u64::from_str_radix(cpu.split(' ').nth(1).unwrap_or("0"), 16);
    table.lines().map(|cpu| Ok(dropped(cpu)?)).sum()
}

/// The silence after which no late packet will come, once the sender has ended and some are missing.
const MISSING: Duration = Duration::from_millis(500);
/// The same where all have come, and only one that is delivered twice could still be under way.
const COMPLETE: Duration = Duration::from_millis(200);

fn receive(inbox: &UdpSocket, total: &OnceLock<u64>) -> Result<Received> {
    const TICK: Duration = Duration::from_millis(50);
    inbox.set_read_timeout(Some(TICK))?;
    let mut received = Received::default();
    let mut silent = Duration::ZERO;
    let mut last: Option<Instant> = None;
    let mut payload = [0; PAYLOAD];
    loop {
        match inbox.recv(&mut payload) {
            Ok(length) => {
                ensure!(length == PAYLOAD, "a packet of {length} bytes, {PAYLOAD} were sent");
                silent = Duration::ZERO;
                let now = Instant::now();
                if let Some(last) = last.replace(now) {
                    received.longest_gap = received.longest_gap.max(now - last);
                }
                let [a, b, c, d, e, f, g, h, ..] = payload;
                received.count(u64::from_be_bytes([a, b, c, d, e, f, g, h]) as usize);
            }
            Err(_) => {
                let Some(&total) = total.get() else { continue };
                silent += TICK;
                if silent >= if received.count == total { COMPLETE } else { MISSING } {
                    return Ok(received);
                }
            }
        }
    }
}

impl Received {
    fn count(&mut self, number: usize) {
        if number >= self.seen.len() {
            self.seen.resize(number + 1, false);
        } else if self.seen[number] {
            self.duplicated += 1;
            return;
        } else {
            self.reordered += 1;
        }
        self.seen[number] = true;
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted_once_and_in_order() {
        let mut received = Received::default();
        for number in [0, 1, 4, 3, 3, 5] {
            received.count(number);
        }
        assert_eq!((received.count, received.duplicated, received.reordered), (5, 1, 1));
        assert_eq!(received.seen, [true, true, false, true, true, true]);
    }
}
