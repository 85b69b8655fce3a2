//! Whatever counts a lost packet, on the hosts of a bed, in their containers and between them; and which of it is the kernel's own.
use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};
use overlay_common::Verdict;
use overlay_lab::Namespace;

use crate::bed::Bed;

/// Where the machine's own counters stand in [`Losses`].
const MACHINE: &str = "machine";
/// The counter of packets that found the queue of their CPU full. The queue is one for all network namespaces of the machine. These
/// losses say nothing about this project: anything on the machine can cause them.
const QUEUE: &str = "CPUs' queues";

/// The counters of lost packets at some moment, by the place where each is kept, and its name. Those that are zero are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Losses(BTreeMap<(String, String), u64>);

impl Losses {
    /// Reads all counters.
    pub(super) fn read(bed: &Bed) -> Result<Self> {
        let mut losses = Self::default();
        losses.of_machine()?;
        losses.of_namespace("switch", bed.lab.switch())?;
        for member in &bed.members {
            let host = member.host.name();
            losses.of_namespace(&host, member.host.namespace())?;
            for (hook, reason, packets, _) in member.counters()?.all() {
                if matches!(reason.verdict_at(*hook), Verdict::Drop | Verdict::Answered) {
                    losses.add(&host, &format!("{} {}", hook.as_str(), reason.as_str()), *packets);
                }
            }
            for container in &member.containers {
                let place = format!("{host} {}", container.address());
                losses.of_namespace(&place, container.namespace())?;
            }
        }
        Ok(losses)
    }

    /// How much each counter has grown since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let grown = self.0.iter().map(|(key, now)| {
            let then = before.0.get(key).copied().unwrap_or(0);
            (key.clone(), now.saturating_sub(then))
        });
        Self(grown.filter(|(_, packets)| *packets > 0).collect())
    }

    fn add(&mut self, place: &str, name: &str, packets: u64) {
        if packets > 0 {
            *self.0.entry((place.to_owned(), name.to_owned())).or_default() += packets;
        }
    }

    /// What is counted for all namespaces together: the queues of the CPUs, and packets whose next hop did not answer.
    fn of_machine(&mut self) -> Result<()> {
        let queues = fs::read_to_string("/proc/net/softnet_stat")?;
        let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
        self.add(MACHINE, QUEUE, queues.lines().filter_map(dropped).sum());
        let neighbours = fs::read_to_string("/proc/net/stat/arp_cache")?;
        self.of_columns(MACHINE, "neighbours", &neighbours, &["unresolved_discards", "table_fulls"])
    }

    fn of_namespace(&mut self, place: &str, namespace: &Namespace) -> Result<()> {
        // A thread sees its own namespace by this path, whereas /proc/net is the namespace of the process.
        let read = |name: &'static str| {
            namespace.enter(move || fs::read_to_string(format!("/proc/thread-self/net/{name}")).context(name))
        };
        for line in read("dev")?.lines() {
            // Two lines of headings have no colon.
            let Some((device, numbers)) = line.split_once(':') else { continue };
            let numbers: Vec<u64> = numbers.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
            for (name, column) in [("rx errors", 2), ("rx dropped", 3), ("tx errors", 10), ("tx dropped", 11)]
            {
                let packets = numbers.get(column).with_context(|| line.to_owned())?;
                self.add(place, &format!("{} {name}", device.trim()), *packets);
            }
        }
        // A namespace without a rule that tracks connections has this file as well.
        let wanted = ["invalid", "insert_failed", "drop", "early_drop", "chainlength"];
        self.of_columns(place, "conntrack", &read("stat/nf_conntrack")?, &wanted)?;
        let ip = ["InHdrErrors", "InAddrErrors", "InDiscards", "OutDiscards", "OutNoRoutes"];
        let udp = ["InErrors", "NoPorts", "RcvbufErrors", "SndbufErrors"];
        self.of_pairs(place, &read("snmp")?, "Ip", &ip)?;
        self.of_pairs(place, &read("snmp")?, "Udp", &udp)?;
        self.of_pairs(place, &read("netstat")?, "TcpExt", &["IPReversePathFilter"])
    }

    /// A file with a line of names, and then one of hexadecimal numbers for each CPU.
    fn of_columns(&mut self, place: &str, what: &str, text: &str, wanted: &[&str]) -> Result<()> {
        let mut lines = text.lines();
        let names: Vec<_> = lines.next().context("an empty file")?.split_whitespace().collect();
        for line in lines {
            for (name, number) in names.iter().zip(line.split_whitespace()) {
                if wanted.contains(name) {
                    self.add(place, &format!("{what} {name}"), u64::from_str_radix(number, 16)?);
                }
            }
        }
        Ok(())
    }

    /// A file with pairs of lines that begin with the same word, the first with names and the second with numbers.
    fn of_pairs(&mut self, place: &str, text: &str, what: &str, wanted: &[&str]) -> Result<()> {
        let head = format!("{what}: ");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(&head));
        let (names, numbers) =
            lines.next().zip(lines.next()).with_context(|| format!("nothing of {what}"))?;
        for (name, number) in names.split_whitespace().zip(numbers.split_whitespace()) {
            if wanted.contains(&name) {
                self.add(place, &format!("{what} {name}"), number.parse()?);
            }
        }
        Ok(())
    }
}
