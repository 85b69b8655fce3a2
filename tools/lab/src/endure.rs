//! `cargo xtask endure`: agents are killed, ended, started and upgraded, round by round, under numbered packets in both
//! directions. The command fails if a single packet is lost.
use anyhow::{Result, ensure};
use clap::Args;
use overlay_lab::{
    self as lab,
    endurance::{Binaries, Direction, Endurance, Round},
    project,
};
use serde_json::json;

#[derive(Args)]
pub(crate) struct EndureOptions {
    /// How many rounds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Packets per second in each direction, as far as the machine sends them.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// The least number of packets in all rounds together. A round lasts until it has sent its share of them.
    #[arg(long, default_value_t = 10_500_000)]
    packets: u64,
    /// One frame per segment on the underlay, as behind a real NIC.
    #[arg(long)]
    wire_like: bool,
    /// Options of the agents: `--agent=--fast-path=off`. May be given several times.
    #[arg(long = "agent", value_name = "OPTION", allow_hyphen_values = true)]
    agent: Vec<String>,
    /// Prints the rounds as JSON at the end instead of the progress.
    #[arg(long)]
    json: bool,
}

pub(crate) fn endure(options: &EndureOptions) -> Result<()> {
    let binaries = Binaries::beside(project::build_overlay()?)?;
    let lab = lab::Options { wire_like: options.wire_like, ..lab::Options::default() };
    let agent: Vec<_> = options.agent.iter().map(String::as_str).collect();
    let mut endurance = Endurance::start(lab, binaries, &agent, options.rate)?;
    let least = options.packets / u64::from(options.rounds) / 2;
    let mut rounds = Vec::new();
    let mut total = Round::default();
    for number in 1..=options.rounds {
        let round = endurance.round(least, |step| {
            if !options.json {
                eprintln!("round {number}: {step}");
            }
        })?;
        if !options.json {
            show(&format!("round {number}"), &round);
        }
        total.add(&round);
        rounds.push(round);
    }
    let connection = endurance.finish()?;
    if options.json {
        let connection = json!({
            "bytes": connection.bytes,
            "longest_gap_ms": connection.longest_gap.as_millis(),
        });
        let report = json!({ "rounds": rounds, "total": total, "connection": connection });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        show(&format!("{} rounds", options.rounds), &total);
        println!(
            "one TCP connection through all of it: {} MB, each byte compared; its longest pause, during a \
             return to the present layout, was {} ms",
            connection.bytes >> 20,
            connection.longest_gap.as_millis()
        );
    }
    ensure!(total.lost() == 0, "{} of {} packets were lost", total.lost(), total.sent());
    Ok(())
}

fn show(name: &str, round: &Round) {
    for (between, Direction { sent, delivered, lost, duplicated, rate, longest_gap_ms }) in
        ["h1 -> h2", "h2 -> h1"].into_iter().zip(round.directions)
    {
        println!(
            "{name}: {between}: {sent} sent, {delivered} delivered, {lost} lost, {duplicated} duplicated; {rate} per second, \
             longest gap {longest_gap_ms} ms"
        );
    }
    if round.dropped > 0 {
        println!("{name}: the programs dropped or answered {}", round.dropped);
    }
    if round.machine_overflows > 0 {
        println!(
            "{name}: this machine's queues overflowed {} times, whoever filled them",
            round.machine_overflows
        );
    }
}
