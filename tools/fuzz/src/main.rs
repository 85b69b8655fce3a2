//! `cargo xtask fuzz`: hostile frames are sent to our decapsulation and to the kernel's. `cargo xtask` builds this
//! program and hands its arguments over, hence the name in the usage.
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use overlay_fuzz as fuzz;
use overlay_lab::{command::exit_code, project};

/// Sends hostile frames.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends hostile frames to our decapsulation and to the kernel's VXLAN device, and compares what they deliver byte
    /// for byte.
    Fuzz(fuzz::FuzzOptions),
}

fn main() -> ExitCode {
    let Command::Fuzz(options) = Arguments::parse().command;
    exit_code(fuzzing(&options))
}

fn fuzzing(options: &fuzz::FuzzOptions) -> Result<()> {
    let report = fuzz::fuzz(options, &project::build_overlay()?)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    ensure!(
        report.differences.is_empty(),
        "{} cases differ and nothing explains them",
        report.differences.len()
    );
    ensure!(report.unaccounted == 0, "{} frames are not accounted for", report.unaccounted);
    Ok(())
}

fn print(report: &fuzz::Report) {
    let fuzz::Report { seed, frames, cases, delivered, .. } = report;
    println!("seed {seed}: {frames} frames in {cases} cases, {:.0} s", report.time.as_secs_f64());
    println!("  {delivered} delivered by both hosts, the same");
    println!("  delivered by the kernel alone, and why not by ours:");
    for (rule, count) in &report.dropped_by_rule {
        println!("    {count:>9} {rule}");
    }
    println!("  where the frames ended on our host:");
    for (end, count) in &report.accounted {
        println!("    {count:>9} {end}");
    }
    println!("  {} unaccounted, {} unexplained", report.unaccounted, report.differences.len());
    for finding in &report.differences {
        println!("DIFFERENT: {}", finding.name);
        println!("  row: {}", finding.row());
        for why in &finding.why {
            println!("  {why}");
        }
    }
}
