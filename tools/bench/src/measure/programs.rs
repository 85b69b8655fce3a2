//! Nanoseconds that each of our programs takes for one run, by the kernel's own statistics.
use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::network::Network;
use overlay_lab::command;

/// Runs and their time in nanoseconds, by program id.
type Runs = BTreeMap<u64, (String, u64, u64)>;

/// Nanoseconds per run of each program on the network's hosts that ran often during `work`. `work` switches the
/// kernel's statistics on.
pub(super) fn nanoseconds(
    network: &Network,
    work: impl FnOnce() -> Result<f64>,
) -> Result<Vec<(String, f64)>> {
    let attached = attached(network)?;
    let before = runs(&attached)?;
    work()?;
    Ok(per_run(&before, &runs(&attached)?))
}

/// Programs that run less often run by chance, for ARP and the like.
const OFTEN: u64 = 1000;

fn per_run(before: &Runs, after: &Runs) -> Vec<(String, f64)> {
    // A program of one name is on both hosts, of which one sends and one receives. What has run is added up.
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (id, (name, runs, time)) in after {
        let (_, runs_before, time_before) = before.get(id).cloned().unwrap_or_default();
        if runs - runs_before >= OFTEN {
            let sum = sums.entry(name).or_default();
            *sum = (sum.0 + runs - runs_before, sum.1 + time - time_before);
        }
    }
    sums.into_iter().map(|(name, (runs, time))| (name.to_owned(), time as f64 / runs as f64)).collect()
}

/// Ids of the programs behind the network's pinned links.
fn attached(network: &Network) -> Result<Vec<u64>> {
    let mut ids = Vec::new();
    for pins in network.pinned() {
        for pin in files(&pins)? {
            // Maps are pinned in the folder, too.
            let Ok(link) = command::run("bpftool", ["-j", "link", "show", "pinned", &pin]) else { continue };
            let link: Value = serde_json::from_str(&link).context("read bpftool's links")?;
            let link = link.get(0).unwrap_or(&link);
            ids.extend(link["prog_id"].as_u64());
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn files(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}

fn runs(attached: &[u64]) -> Result<Runs> {
    let programs: Vec<Value> = serde_json::from_str(&command::run("bpftool", ["-j", "prog", "show"])?)
        .context("read bpftool's programs")?;
    let mut runs = Runs::new();
    for program in programs {
        let Some(id) = program["id"].as_u64().filter(|id| attached.contains(id)) else { continue };
        let number = |field: &str| program[field].as_u64().unwrap_or_default();
        let name = program["name"].as_str().unwrap_or("?").to_owned();
        runs.insert(id, (name, number("run_cnt"), number("run_time_ns")));
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ran_often_counts() {
        let run = |name: &str, runs, time| (name.to_owned(), runs, time);
        let before = Runs::from([(1, run("encap", 10, 900)), (2, run("decap", 5, 5))]);
        let after = Runs::from([
            (1, run("encap", 2010, 200_900)),
            (2, run("decap", 7, 99)),
            (3, run("encap", 2000, 400_000)),
        ]);
        assert_eq!(per_run(&before, &after), [("encap".to_owned(), 150.0)]);
    }
}
