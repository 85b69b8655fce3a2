//! `cargo xtask bench`: networks between two containers side by side. Every quantity is measured on one network after
//! the other, round by round, so that everything else that the machine does affects all of them alike. The agent is
//! measured once.
use std::{
    fs,
    path::{Path, PathBuf},
};

use self::{
    jobs::Group,
    options::{Underlay, chosen},
    results::{FORM, Results},
    run::Run,
};
pub use self::{
    network::{Case, Network},
    options::BenchOptions,
    packets::{Load, Part, Sent, Until, Varied, send},
};
use anyhow::{Context as _, Result, ensure};
use overlay_lab::{command, project};

mod agent;
mod compare;
mod exchange;
mod first;
mod frame;
mod jobs;
mod network;
mod options;
mod others;
mod packets;
mod peers;
mod plain_bridges;
mod plots;
mod program;
mod programs;
mod progress;
mod report;
mod results;
mod run;
mod statistics;
mod streams;

/// Runs everything, writes the results, and prints the tables. It fails after that if a case has no figure.
pub fn bench(options: &BenchOptions) -> Result<()> {
    let folder = options.out.clone().unwrap_or_else(|| project::target().join("bench"));
    if let Some(file) = &options.draw {
        let results = Results::read(file)?;
        fs::create_dir_all(&folder)?;
        return plots::draw(&results, &folder)
            .with_context(|| format!("draw plots into {}", folder.display()));
    }
    // A file that cannot be read must be noticed before half an hour of measuring.
    let old = options.compare.as_deref().map(Results::read).transpose()?;
    if let Some(other) = &options.beside {
        ensure!(other.is_file(), "--beside names no program: {}", other.display());
    }
    let program = build_program()?;
    let agent = options.groups().contains(&Group::Agent).then(project::build_release).transpose()?;
    let default = if options.quick { vec![Underlay::Veth] } else { vec![Underlay::Veth, Underlay::WireLike] };
    let underlays = chosen(&options.underlay, default);
    let mut results =
        Run::new(options, project::build_overlay()?, program, empty(options)?).over(&underlays)?;
    if let Some(agent) = agent {
        agent::measure(&agent, options.quick, &mut results);
    }
    results.measures.iter_mut().for_each(results::Measured::conclude);
    let mut text = report::markdown(&results);
    if let (Some(old), Some(path)) = (old, &options.compare) {
        let changes = compare::changes(&old, &results);
        let chance = statistics::chance_to_separate(old.rounds, results.rounds);
        let name = path.display().to_string();
        text += &report::comparison(&changes, &name, chance);
        text += &report::absolutes(&compare::absolutes(&old, &results), &name);
    }
    println!("{text}");
    write(&results, &text, &folder).with_context(|| format!("write results to {}", folder.display()))?;
    println!(
        "\nwritten to {}: results.json, results.md, and plots of the ratios as SVG and PNG: headline, and all of each underlay",
        folder.display()
    );
    let errors = results.errors().len();
    ensure!(errors == 0, "{errors} cases have no figure (see above)");
    Ok(())
}

fn empty(options: &BenchOptions) -> Result<Results> {
    let kernel = command::run("uname", ["-r", "-m"])?;
    let cpus = std::thread::available_parallelism()?;
    let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 5 });
    let machine = format!("Linux {}, {cpus} CPUs", kernel.trim());
    Ok(Results { form: FORM, machine, rounds, quick: options.quick, measures: Vec::new() })
}

/// Builds overlay-frames and returns its path. It is not optimised, like the agent: between thousands of frames, which
/// the kernel and the BPF program send, it does next to nothing.
pub fn build_program() -> Result<PathBuf> {
    project::build("overlay-frames")
}

fn write(results: &Results, text: &str, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("results.json"), serde_json::to_string_pretty(results)?)?;
    fs::write(folder.join("results.md"), text)?;
    plots::draw(results, folder)
}
