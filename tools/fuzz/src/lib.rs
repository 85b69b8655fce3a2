//! The differential fuzzer: the same broken frames to our decapsulation and to the kernel's own VXLAN device. What ours
//! delivers, the kernel delivers too, byte for byte; what ours drops beyond that, a rule explains that was written
//! without the programs, and the programs' counters agree with it; and every frame is counted somewhere.
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use overlay_common::Reason;
use serde::Serialize;

use self::{
    account::Account,
    compare::{comes_from, compare, for_the_kernel},
    mutations::{Case, Cases},
    rules::{Fate, fate},
    twins::{Delivered, Twins},
};

pub use self::{table::Bench, twins::Nic};

mod account;
mod compare;
mod datagrams;
pub mod frames;
mod kernel_counters;
mod mutations;
mod random;
pub mod rows;
mod rules;
pub mod table;
mod twins;
mod wire;
pub mod world;

/// What to fuzz.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many frames, at least; those that belong together are not parted.
    #[arg(long, default_value_t = 100_000)]
    pub frames: u64,
    /// The same seed makes the same frames. Without one the clock gives it, and it is printed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where our host decapsulates.
    #[arg(long, value_enum, default_value_t = Ingress::Tc)]
    pub ingress: Ingress,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Where our host decapsulates. A way more is a variant, what its agents are told, and a word in `INGRESSES` of
/// tools/host-tests/tests/hostile.rs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ingress {
    /// At TC.
    Tc,
    /// In the driver, and TC for what XDP leaves.
    Xdp,
    /// Unwrapped in the driver, delivered at TC.
    XdpStrip,
}

impl Ingress {
    /// What an agent is told.
    fn agent(self) -> &'static [&'static str] {
        match self {
            Self::Tc => &[],
            Self::Xdp => &["--ingress", "xdp", "--endpoint-gro", "on"],
            Self::XdpStrip => &["--ingress", "xdp-strip"],
        }
    }
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Of the generator.
    pub seed: u64,
    /// Frames sent to either host.
    pub frames: u64,
    /// Groups of frames that belong together, one each for most.
    pub cases: u64,
    /// Frames that both hosts delivered to their container, the same.
    pub delivered: u64,
    /// Frames that only the kernel delivered, by the rule that explains it.
    pub dropped_by_rule: BTreeMap<String, u64>,
    /// Where our host's frames ended: the programs' counters, and the kernel's.
    pub accounted: BTreeMap<String, u64>,
    /// Frames that no counter and no rule accounts for.
    pub unaccounted: i64,
    /// What nothing explains.
    pub differences: Vec<Finding>,
    /// How long it took.
    #[serde(skip)]
    pub time: Duration,
}

/// A case that nothing explains, as small as it could be made.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was done to the frames.
    pub name: String,
    /// What the rules say about them.
    pub verdict: String,
    /// Through which device they came.
    pub device: &'static str,
    /// The frames, hexadecimal.
    pub frames: Vec<String>,
    /// What was expected, and what came.
    pub why: Vec<String>,
}

/// Frames per comparison: the agent is asked for its counters once for so many.
const BATCH: usize = 4096;
/// A broken program breaks everything: enough is enough.
const MOST_FINDINGS: usize = 20;

/// Fuzzes with the agent's binary at `overlay`.
pub fn fuzz(options: &Options, overlay: &Path) -> Result<Report> {
    let started = Instant::now();
    let _pinned = Pinned::new()?;
    let seed = options.seed.map_or_else(clock, Ok)?;
    let mut run = Run {
        twins: Twins::new(overlay, options.ingress.agent())?,
        report: Report { seed, ..Report::default() },
    };
    let mut cases = Cases::new(seed);
    while run.report.frames < options.frames && run.report.differences.len() < MOST_FINDINGS {
        let left = usize::try_from(options.frames - run.report.frames)?.min(BATCH);
        let batch: Vec<_> = cases.by_ref().take(left).collect();
        let judged: Vec<_> = batch.into_iter().map(|case| (fate(case.nic, &case.frames), case)).collect();
        run.batch(&judged)?;
    }
    run.report.time = started.elapsed();
    Ok(run.report)
}

/// The frames of named rows, one case after the other; the findings.
pub fn replay(rows: &[rows::Row], ingress: Ingress, overlay: &Path) -> Result<Report> {
    let _pinned = Pinned::new()?;
    let mut run = Run { twins: Twins::new(overlay, ingress.agent())?, report: Report::default() };
    for row in rows {
        let case = Case { name: row.name.clone(), nic: row.nic, frames: row.frames.clone() };
        let fate = fate(case.nic, &case.frames);
        let said = fate.verdict();
        if said != row.verdict {
            let why = vec![format!("the row expects {}, the rules say {said}", row.verdict)];
            run.report.differences.push(finding(&fate, &case, why));
        }
        run.batch(&[(fate, case)])?;
    }
    Ok(run.report)
}

fn clock() -> Result<u64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Ok(now.context("the clock is before 1970")?.as_nanos() as u64)
}

fn finding(fate: &Fate, case: &Case, why: Vec<String>) -> Finding {
    Finding {
        name: case.name.clone(),
        verdict: fate.verdict(),
        device: if case.nic == Nic::Underlay { "eth0" } else { "eth1" },
        frames: case.frames.iter().map(|frame| rows::hex(frame)).collect(),
        why,
    }
}

impl Finding {
    /// As a row of the table of frames that once failed.
    pub fn row(&self) -> String {
        format!("{} | {} | {} | {}", self.name, self.verdict, self.device, self.frames.join(" "))
    }
}

struct Run {
    twins: Twins,
    report: Report,
}

/// What one run of some cases showed.
struct Outcome {
    why: Vec<String>,
    sent: Delivered,
    same: u64,
    rules: BTreeMap<String, u64>,
    account: Account,
}

impl Run {
    /// Runs these cases, and looks for the smallest ones that nothing explains.
    fn batch(&mut self, cases: &[(Fate, Case)]) -> Result<()> {
        let outcome = self.run(cases)?;
        let report = &mut self.report;
        report.frames += outcome.sent.sent;
        report.cases += cases.len() as u64;
        report.delivered += outcome.same;
        report.unaccounted += outcome.account.unaccounted;
        for (into, from) in
            [(&mut report.dropped_by_rule, &outcome.rules), (&mut report.accounted, &outcome.account.ended)]
        {
            for (name, count) in from {
                *into.entry(name.clone()).or_default() += count;
            }
        }
        if !outcome.why.is_empty() {
            self.bisect(cases, outcome.why)?;
        }
        Ok(())
    }

    fn bisect(&mut self, cases: &[(Fate, Case)], why: Vec<String>) -> Result<()> {
        if self.report.differences.len() >= MOST_FINDINGS {
            return Ok(());
        }
        if let [(fate, case)] = cases {
            self.report.differences.push(finding(fate, case, why));
            return Ok(());
        }
        let mut found = false;
        let (first, second) = cases.split_at(cases.len() / 2);
        for half in [first, second] {
            let outcome = self.run(half)?;
            if !outcome.why.is_empty() {
                found = true;
                self.bisect(half, outcome.why)?;
            }
        }
        if !found {
            // All of them are too many to read, and the seed makes them again: the first tells where.
            let (fate, case) = &cases[0];
            let mut first = finding(fate, case, why);
            first.name = format!("{} cases together, from: {}", cases.len(), case.name);
            self.report.differences.push(first);
        }
        Ok(())
    }

    fn run(&mut self, cases: &[(Fate, Case)]) -> Result<Outcome> {
        let before = (self.twins.counted()?, self.twins.ours.kernel_counters()?);
        let frames = cases.iter().flat_map(|(_, case)| case.frames.iter().map(|frame| (case.nic, frame)));
        let ours = self.twins.ours.deliver(frames)?;
        let after = (self.twins.counted()?, self.twins.ours.kernel_counters()?);
        let twins: Vec<_> = cases
            .iter()
            .flat_map(|(fate, case)| for_the_kernel(case, fate).into_iter().map(|frame| (case.nic, frame)))
            .collect();
        let kernel = self.twins.kernel.deliver(twins.iter().map(|(nic, frame)| (*nic, frame)))?;

        let mut why = Vec::new();
        let difference = compare(&ours.frames, &kernel.frames);
        for frame in &difference.ours_only {
            why.push(format!("only ours delivered {}", rows::hex(frame)));
        }
        let mut rules = BTreeMap::new();
        let mut used = HashSet::new();
        for frame in &difference.kernel_only {
            match explained(frame, cases, &mut used) {
                Some(rule) => *rules.entry(rule.to_owned()).or_default() += 1,
                None => why.push(format!("only the kernel delivered {}", rows::hex(frame))),
            }
        }
        let fates: Vec<_> = cases.iter().map(|(fate, _)| fate).collect();
        let account = Account::of(&fates, &ours, &before, &after);
        why.extend(account.why.iter().cloned());
        Ok(Outcome { why, same: difference.same, sent: ours, rules, account })
    }
}

/// The rule by which ours dropped what the kernel delivered; each case explains one frame.
fn explained(frame: &[u8], cases: &[(Fate, Case)], used: &mut HashSet<usize>) -> Option<&'static str> {
    cases.iter().enumerate().find_map(|(at, (fate, case))| {
        let rule = fate.dropped_by()?;
        let new = comes_from(frame, case) && used.insert(at);
        new.then_some(rule)
    })
}

impl Fate {
    /// The rule that keeps it from the container where the kernel alone might deliver it.
    fn dropped_by(&self) -> Option<&'static str> {
        let reasons =
            || self.decap.iter().chain(&self.receive).chain(&self.open).chain(self.again.iter().flatten());
        let dropped = reasons().find(|reason| {
            matches!(reason.verdict(), overlay_common::Verdict::Drop) || **reason == Reason::NotIpv4
        });
        // The stack's connections meet the kernel's own UDP, which verifies what the programs do not.
        let unverified = self.broken_outer_sum.then_some("outer UDP checksum, verified by the stack");
        dropped.map(|reason| reason.as_str()).or(unverified)
    }

    /// In one word, for rows.
    fn verdict(&self) -> String {
        let mut words: Vec<_> =
            self.decap.iter().map(|reason| format!("decap:{}", reason.as_str())).collect();
        words.extend(self.receive.iter().map(|reason| format!("receive:{}", reason.as_str())));
        words.extend(self.open.iter().map(|reason| format!("options-or-receive:{}", reason.as_str())));
        words.extend(self.again.iter().flatten().map(|reason| format!("again:{}", reason.as_str())));
        words.extend(self.ends.iter().map(|end| end.as_str().to_owned()));
        words.join(",")
    }
}

/// This thread on one CPU, while it lives: every stage of a frame's way is a queue of the CPU that sent it, so that order
/// tells when all is done.
#[derive(Debug)]
struct Pinned(CpuSet);

impl Pinned {
    fn new() -> Result<Self> {
        let before = sched_getaffinity(Pid::from_raw(0))?;
        let mut one = CpuSet::new();
        one.set(sched_getcpu()?)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It only was for order; nothing is lost if it stays.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}
