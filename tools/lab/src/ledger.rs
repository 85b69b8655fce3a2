//! Accounts of a piece of traffic: what containers sent is what was delivered, plus what hooks and devices say they lost.
//!
//! ```text
//!  containers --(1)--> encap --carried-----------------(2)--> decap --carried------------(3)--> containers
//!              |         |--stack--> send --carried----'        |--stack--> receive --carried--'
//!              |         '--dropped   ^ '--dropped              '--dropped    '--dropped
//!              '-- not attached yet --'
//! ```
//!
//! A container's packet to another host has one reason per hook, so what is lost between two hooks is the difference of
//! their sums. The picture numbers these three gaps. What encap and decap leave to the stack is looked for at send and
//! receive. A gap that no device's counter explains means that a packet is lost without account.
//!
//! **What can be checked.** For packets that are sent one by one (numbered streams and pings, not TCP), everything can
//! be checked to the packet: each is one frame at every hook, since nothing merges them. With TCP, the number of
//! segments sent is not known, and acknowledgements and retransmissions are packets too. What can be checked then: what
//! leaves one host arrives at the other (both hooks count a GSO frame as its segments, so the second gap is what
//! devices lost), [`Accounts::dropped`] is zero, and [`Accounts::bytes`] is no less than the payload.
//!
//! What `send` answers itself (`too-big`, in host-gw) comes back to the sender by `receive` of the same host, so that
//! hook carries one packet more for each, which nobody sent and no container counts.
//!
//! Only containers may send to other hosts meanwhile. What a host itself sends through overlay0 shows as a negative
//! gap.
use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, Result, bail};
use overlay_common::{Hook, Reason, Verdict};
use serde::Deserialize;

use crate::{counters::Counters, member::Member, numbered::NumberedReport};

/// Counters of all hosts before the traffic.
#[derive(Debug)]
pub struct Ledger {
    before: Vec<Reading>,
}

/// The counters of one host at one moment.
#[derive(Clone, Debug)]
struct Reading {
    counters: Counters,
    /// Packets by device (name and index) and counter.
    losses: BTreeMap<(String, u32, String), u64>,
}

/// What the containers themselves saw of the traffic, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets that were handed to the kernel for containers of other hosts.
    pub sent: u64,
    /// Packets that containers received from other hosts.
    pub received: u64,
}

/// What happened between [`Ledger::open`] and [`Ledger::close`], all hosts together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Packets and bytes by hook and reason. Bytes are those of inner IP packets.
    pub reasons: BTreeMap<(Hook, Reason), (u64, u64)>,
    /// Packets by host, device and counter, such as `h1 eth0 queue_drops`. A packet that two devices count is in here
    /// twice.
    pub devices: BTreeMap<String, u64>,
}

impl Ledger {
    /// Reads the counters of these hosts. No agent has to run for that.
    pub fn open(members: &[Member]) -> Result<Self> {
        Ok(Self { before: members.iter().map(Reading::of).collect::<Result<_>>()? })
    }

    /// Reads the counters again, of the same hosts in the same order, and takes the differences.
    pub fn close(self, members: &[Member]) -> Result<Accounts> {
        let mut accounts = Accounts::default();
        for (member, before) in members.iter().zip(self.before) {
            let after = Reading::of(member)?;
            accounts.add(&member.host.name(), &before, &after);
        }
        Ok(accounts)
    }
}

impl Reading {
    fn of(member: &Member) -> Result<Self> {
        #[derive(Deserialize)]
        struct Status {
            device_losses: Vec<Loss>,
        }
        #[derive(Deserialize)]
        struct Loss {
            device: String,
            ifindex: u32,
            role: String,
            counter: String,
            packets: Option<u64>,
        }
        let answer = member.overlay(&["status", "--json"])?;
        let status: Status = serde_json::from_str(&answer).context("read `overlay status --json`")?;
        // The queues of the CPUs belong to the whole machine, so they count the packets of other tests too. Packets
        // lost at a full queue are counted by the devices around it as well.
        let devices = status.device_losses.into_iter().filter(|loss| loss.role != "cpu");
        let losses =
            devices.filter_map(|loss| Some(((loss.device, loss.ifindex, loss.counter), loss.packets?)));
        Ok(Self { counters: Counters::parse(&answer)?, losses: losses.collect() })
    }
}

impl From<&[NumberedReport]> for Traffic {
    fn from(reports: &[NumberedReport]) -> Self {
        let add = |sum: Self, report: &NumberedReport| Self {
            sent: sum.sent + report.sent,
            received: sum.received + report.received + report.duplicated,
        };
        reports.iter().fold(Self::default(), add)
    }
}

impl Accounts {
    fn add(&mut self, host: &str, before: &Reading, after: &Reading) {
        for (hook, reason, packets, bytes) in after.counters.all() {
            let (earlier_packets, earlier_bytes) = before.counters.count(*hook, *reason);
            let entry = self.reasons.entry((*hook, *reason)).or_default();
            entry.0 += packets - earlier_packets;
            entry.1 += bytes - earlier_bytes;
        }
        for (key, packets) in &after.losses {
            // A device that was made meanwhile starts from zero, and the counters of one that was removed are gone.
            let lost = packets.saturating_sub(before.losses.get(key).copied().unwrap_or(0));
            if lost > 0 {
                *self.devices.entry(format!("{host} {} {}", key.0, key.2)).or_default() += lost;
            }
        }
    }

    /// Packets that were counted at `hook` under a reason with one of these verdicts.
    fn at(&self, hook: Hook, verdicts: &[Verdict]) -> u64 {
        let of = self
            .reasons
            .iter()
            .filter(|((at, reason), _)| *at == hook && verdicts.contains(&reason.verdict_at(hook)));
        of.map(|(_, (packets, _))| packets).sum()
    }

    /// Packets that the programs dropped, or answered with an error.
    pub fn dropped(&self) -> u64 {
        Hook::ALL.iter().map(|hook| self.at(*hook, &[Verdict::Drop, Verdict::Answered])).sum()
    }

    /// Bytes of inner IP packets that a hook carried. They are at least the payload that containers sent, by TCP too.
    pub fn bytes(&self, hook: Hook) -> u64 {
        self.reasons.get(&(hook, Reason::Carried)).map_or(0, |(_, bytes)| *bytes)
    }

    /// Packets with this reason.
    pub fn packets(&self, hook: Hook, reason: Reason) -> u64 {
        self.reasons.get(&(hook, reason)).map_or(0, |(packets, _)| *packets)
    }

    /// The packets that are missing at the three gaps of the picture above. A negative gap means that more came than
    /// went.
    pub fn gaps(&self, traffic: Traffic) -> [i64; 3] {
        use Verdict::{Answered, Carried, Drop, Stack};
        let seen = |hook| self.at(hook, &[Carried, Stack, Drop, Answered]);
        let ended = |hook| self.at(hook, &[Carried, Drop, Answered]);
        let carried = |hook| self.at(hook, &[Carried]);
        // The answers that `send` gives itself: they come to `receive` of the host that gave them, and from there to who sent.
        let answers = self.packets(Hook::Send, Reason::TooBig);
        // What stays on its host is part of none of the gaps.
        let near = self.packets(Hook::Encap, Reason::SameHost);
        [
            minus(traffic.sent, ended(Hook::Encap) - near + seen(Hook::Send)),
            minus(
                carried(Hook::Encap) - near + carried(Hook::Send) + answers,
                ended(Hook::Xdp) + ended(Hook::Decap) + seen(Hook::Receive),
            ),
            minus(
                carried(Hook::Xdp) + carried(Hook::Decap) + carried(Hook::Receive),
                traffic.received + answers,
            ),
        ]
    }

    /// Packets that devices say they lost. On some kernels what a queue drops is counted in the device's tx_dropped as
    /// well; so of a device's counters for one direction only the largest is counted, which includes the others.
    fn explained(&self) -> u64 {
        let mut largest: BTreeMap<(&str, bool), u64> = BTreeMap::new();
        for (name, packets) in &self.devices {
            let (device, counter) = name.rsplit_once(' ').unwrap_or((name, ""));
            let entry = largest.entry((device, counter.starts_with("rx"))).or_default();
            *entry = (*entry).max(*packets);
        }
        largest.values().sum()
    }

    /// Checks that the packets sent are those delivered, those with a reason, and those that devices lost. The error
    /// shows the whole account.
    pub fn balance(&self, traffic: Traffic) -> Result<()> {
        let gaps = self.gaps(traffic);
        let lost: i64 = gaps.iter().sum();
        // This cannot be an equation: two devices may count the same packet, and devices lose other frames too.
        let explained = self.explained();
        if gaps.iter().any(|gap| *gap < 0) {
            bail!("more packets than there can be: {traffic:?}, gaps {gaps:?}\n{self}");
        }
        if lost > explained as i64 {
            bail!(
                "{lost} packets that nobody accounts for ({explained} by devices): {traffic:?}, gaps {gaps:?}\n{self}"
            );
        }
        Ok(())
    }
}

fn minus(more: u64, less: u64) -> i64 {
    more as i64 - less as i64
}

impl fmt::Display for Accounts {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((hook, reason), (packets, bytes)) in self.reasons.iter().filter(|(_, (packets, _))| *packets > 0)
        {
            writeln!(to, "  {} {}: {packets} packets, {bytes} bytes", hook.as_str(), reason.as_str())?;
        }
        self.devices.iter().try_for_each(|(device, packets)| writeln!(to, "  {device}: {packets} packets"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(counts: &[(Hook, Reason, u64)]) -> Accounts {
        let reasons = counts.iter().map(|(hook, reason, packets)| ((*hook, *reason), (*packets, 0)));
        Accounts { reasons: reasons.collect(), devices: BTreeMap::new() }
    }

    /// An account of 100 packets that were sent: 90 take the fast path, of which 3 are dropped at the other end and 2
    /// have an unlearned destination there; 8 take the stack; 2 have no peer.
    fn good() -> Accounts {
        accounts(&[
            (Hook::Encap, Reason::Carried, 90),
            (Hook::Encap, Reason::SameHost, 40),
            (Hook::Encap, Reason::Unlearned, 8),
            (Hook::Encap, Reason::NoPeer, 2),
            (Hook::Send, Reason::Carried, 8),
            (Hook::Decap, Reason::Carried, 85),
            (Hook::Decap, Reason::UnknownPeer, 3),
            (Hook::Decap, Reason::Unlearned, 10),
            (Hook::Receive, Reason::Carried, 10),
            (Hook::Track, Reason::FlowTableFull, 7),
        ])
    }

    #[test]
    fn accounts_balance_when_every_packet_has_its_reason() {
        let traffic = Traffic { sent: 100, received: 95 };
        assert_eq!(good().gaps(traffic), [0; 3]);
        good().balance(traffic).unwrap();
        assert_eq!(good().dropped(), 5);
    }

    /// 5 of 100 packets that take the stack are too large for the path, and are answered; the answers arrive at overlay0.
    #[test]
    fn an_answer_that_is_given_at_overlay0_is_no_packet_that_a_peer_sent() {
        let counts = accounts(&[
            (Hook::Encap, Reason::Unlearned, 100),
            (Hook::Send, Reason::Carried, 95),
            (Hook::Send, Reason::TooBig, 5),
            (Hook::Receive, Reason::Carried, 95 + 5),
        ]);
        let traffic = Traffic { sent: 100, received: 95 };
        assert_eq!(counts.gaps(traffic), [0; 3]);
        counts.balance(traffic).unwrap();
        assert_eq!(counts.dropped(), 5);
    }

    #[test]
    fn a_packet_without_a_reason_is_an_error_unless_a_device_lost_it() {
        for traffic in [Traffic { sent: 101, received: 95 }, Traffic { sent: 100, received: 94 }] {
            let mut accounts = good();
            let said = accounts.balance(traffic).unwrap_err().to_string();
            assert!(said.starts_with("1 packets that nobody accounts for"), "{said}");
            accounts.devices.insert("h1 eth0 queue_drops".into(), 1);
            accounts.balance(traffic).unwrap();
        }
        assert!(good().balance(Traffic { sent: 99, received: 95 }).is_err(), "came from nowhere");
        let mut wire = good();
        wire.reasons.insert((Hook::Decap, Reason::Carried), (80, 0));
        assert_eq!(wire.gaps(Traffic { sent: 100, received: 90 }), [0, 5, 0]);
    }
}
