//! Accounts of a piece of traffic: what containers sent is what was delivered, plus what hooks and devices say they lost.
//!
//! ```text
//!  containers --(1)--> encap --carried-----------------(2)--> decap --carried------------(3)--> containers
//!              |         |--stack--> send --carried----'        |--stack--> receive --carried--'
//!              |         '--dropped   ^ '--dropped              '--dropped    '--dropped
//!              '-- not attached yet --'
//! ```
//!
//! Each packet of a container to another host's has one reason per hook, so what goes missing between two hooks is the
//! difference of their sums: the three gaps. What encap and decap leave to the stack is looked for at send and receive.
//! A gap that no device's counter explains is a packet nobody accounts for.
//!
//! **What can be claimed.** For packets sent one by one (numbered streams, pings; no TCP) all of it, to the packet: each
//! is one frame at every hook, since nothing merges them. For TCP the sender's segments are not known, acknowledgements
//! and retransmissions are packets too: there, what leaves one host arrives at the other (the second gap is what devices
//! lost, since both hooks count a GSO frame as its segments), [`Accounts::dropped`] is zero, and [`Accounts::bytes`] is
//! no less than the payload.
//!
//! Only the containers' traffic to other hosts may be under way: the hosts' own through overlay0 shows as a gap below zero.
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

/// One host at one moment.
#[derive(Clone, Debug)]
struct Reading {
    counters: Counters,
    /// Packets by device (name and index) and counter.
    losses: BTreeMap<(String, u32, String), u64>,
}

/// What the containers themselves saw of the traffic, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Given to the kernel for containers of other hosts.
    pub sent: u64,
    /// Received from them.
    pub received: u64,
}

/// What happened between [`Ledger::open`] and [`Ledger::close`], all hosts together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Packets and bytes by hook and reason. Bytes are those of inner IP packets.
    pub reasons: BTreeMap<(Hook, Reason), (u64, u64)>,
    /// Packets by host, device and counter: `h1 eth0 queue_drops`. One that two devices count is in it twice.
    pub devices: BTreeMap<String, u64>,
}

impl Ledger {
    /// Reads the counters of these hosts. No agent need run.
    pub fn open(members: &[Member]) -> Result<Self> {
        Ok(Self { before: members.iter().map(Reading::of).collect::<Result<_>>()? })
    }

    /// Reads them again, the same hosts in the same order, and takes the difference.
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
        // The CPUs' queues are the whole machine's, other tests' too; the devices around a full one count the same packets.
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
            // A device that was made meanwhile starts from zero; one that went takes its counters along.
            let lost = packets.saturating_sub(before.losses.get(key).copied().unwrap_or(0));
            if lost > 0 {
                *self.devices.entry(format!("{host} {} {}", key.0, key.2)).or_default() += lost;
            }
        }
    }

    /// Packets at a hook with one of these verdicts there.
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

    /// Bytes of inner IP packets that a hook carried. At least the payload of what containers sent, TCP's too.
    pub fn bytes(&self, hook: Hook) -> u64 {
        self.reasons.get(&(hook, Reason::Carried)).map_or(0, |(_, bytes)| *bytes)
    }

    /// Packets with this reason.
    pub fn packets(&self, hook: Hook, reason: Reason) -> u64 {
        self.reasons.get(&(hook, reason)).map_or(0, |(packets, _)| *packets)
    }

    /// What is missing at the three places of the picture above, in packets. Below zero: more came than went.
    pub fn gaps(&self, traffic: Traffic) -> [i64; 3] {
        use Verdict::{Answered, Carried, Drop, Stack};
        let seen = |hook| self.at(hook, &[Carried, Stack, Drop, Answered]);
        let taken = |hook| self.at(hook, &[Carried, Drop, Answered]);
        let carried = |hook| self.at(hook, &[Carried]);
        [
            minus(traffic.sent, taken(Hook::Encap) + seen(Hook::Send)),
            minus(
                carried(Hook::Encap) + carried(Hook::Send),
                taken(Hook::Xdp) + taken(Hook::Decap) + seen(Hook::Receive),
            ),
            minus(carried(Hook::Xdp) + carried(Hook::Decap) + carried(Hook::Receive), traffic.received),
        ]
    }

    /// Packets that devices say they lost. What a queue drops is the device's tx_dropped too on some kernels: the larger
    /// of a device's counters of one direction holds the others.
    fn explained(&self) -> u64 {
        let mut largest: BTreeMap<(&str, bool), u64> = BTreeMap::new();
        for (name, packets) in &self.devices {
            let (device, counter) = name.rsplit_once(' ').unwrap_or((name, ""));
            let entry = largest.entry((device, counter.starts_with("rx"))).or_default();
            *entry = (*entry).max(*packets);
        }
        largest.values().sum()
    }

    /// Checks that sent = delivered + reasons + device losses. The error shows the whole account.
    pub fn balance(&self, traffic: Traffic) -> Result<()> {
        let gaps = self.gaps(traffic);
        let lost: i64 = gaps.iter().sum();
        // One packet may be counted by two devices, and other frames are lost there too: no equation, then.
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

    /// 100 sent: 90 by the fast path, of which 3 are dropped at the other end and 2 unlearned there; 8 by the stack;
    /// 2 to nobody.
    fn good() -> Accounts {
        accounts(&[
            (Hook::Encap, Reason::Carried, 90),
            (Hook::Encap, Reason::Unlearned, 8),
            (Hook::Encap, Reason::NoPeer, 2),
            (Hook::Send, Reason::Carried, 8),
            (Hook::Decap, Reason::Carried, 85),
            (Hook::Decap, Reason::UnknownPeer, 3),
            (Hook::Decap, Reason::Unlearned, 10),
            (Hook::Receive, Reason::Carried, 10),
            (Hook::Note, Reason::FlowTableFull, 7),
        ])
    }

    #[test]
    fn accounts_balance_when_every_packet_has_its_reason() {
        let traffic = Traffic { sent: 100, received: 95 };
        assert_eq!(good().gaps(traffic), [0; 3]);
        good().balance(traffic).unwrap();
        assert_eq!(good().dropped(), 5);
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
