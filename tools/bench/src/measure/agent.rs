//! The agent with very many peers, measured once in a run by the same code as `cargo xtask bench-agent`.
use std::path::Path;

use super::results::Results;
use crate::agent::{self, Plan, Report};

/// The name of the only case.
const AGENT: &str = "agent";

/// A name, a unit, and how to take the samples from a report.
type Figure = (&'static str, &'static str, fn(&Report) -> Vec<f64>);

/// In each of these figures, less is better.
const FIGURES: [Figure; 7] = [
    ("cold start to the last map entry", "ms", |report| {
        report.cold_starts.iter().map(|start| start.last_peer_ms).collect()
    }),
    ("etcd's answer to map entry, p50", "ms", |report| vec![report.change.p50_ms]),
    ("etcd's answer to map entry, p99", "ms", |report| vec![report.change.p99_ms]),
    ("resident memory at rest", "MiB", |report| vec![report.memory_at_rest.resident_kib as f64 / 1024.0]),
    ("kernel memory of the maps", "MiB", |report| {
        vec![report.maps.iter().map(|map| map.bytes).sum::<u64>() as f64 / f64::from(1 << 20)]
    }),
    ("CPU at rest", "% of one", |report| vec![report.cpu_at_rest_percent]),
    ("CPU at 1000 changes a second", "% of one", |report| vec![report.cpu_at_rate_percent]),
];

const _: () = assert!(Plan::FULL.rate == 1000 && Plan::QUICK.rate == 1000);

/// Measures the agent. An error goes into the results in place of the figures, because all other figures have been
/// measured by then.
pub(super) fn measure(binary: &Path, quick: bool, results: &mut Results) {
    let plan = if quick { Plan::QUICK } else { Plan::FULL };
    let report = agent::measure(binary, &plan, |step| eprintln!("agent: {step}"));
    let report = report.map_err(|error| format!("{error:#}"));
    if let Err(error) = &report {
        eprintln!("agent: {error}");
    }
    record(results, plan.peers, report.as_ref());
}

fn record(results: &mut Results, peers: u32, report: Result<&Report, &String>) {
    let section = format!("agent, {peers} peers");
    for (name, unit, samples) in FIGURES {
        let measured = results.measured(&section, name, unit, false);
        measured.basis.clear();
        match report {
            Ok(report) => samples(report).into_iter().for_each(|sample| measured.add(AGENT, Ok(sample))),
            Err(error) => measured.add(AGENT, Err(error.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{ColdStart, MapSize, Memory, samples::Percentiles};

    fn report() -> Report {
        let start = |last_peer_ms| ColdStart { maps_ms: 1.0, last_peer_ms, first_apply_ms: 2.0 };
        let other = Percentiles { count: 9, p50_ms: 90.0, p99_ms: 91.0, max_ms: 92.0 };
        let map = |bytes| MapSize { name: "peers".into(), max_entries: 1, bytes };
        let memory = |resident_kib| Memory { resident_kib, ..Memory::default() };
        Report {
            peers: 10,
            cold_starts: vec![start(300.0), start(200.0)],
            change: Percentiles { count: 9, p50_ms: 0.5, p99_ms: 2.5, max_ms: 3.0 },
            change_from_asking: other,
            change_comes: other,
            change_moves: other,
            change_leaves: other,
            memory_at_rest: memory(20 * 1024),
            memory_after_changes: memory(99 * 1024),
            maps: vec![map(1 << 20), map(1 << 19)],
            cpu_at_rest_percent: 0.25,
            cpu_at_rate_percent: 12.0,
            rate: 999.0,
            rate_behind_ms: 1.0,
        }
    }

    #[test]
    fn each_figure_is_the_report_s() {
        let mut results = Results::default();
        record(&mut results, 10, Ok(&report()));
        let samples = |name: &str| {
            let measured = results.measures.iter().find(|measured| measured.name == name).unwrap();
            assert_eq!(measured.underlay, "agent, 10 peers");
            assert!(measured.is_absolute() && !measured.more_is_better);
            measured.case(AGENT).unwrap().samples.clone()
        };
        assert_eq!(samples("cold start to the last map entry"), [300.0, 200.0]);
        assert_eq!(samples("etcd's answer to map entry, p50"), [0.5]);
        assert_eq!(samples("etcd's answer to map entry, p99"), [2.5]);
        assert_eq!(samples("resident memory at rest"), [20.0]);
        assert_eq!(samples("kernel memory of the maps"), [1.5]);
        assert_eq!(samples("CPU at rest"), [0.25]);
        assert_eq!(samples("CPU at 1000 changes a second"), [12.0]);
        assert_eq!(results.measures.len(), FIGURES.len());
    }

    #[test]
    fn without_a_report_each_figure_says_why() {
        let mut results = Results::default();
        record(&mut results, 10, Err(&"etcd is not installed".to_owned()));
        let errors = results.errors();
        assert_eq!(errors.len(), FIGURES.len());
        assert!(errors[0].ends_with(": etcd is not installed"), "{errors:?}");
    }
}
