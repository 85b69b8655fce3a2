//! Which tier carried something, and whether TCP needed the time-outs by which it recovers from lost packets.
use overlay_common::{Hook, Reason};
use overlay_lab::{Carried, Container, Counters, Lab, Transfer};

use crate::bed::Bed;

/// How many packets each host has counted while something happened.
pub(super) struct Count([[Counters; 2]; 2]);

impl Count {
    pub(super) fn of(bed: &Bed, work: impl FnOnce()) -> Self {
        let read = || [0, 1].map(|host| bed[host].counters().unwrap());
        let before = read();
        work();
        Self([before, read()])
    }

    pub(super) fn carried(&self, host: usize) -> Carried {
        let [then, now] = [0, 1].map(|time| self.0[time][host].carried());
        Carried {
            fast_out: now.fast_out - then.fast_out,
            fast_in: now.fast_in - then.fast_in,
            stack_out: now.stack_out - then.stack_out,
            stack_in: now.stack_in - then.stack_in,
            dropped: now.dropped - then.dropped,
        }
    }

    pub(super) fn packets(&self, host: usize, hook: Hook, reason: Reason) -> u64 {
        let [then, now] = [0, 1].map(|time| self.0[time][host].packets(hook, reason));
        now - then
    }

    /// Asserts that a stream of `bytes` went from the first host to the second by the fast path, in segments of at most
    /// `segment` bytes of payload, and that nothing else happened.
    #[track_caller]
    pub(super) fn is_fast(&self, what: &str, bytes: u64, segment: u64) {
        let [here, there] = [0, 1].map(|host| self.carried(host));
        for host in [here, there] {
            assert_eq!((host.stack_out, host.stack_in, host.dropped), (0, 0, 0), "{what}: {host:?}");
        }
        let segments = bytes / segment;
        assert!(here.fast_out >= segments && there.fast_in >= segments, "{what}: {here:?} {there:?}");
    }
}

/// Makes the underlay as behind a NIC without offloads, with one frame for each segment and GRO at the receiver, or
/// undoes that.
pub(super) fn set_wire_like(lab: &Lab, is: bool) {
    let [offloads, gro] = if is { ["off", "on"] } else { ["on", "off"] };
    for host in lab.hosts() {
        let words = format!("tso {offloads} gso {offloads} tx {offloads} gro {gro}");
        host.exec(&format!("ethtool -K eth0 {words}")).unwrap();
        lab.switch().exec(&format!("ethtool -K {} {words}", host.name())).unwrap();
    }
}

/// A counter of TCP in /proc/net/netstat.
fn tcp_counter(container: &Container, name: &str) -> u64 {
    let text = container.exec("cat /proc/net/netstat").unwrap();
    let mut lines =
        text.lines().filter(|line| line.starts_with("TcpExt:")).map(|line| line.split_whitespace());
    let (mut names, mut numbers) = (lines.next().unwrap(), lines.next().unwrap());
    numbers.nth(names.position(|found| found == name).unwrap()).unwrap().parse().unwrap()
}

/// Makes a time-out of this container's TCP mean lost packets rather than a busy machine, from now on.
pub(super) fn be_patient(container: &Container) {
    let route = container.exec("ip route show default").unwrap();
    container.namespace().ip(&format!("route replace {} rto_min 2s", route.trim())).unwrap();
}

/// Sends a stream in which TCP must not fall back to small packets, which it does after time-outs if large ones are
/// lost.
#[track_caller]
pub(super) fn without_timeouts(
    what: &str,
    from: &Container,
    stream: impl FnOnce() -> anyhow::Result<Transfer>,
) {
    let before = tcp_counter(from, "TCPTimeouts");
    let done = stream().unwrap_or_else(|error| panic!("{what}: {error:#}"));
    println!("{what}: {done:?}");
    assert_eq!(tcp_counter(from, "TCPTimeouts") - before, 0, "{what}");
}
