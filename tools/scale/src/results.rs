//! What a run has found, as it is written to a file.
use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::{cost::Cost, fit::Line};

/// Everything that a run has found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// The machine: release of the kernel, number of CPUs, version of etcd.
    pub machine: String,
    /// Whether it only shows that everything works.
    pub quick: bool,
    /// CPU time that an etcd of one member takes in a second although it has no client.
    pub alone_cpu: f64,
    /// What happened, in this order.
    pub outcomes: Vec<Outcome>,
    /// What single requests cost etcd, with the largest number of hosts.
    pub requests: Vec<Request>,
    /// What this says for other numbers of hosts.
    pub forecasts: Vec<Forecast>,
}

/// What happened to all hosts, and what came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Members of the etcd.
    pub members: usize,
    /// Number of hosts.
    pub hosts: usize,
    /// How many of them it concerned. The others went on as before.
    pub concerned: usize,
    /// What happened.
    pub scenario: String,
    /// When the hosts agreed with the store again, unless there was nothing to agree on.
    pub times: Option<Times>,
    /// What it cost.
    pub cost: Cost,
    /// Peers that hosts removed although their leases had not ended.
    pub lost_routes: usize,
    /// How hosts were replaced, if they were.
    pub churn: Option<Churn>,
}

/// How hosts were replaced one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Churn {
    /// How many were.
    pub changes: u32,
    /// How many of them began later than they should have, because not all hosts agreed on the one before.
    pub late: u32,
}

impl Outcome {
    /// Requests for each host that it concerned.
    pub fn requests_per_host(&self) -> f64 {
        self.cost.requests / self.concerned as f64
    }
}

/// Times of many hosts, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Half of the hosts took no longer.
    pub p50: f64,
    /// 99 of 100 hosts took no longer.
    pub p99: f64,
    /// No host took longer.
    pub all: f64,
}

impl Times {
    /// The times of samples in any order.
    pub(crate) fn of(samples: &[Duration]) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.iter().map(Duration::as_secs_f64).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).checked_sub(1)?).copied();
        Some(Self { p50: at(50)?, p99: at(99)?, all: at(100)? })
    }
}

/// What one request costs etcd.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// What is asked.
    pub name: String,
    /// CPU time of etcd for one, in seconds.
    pub cpu_s: f64,
    /// Leases that the store had.
    pub leases: usize,
}

/// A quantity that was measured with several numbers of hosts, and what a straight line through that gives for others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Forecast {
    /// What it is.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Whether it is drawn against the square of the number of hosts.
    pub squared: bool,
    /// Numbers of hosts, and what was measured.
    pub measured: Vec<(f64, f64)>,
    /// The line.
    pub line: Line,
}

impl Forecast {
    /// A quantity that grows as the number of hosts, or as its square. None if there are too few points.
    pub(crate) fn of(name: &str, unit: &str, squared: bool, measured: Vec<(f64, f64)>) -> Option<Self> {
        let points: Vec<_> = measured
            .iter()
            .map(|&(hosts, value)| (if squared { hosts * hosts } else { hosts }, value))
            .collect();
        let line = Line::through(&points)?;
        Some(Self { name: name.to_owned(), unit: unit.to_owned(), squared, measured, line })
    }

    /// What the line gives for so many hosts. None if the quantity was not seen to depend on their number.
    pub fn at(&self, hosts: f64) -> Option<f64> {
        self.line.is_clear.then(|| self.line.at(if self.squared { hosts * hosts } else { hosts }))
    }
}

impl Results {
    /// The outcomes of what happened beside an etcd of so many members.
    pub fn of<'a>(&'a self, members: usize, scenario: &'a str) -> impl Iterator<Item = &'a Outcome> {
        self.outcomes.iter().filter(move |outcome| outcome.members == members && outcome.scenario == scenario)
    }

    /// What was written to a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("read the results in {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_time_that_was_measured() {
        let times: Vec<_> = (1..=200).rev().map(Duration::from_secs).collect();
        assert_eq!(Times::of(&times), Some(Times { p50: 100.0, p99: 198.0, all: 200.0 }));
        assert_eq!(Times::of(&times[..1]), Some(Times { p50: 200.0, p99: 200.0, all: 200.0 }));
        assert_eq!(Times::of(&[]), None);
    }

    #[test]
    fn a_forecast_goes_by_the_number_of_hosts_or_by_its_square() {
        let points = vec![(10.0, 3.0), (20.0, 5.0), (30.0, 7.0)];
        let linear = Forecast::of("a", "s", false, points).unwrap();
        assert!((linear.at(100.0).unwrap() - 21.0).abs() < 1e-9);
        let squared =
            Forecast::of("a", "s", true, vec![(10.0, 101.0), (20.0, 401.0), (30.0, 901.0)]).unwrap();
        assert!((squared.at(100.0).unwrap() - 10_001.0).abs() < 1e-6);
        let unclear = Forecast::of("a", "s", false, vec![(10.0, 3.0), (20.0, 5.0)]).unwrap();
        assert_eq!(unclear.at(100.0), None);
        assert!(Forecast::of("a", "s", false, vec![(10.0, 3.0)]).is_none());
    }
}
