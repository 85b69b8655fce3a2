//! A connection one of whose ends is a container that nobody has heard of yet: how fast it is, and which share of its bytes the fast
//! path carries.
use std::fs;

use anyhow::{Context as _, Result, ensure};
use overlay_common::Hook;

use super::network::Network;
use overlay_lab::{Accounts, Container, Ledger, Traffic, Transfer, transfer};

/// Which end of the connection is new: made right before it, without having sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum New {
    /// The container that opens the connection and sends the stream.
    Client,
    /// The container that is asked. Nothing on its host can know it before its first answer, so the share is taken from the second
    /// round trip on.
    Server,
}

impl New {
    /// The stream in words.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Client => "first TCP stream of a new container",
            Self::Server => "TCP stream to a server that never spoke, from the second round trip on",
        }
    }
}

/// The figures of such a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct First {
    /// Payload that arrived, in megabits per second, from before the connection to its end.
    pub(super) megabits_per_second: f64,
    /// Of all bytes of inner packets, in both directions, the part that the fast path carried, in percent. Of sending and receiving
    /// hosts, the lesser counts. None where our overlay does not run.
    pub(super) fast_percent: Option<f64>,
    /// TCP segments that either end has sent again because the first one did not arrive.
    pub(super) lost: u64,
}

/// Payload of the stream. One percent of it is what TCP sends in some ten round trips from its initial window.
const PAYLOAD: u64 = 16 << 20;
/// Bytes of the first round trip: SYN and SYN with ACK, each with 20 bytes of IPv4, 20 of TCP, and 20 of the options that Linux
/// sends (maximum segment size, SACK, timestamps, window scale).
const FIRST_ROUND_TRIP: u64 = 2 * 60;

/// Makes a container, at once has it take part in a stream, and removes it. Every byte must arrive, and no packet may be lost.
pub(super) fn first(network: &Network, new: New) -> Result<First> {
    let at = match new {
        New::Client => 0,
        New::Server => 1,
    };
    // The counters are read before the container is made, since reading them would give the agent time to learn it.
    let ledger = Ledger::open(network.members())?;
    let container = network.newcomer(at)?;
    let streamed = stream(network, &container, new);
    container.remove()?;
    let (megabits_per_second, missing) = streamed?;
    if network.members().is_empty() {
        return Ok(First { megabits_per_second, fast_percent: None, lost: missing });
    }
    let accounts = ledger.close(network.members())?;
    let (dropped, [_, lost, _]) = (accounts.dropped(), accounts.gaps(Traffic::default()));
    ensure!(
        (dropped, lost) == (0, 0),
        "{dropped} packets were dropped, {lost} lost between the hosts\n{accounts}"
    );
    let first = match new {
        New::Client => 0,
        New::Server => FIRST_ROUND_TRIP,
    };
    let fast_percent = Some(fast_percent(&accounts, first)?);
    Ok(First { megabits_per_second, fast_percent, lost: missing })
}

/// Sends the stream. Returns its megabits per second, and how many of its segments had to be sent again.
fn stream(network: &Network, newcomer: &Container, new: New) -> Result<(f64, u64)> {
    let ends = match new {
        New::Client => [newcomer, &network.to],
        New::Server => [&network.from, newcomer],
    };
    let before = ends.map(Repeats::of);
    let Transfer { bytes, time } = transfer(ends[0], ends[1], PAYLOAD)?;
    let lost = ends.into_iter().zip(before).map(|(end, before)| Ok(Repeats::of(end)?.lost_since(before?)));
    Ok((bytes as f64 * 8.0 / 1e6 / time.as_secs_f64(), lost.sum::<Result<_>>()?))
}

/// The part of the bytes that the fast path carried, out of a host and into one. `first` is how many bytes the first packets had
/// that do not count if the stack carried them.
fn fast_percent(accounts: &Accounts, first: u64) -> Result<f64> {
    let share = |fast: u64, stack: u64| {
        let all = fast + stack.saturating_sub(first);
        ensure!(all >= PAYLOAD, "{all} bytes were counted, and {PAYLOAD} sent");
        Ok(fast as f64 / all as f64 * 100.0)
    };
    let bytes = |hook| accounts.bytes(hook);
    let out = share(bytes(Hook::Encap), bytes(Hook::Send))?;
    let into = share(bytes(Hook::Decap) + bytes(Hook::Xdp), bytes(Hook::Receive))?;
    Ok(out.min(into))
}

/// What TCP in a container has counted so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Repeats {
    /// Segments that it sent again.
    sent: u64,
    /// Those of them of which the other end has told that it had them already (RFC 2883): an acknowledgement came late.
    needless: u64,
}

impl Repeats {
    fn of(container: &Container) -> Result<Self> {
        let texts = container.namespace().enter(|| {
            let read = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
            Ok(read("snmp")? + &read("netstat")?)
        });
        let texts = texts.context("read the container's counters of TCP")?;
        let number =
            |line, name| counter(&texts, line, name).with_context(|| format!("no counter {name} of TCP"));
        Ok(Self { sent: number("Tcp: ", "RetransSegs")?, needless: number("TcpExt: ", "TCPDSACKRecvSegs")? })
    }

    fn lost_since(self, before: Self) -> u64 {
        (self.sent - before.sent).saturating_sub(self.needless - before.needless)
    }
}

/// A counter from /proc/net/snmp or netstat, where one line has the names of a protocol's counters, and the next one their values.
fn counter(text: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol));
    let (names, values) = (lines.next()?.split(' '), lines.next()?.split(' '));
    names.zip(values).find(|(this, _)| *this == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use overlay_common::Reason;

    use super::*;

    fn accounts(bytes: &[(Hook, u64)]) -> Accounts {
        let reasons = bytes.iter().map(|(hook, bytes)| ((*hook, Reason::Carried), (1, *bytes)));
        Accounts { reasons: reasons.collect(), ..Accounts::default() }
    }

    #[test]
    fn the_lesser_of_both_sides_counts() {
        let out = [(Hook::Encap, 3 * PAYLOAD), (Hook::Send, PAYLOAD)];
        let into =
            |fast| [(Hook::Decap, PAYLOAD), (Hook::Xdp, fast - PAYLOAD), (Hook::Receive, 4 * PAYLOAD - fast)];
        let percent = |fast| fast_percent(&accounts(&[&out[..], &into(fast)].concat()), 0).unwrap();
        assert_eq!((percent(2 * PAYLOAD), percent(4 * PAYLOAD)), (50.0, 75.0));
    }

    #[test]
    fn the_first_round_trip_is_left_out_where_the_stack_carried_it() {
        let with = |stack| {
            let bytes =
                [(Hook::Encap, PAYLOAD), (Hook::Send, stack), (Hook::Decap, PAYLOAD), (Hook::Receive, stack)];
            fast_percent(&accounts(&bytes), FIRST_ROUND_TRIP).unwrap()
        };
        assert_eq!((with(0), with(FIRST_ROUND_TRIP)), (100.0, 100.0));
        assert_eq!(with(FIRST_ROUND_TRIP + PAYLOAD), 50.0);
        assert!(fast_percent(&accounts(&[(Hook::Encap, PAYLOAD)]), 0).is_err(), "nothing arrived");
    }

    #[test]
    fn counters_are_found_by_name_and_needless_repeats_are_no_loss() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: InSegs OutSegs RetransSegs InErrs\nTcp: 10 12 3 0\nTcpExt: A\nTcpExt: 1\n";
        assert_eq!(counter(text, "Tcp: ", "RetransSegs"), Some(3));
        assert_eq!(counter(text, "TcpExt: ", "RetransSegs"), None);
        let before = Repeats { sent: 5, needless: 1 };
        let lost = |sent, needless| Repeats { sent, needless }.lost_since(before);
        assert_eq!((lost(5, 1), lost(8, 1), lost(8, 3), lost(8, 4)), (0, 3, 1, 0));
    }
}
