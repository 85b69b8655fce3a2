//! The result of a run: figures, and each case that nothing explains.
use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::{mutations::Case, rows, rules::Fate, twins::Nic};

/// The result of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The generator's seed.
    pub seed: u64,
    /// Frames that were sent to each host.
    pub frames: u64,
    /// Cases, each of which is one frame or several that belong together.
    pub cases: u64,
    /// Frames that both hosts delivered to their container with the same bytes.
    pub delivered: u64,
    /// Frames that only the kernel delivered, by the rule that explains why ours did not.
    pub dropped_by_rule: BTreeMap<String, u64>,
    /// Where our host's frames ended, by the programs' counters and the kernel's.
    pub accounted: BTreeMap<String, u64>,
    /// Frames that no counter and no rule accounts for.
    pub unaccounted: i64,
    /// Cases that nothing explains.
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
    /// The device through which the frames came.
    pub device: &'static str,
    /// The frames as hexadecimal digits.
    pub frames: Vec<String>,
    /// What was expected, and what came instead.
    pub why: Vec<String>,
}

/// The case as it is reported.
pub(crate) fn finding(fate: &Fate, case: &Case, why: Vec<String>) -> Finding {
    Finding {
        name: case.name.clone(),
        verdict: fate.verdict(),
        device: if case.nic == Nic::Underlay { "eth0" } else { "eth1" },
        frames: case.frames.iter().map(|frame| rows::hex(frame)).collect(),
        why,
    }
}

impl Finding {
    /// The case as a row of the table of frames that once failed.
    pub fn row(&self) -> String {
        format!("{} | {} | {} | {}", self.name, self.verdict, self.device, self.frames.join(" "))
    }
}
