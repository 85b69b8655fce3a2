//! `cargo xtask scale`: very many hosts' control loops beside a real etcd, what they cost it, and how soon they agree.
mod cost;
mod door;
mod fit;
mod forecast;
mod hosts;
mod limits;
mod options;
mod plots;
mod quiet;
mod report;
mod requests;
mod results;
mod scenarios;
mod stage;

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use overlay_lab::{command, project};

pub use self::{
    cost::Cost,
    options::ScaleOptions,
    results::{Churn, Outcome, Results, Times},
};
use self::{options::Plan, scenarios::Scenarios};

/// Runs everything, writes the results, and prints them. It fails after that if a route was lost.
pub fn scale(options: &ScaleOptions) -> Result<()> {
    let folder = options.out.clone().unwrap_or_else(|| project::target().join("scale"));
    let mut results = match &options.draw {
        Some(file) => Results::read(file)?,
        None => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            runtime.context("start a runtime")?.block_on(run(&options.plan()?))?
        }
    };
    results.forecasts = forecast::all(&results);
    let json = serde_json::to_string_pretty(&results)?;
    let text = report::markdown(&results);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    write(&folder, "results.json", &json)?;
    write(&folder, "results.md", &text)?;
    println!("{}", if options.json { &json } else { &text });
    plots::draw(&results, &folder)?;
    eprintln!("results and plots are in {}", folder.display());
    let lost: usize = results.outcomes.iter().map(|outcome| outcome.lost_routes).sum();
    ensure!(lost == 0, "{lost} routes were lost");
    Ok(())
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

async fn run(plan: &Plan) -> Result<Results> {
    let largest = plan.hosts.iter().max().copied().unwrap_or(0);
    limits::check(largest.max(plan.cluster_hosts))?;
    let mut results = Results { machine: machine()?, quick: plan.quick, ..Results::default() };
    for &count in &plan.hosts {
        Scenarios::beside_one(plan, count, count == largest, &mut results).await?;
    }
    if plan.cluster_hosts > 0 {
        Scenarios::beside_three(plan, plan.cluster_hosts, &mut results).await?;
    }
    Ok(results)
}

fn machine() -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    let cpus = std::thread::available_parallelism()?;
    let etcd = command::run("etcd", ["--version"])?;
    let etcd = etcd.lines().next().and_then(|line| line.split(' ').next_back()).unwrap_or("?").to_owned();
    Ok(format!("Linux {}, {cpus} CPUs, etcd {etcd}", kernel.trim()))
}
