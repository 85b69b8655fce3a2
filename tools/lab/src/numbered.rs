//! Numbered UDP packets at a steady rate, which show whether a restart lost, duplicated or reordered any.
use std::{
    net::{Ipv4Addr, UdpSocket},
    ops::Range,
    os::fd::AsFd as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use crate::{
    container::Container,
    namespace::{Namespace, join},
    wait::wait_until,
};

/// A stream that runs until it is finished.
#[derive(Debug)]
pub struct Numbered {
    stop: Arc<AtomicBool>,
    numbers: Arc<Numbers>,
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

/// How far the sender is.
#[derive(Debug, Default)]
struct Numbers {
    /// The numbers below this were sent.
    sent: AtomicU64,
    /// The numbers from this on were not sent yet. Those between the two are being sent.
    begun: AtomicU64,
    /// The numbers from this on have not arrived yet.
    arrived: AtomicU64,
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
    /// The longest time without a packet, but for those below.
    longest_gap: Duration,
    /// Longer times without one, and the number that ended each.
    gaps: Vec<(u64, Duration)>,
}

/// A time without packets from which on it is known which numbers were missing.
const GAP: Duration = Duration::from_millis(5);

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
        Self::between(from, to.namespace(), to.address(), rate, PAYLOAD)
    }

    /// Does the same to an address of any namespace, with so many bytes of UDP payload, which are 8 at least.
    pub fn between(
        from: &Container,
        to: &Namespace,
        address: Ipv4Addr,
        rate: u32,
        payload: usize,
    ) -> Result<Self> {
        ensure!(payload >= size_of::<u64>(), "a number takes 8 bytes, not {payload}");
        let inbox = to.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        // The limit net.core.rmem_max applies in the container's namespace; RCVBUFFORCE lets root exceed it.
        setsockopt(&inbox.as_fd(), RcvBufForce, &SOCKET_BUFFER)?;
        let target = (address, inbox.local_addr()?.port());
        let stop = Arc::new(AtomicBool::new(false));
        let numbers = Arc::new(Numbers::default());
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&numbers));
        let sender = from.namespace().thread(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(target)?;
            Ok(send(&socket, rate, payload, &stopped, &counted))
        });
        let total = Arc::new(OnceLock::new());
        let expected = Arc::clone(&total);
        let seen = Arc::clone(&numbers);
        let receiver = thread::spawn(move || receive(&inbox, payload, &expected, &seen.arrived));
        Ok(Self { stop, numbers, total, sender, receiver })
    }

    /// Numbers given out so far.
    pub fn sent(&self) -> u64 {
        self.numbers.sent.load(Ordering::SeqCst)
    }

    /// The numbers from this on have not been sent yet. A burst that is under way counts as sent.
    pub fn begun(&self) -> u64 {
        self.numbers.begun.load(Ordering::SeqCst)
    }

    /// The numbers from this on have not arrived yet. Of those below, some may be under way still, or lost.
    pub fn arrived(&self) -> u64 {
        self.numbers.arrived.load(Ordering::SeqCst)
    }

    /// Waits until a packet that has not been sent yet arrives. What was sent before is under way no longer then, or at most for as
    /// long as one packet overtakes another.
    pub fn flow(&self, limit: Duration) -> Result<()> {
        let next = self.begun();
        wait_until("a packet that is sent from now on", limit, || Ok(self.arrived() > next))
    }

    /// Ends the stream, waits for stragglers, and counts.
    pub fn finish(self) -> Result<NumberedReport> {
        Ok(self.finish_apart(&[])?.0)
    }

    /// Does the same, but counts apart what is missing of these numbers, and the gaps that end among them or right behind them.
    /// It is for times in which the path was cut on purpose. The second result has how many are missing of each range; where ranges
    /// overlap, what is missing counts once, for the range that begins first.
    pub fn finish_apart(self, cuts: &[Range<u64>]) -> Result<(NumberedReport, Vec<u64>)> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = join(self.sender);
        // Without this the receiver would never end.
        self.total.get_or_init(|| sent.as_ref().map_or(0, |sent| sent.count));
        let received = join(self.receiver)?;
        let sent = sent?;
        ensure!(received.seen.len() as u64 <= sent.count, "a number arrived that was never sent");
        let missing: Vec<u64> = apart(cuts).iter().map(|cut| received.missing(cut, sent.count)).collect();
        let lost = (sent.count - received.count).checked_sub(missing.iter().sum());
        let report = NumberedReport {
            sent: sent.count,
            received: received.count,
            lost: lost.context("more numbers are missing of the cuts than of all that was sent")?,
            duplicated: received.duplicated,
            reordered: received.reordered,
            rate: (sent.count as f64 / sent.time.as_secs_f64()) as u64,
            longest_gap: received.longest_gap(cuts),
        };
        Ok((report, missing))
    }
}

/// The same ranges in the same order, each without the numbers of those that begin before it.
fn apart(cuts: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut order: Vec<usize> = (0..cuts.len()).collect();
    order.sort_by_key(|at| cuts[*at].start);
    let mut apart = cuts.to_vec();
    let mut reached = 0;
    for at in order {
        apart[at].start = apart[at].start.max(reached);
        reached = reached.max(apart[at].end);
    }
    apart
}

fn send(socket: &UdpSocket, rate: u32, payload: usize, stop: &AtomicBool, numbers: &Numbers) -> Sent {
    let started = Instant::now();
    // A slow stream does not wake the machine more often than it must.
    let pause = Duration::from_secs_f64(1.0 / f64::from(rate))
        .clamp(Duration::from_micros(200), Duration::from_millis(1));
    let mut payload = vec![0; payload];
    let mut count: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        // A sender that fell behind on a busy machine catches up in short bursts. A CPU's queue for veths holds only
        // 1000 frames (net.core.netdev_max_backlog), and all tests share it.
        let burst = due.min(count + BURST);
        numbers.begun.store(burst, Ordering::SeqCst);
        while count < burst {
            payload[..8].copy_from_slice(&count.to_be_bytes());
            // An error here is an ICMP message about an earlier packet; the present one was not sent. It is sent once
            // more, and if that fails too, it counts as lost.
            let _ = socket.send(&payload).or_else(|_| socket.send(&payload));
            count += 1;
        }
        numbers.sent.store(count, Ordering::SeqCst);
        thread::sleep(pause);
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

fn receive(
    inbox: &UdpSocket,
    expected: usize,
    total: &OnceLock<u64>,
    arrived: &AtomicU64,
) -> Result<Received> {
    const TICK: Duration = Duration::from_millis(50);
    inbox.set_read_timeout(Some(TICK))?;
    let mut received = Received::default();
    let mut silent = Duration::ZERO;
    let mut last: Option<Instant> = None;
    let mut payload = vec![0; expected];
    loop {
        match inbox.recv(&mut payload) {
            Ok(length) => {
                ensure!(length == expected, "a packet of {length} bytes, {expected} were sent");
                silent = Duration::ZERO;
                let number = payload.first_chunk().copied().map_or(0, u64::from_be_bytes);
                let now = Instant::now();
                match last.replace(now).map(|last| now - last) {
                    Some(gap) if gap >= GAP => received.gaps.push((number, gap)),
                    Some(gap) => received.longest_gap = received.longest_gap.max(gap),
                    None => {}
                }
                received.count(number as usize);
                arrived.store(received.seen.len() as u64, Ordering::SeqCst);
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

    /// How many of these numbers did not arrive. Those from `sent` on were never sent.
    fn missing(&self, numbers: &Range<u64>, sent: u64) -> u64 {
        let expected = numbers.start..numbers.end.min(sent);
        let arrived =
            expected.clone().filter(|number| self.seen.get(*number as usize) == Some(&true)).count();
        expected.end.saturating_sub(expected.start) - arrived as u64
    }

    fn longest_gap(&self, cuts: &[Range<u64>]) -> Duration {
        let is_cut = |number: u64| cuts.iter().any(|cut| (cut.start..=cut.end + BURST).contains(&number));
        let others = self.gaps.iter().filter(|(number, _)| !is_cut(*number)).map(|(_, gap)| *gap);
        others.fold(self.longest_gap, Duration::max)
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

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

    #[test]
    fn a_stream_flows_when_a_number_arrives_that_had_not_been_sent() {
        let inbox = UdpSocket::bind("127.0.0.1:0").unwrap();
        let outbox = UdpSocket::bind("127.0.0.1:0").unwrap();
        outbox.connect(inbox.local_addr().unwrap()).unwrap();
        let numbers = Arc::new(Numbers::default());
        let (total, seen) = (Arc::new(OnceLock::new()), Arc::clone(&numbers));
        let expected = Arc::clone(&total);
        let stream = Numbered {
            stop: Arc::default(),
            numbers: Arc::clone(&numbers),
            total,
            sender: thread::spawn(|| Ok(Sent { count: 6, time: Duration::from_secs(1) })),
            receiver: thread::spawn(move || receive(&inbox, PAYLOAD, &expected, &seen.arrived)),
        };
        let send = |number: u64| {
            let mut payload = [0; PAYLOAD];
            payload[..8].copy_from_slice(&number.to_be_bytes());
            outbox.send(&payload).unwrap();
        };
        numbers.begun.store(5, Ordering::SeqCst);
        send(4);
        wait_until("a number", Duration::from_secs(60), || Ok(stream.arrived() == 5)).unwrap();
        assert!(stream.flow(Duration::ZERO).is_err(), "4 was under way already");
        send(5);
        stream.flow(Duration::from_secs(60)).unwrap();
        let report = stream.finish().unwrap();
        assert_eq!((report.received, report.lost), (2, 4));
    }

    #[test]
    fn what_is_missing_in_a_cut_is_counted_apart() {
        let mut received = Received::default();
        for number in [0, 1, 2, 6, 8] {
            received.count(number);
        }
        // 3, 4, 5 and 7 are missing, and 9, which was sent last.
        let missing = |numbers| received.missing(&numbers, 10);
        assert_eq!((missing(2..7), missing(3..6), missing(7..8), missing(8..40)), (3, 3, 1, 1));
        assert_eq!((missing(0..3), missing(12..14), missing(0..10)), (0, 0, 5));
    }

    #[test]
    fn what_is_missing_counts_once_where_cuts_overlap() {
        let mut received = Received::default();
        for number in [0, 1, 8] {
            received.count(number);
        }
        // 2 to 7 and 9 are missing. The second cut begins within the first, and the third is within the second.
        let cuts = [1..5, 3..9, 4..7, 9..40, 9..40];
        let missing: Vec<_> = apart(&cuts).iter().map(|cut| received.missing(cut, 10)).collect();
        assert_eq!(missing, [3, 3, 0, 1, 0]);
        assert_eq!(apart(&[5..9, 1..6]), [6..9, 1..6]);
    }

    #[test]
    fn a_gap_that_a_cut_explains_is_not_the_longest() {
        let milliseconds = Duration::from_millis;
        let gaps = vec![(500, milliseconds(900)), (9000, milliseconds(20))];
        let received = Received { longest_gap: milliseconds(4), gaps, ..Received::default() };
        assert_eq!(received.longest_gap(&[]), milliseconds(900));
        assert_eq!(received.longest_gap(slice::from_ref(&(100..490))), milliseconds(20));
        assert_eq!(received.longest_gap(&[100..490, 8000..9000]), milliseconds(4));
        assert_eq!(received.longest_gap(slice::from_ref(&(600..700))), milliseconds(900));
    }
}
