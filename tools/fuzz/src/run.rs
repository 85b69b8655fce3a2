//! Batches of cases run through both hosts, and the search for the smallest part of a batch that nothing explains.
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use anyhow::Result;

use crate::{
    account::Account,
    compare::{comes_from, compare, for_the_kernel},
    mutations::Case,
    options::{FastPath, Setup},
    report::{Report, finding},
    rows,
    rules::Fate,
    twins::{Delivered, Twins},
};

/// A run ends after so many findings, because a broken program breaks every case.
pub(crate) const MOST_FINDINGS: usize = 20;

/// A run under way.
pub(crate) struct Run {
    twins: Twins,
    fast_path: FastPath,
    pub(crate) report: Report,
}

/// What some cases led to.
struct Shown {
    why: Vec<String>,
    sent: Delivered,
    same: u64,
    rules: BTreeMap<String, u64>,
    account: Account,
}

impl Run {
    /// Starts two hosts that have seen no frame yet.
    pub(crate) fn new(overlay: &Path, setup: Setup, seed: u64) -> Result<Self> {
        let report = Report { seed, ..Report::default() };
        let twins = Twins::new(overlay, &setup.agent())?;
        Ok(Self { twins, fast_path: setup.fast_path, report })
    }

    /// Runs these cases, and looks for the smallest ones that nothing explains.
    pub(crate) fn batch(&mut self, cases: &[(Fate, Case)]) -> Result<()> {
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
            // The same fragments come again, and must not meet those that the run before has left.
            self.twins.forget_fragments()?;
            let outcome = self.run(half)?;
            if !outcome.why.is_empty() {
                found = true;
                self.bisect(half, outcome.why)?;
            }
        }
        if !found {
            // All of these are too many to read, and the seed makes them again, so only the first is reported.
            let (fate, case) = &cases[0];
            let mut first = finding(fate, case, why);
            first.name = format!("{} cases together, from: {}", cases.len(), case.name);
            self.report.differences.push(first);
        }
        Ok(())
    }

    fn run(&mut self, cases: &[(Fate, Case)]) -> Result<Shown> {
        let fast_path = self.fast_path;
        let before = (self.twins.counted()?, self.twins.ours.kernel_counters()?);
        let frames = cases.iter().flat_map(|(_, case)| case.frames.iter().map(|frame| (case.nic, frame)));
        let ours = self.twins.ours.deliver(frames)?;
        let after = (self.twins.counted()?, self.twins.ours.kernel_counters()?);
        let twins: Vec<_> = cases
            .iter()
            .flat_map(|(fate, case)| {
                for_the_kernel(case, fate, fast_path).into_iter().map(|frame| (case.nic, frame))
            })
            .collect();
        let kernel = self.twins.kernel.deliver(twins.iter().map(|(nic, frame)| (*nic, frame)))?;

        let mut why = Vec::new();
        let difference = compare(&ours.frames, &kernel.frames);
        for frame in &difference.ours_only {
            why.push(format!("only ours delivered {}", rows::hex(frame)));
        }
        let mut rules = BTreeMap::new();
        let mut used = HashMap::new();
        for frame in &difference.kernel_only {
            match explained(frame, cases, &mut used) {
                Some(rule) => *rules.entry(rule.to_owned()).or_default() += 1,
                None => why.push(format!("only the kernel delivered {}", rows::hex(frame))),
            }
        }
        let fates: Vec<_> = cases.iter().map(|(fate, _)| fate).collect();
        let account = Account::of(&fates, fast_path, &ours, &before, &after);
        why.extend(account.why.iter().cloned());
        Ok(Shown { why, same: difference.same, sent: ours, rules, account })
    }
}

/// The rule by which our host dropped what the kernel delivered. Each case explains as many frames as the rule can have dropped;
/// `used` is how many each has explained so far.
fn explained(frame: &[u8], cases: &[(Fate, Case)], used: &mut HashMap<usize, usize>) -> Option<&'static str> {
    cases.iter().enumerate().find_map(|(at, (fate, case))| {
        let rule = fate.dropped_by()?;
        let used = used.entry(at).or_default();
        if *used == fate.most_dropped() || !comes_from(frame, case) {
            return None;
        }
        *used += 1;
        Some(rule)
    })
}
