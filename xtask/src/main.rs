//! `cargo xtask`: what cargo cannot do.
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench_agent;
mod ci;
mod demo;
mod docker_demo;
mod endure;
mod fuzzing;
mod play;
mod run;
mod test;

/// What cargo cannot do: set-up, demo, tests, hosts to play with.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings in what the project needs beyond cargo; says what and why, removes nothing.
    Setup,
    /// Containers on several hosts talk through the overlay; checks what it shows, and cleans up.
    Demo(demo::Options),
    /// Runs the tests, from units to whole hosts.
    Test(test::Options),
    /// Hosts to play with.
    #[command(subcommand)]
    Lab(play::Command),
    /// Builds the agent and starts it on this machine with the given arguments.
    Run(run::Options),
    /// How fast and how large the agent is with many peers: cold start, single changes, memory, CPU.
    BenchAgent(bench_agent::Options),
    /// Measures ours beside a bare route, the kernel's VXLAN device and a userspace relay; and the agent with 10,000 peers.
    Bench(xtask::bench::Options),
    /// Hostile frames to our decapsulation and to the kernel's VXLAN device, compared byte for byte.
    Fuzz(xtask::fuzz::Options),
    /// Agents that come and go under packets: counts what is lost.
    Endure(endure::Options),
    /// Before a push: format and lints, then what CI runs, all tests.
    Ci,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Setup => xtask::setup::setup(),
        Command::Demo(options) => demo::demo(&options),
        Command::Test(options) => test::test(&options),
        Command::Lab(command) => play::play(&command),
        Command::Run(options) => run::run(&options),
        Command::BenchAgent(options) => bench_agent::bench_agent(&options),
        Command::Bench(options) => xtask::bench::bench(&options),
        Command::Fuzz(options) => fuzzing::fuzzing(&options),
        Command::Endure(options) => endure::endure(&options),
        Command::Ci => ci::ci(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
