//! The benchmark's commands. `cargo xtask` builds this program and hands its arguments over, hence the name in the usage.
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use overlay_bench::{measure, soak};
use overlay_lab::command::exit_code;

mod bench_agent;

/// Measures how fast the overlay is, how large, and whether anything grows.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compares our networks with a bare route, the kernel's VXLAN device, a userspace relay and the least that programs
    /// at TC can do; also measures the agent with 10,000 peers.
    Bench(measure::BenchOptions),
    /// Measures the agent with many peers: cold start, single changes, memory, CPU.
    BenchAgent(bench_agent::AgentOptions),
    /// Has containers and peers come and go under traffic for hours, and fits a line to whatever could grow.
    Soak(soak::SoakOptions),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Bench(options) => measure::bench(&options),
        Command::BenchAgent(options) => bench_agent::bench_agent(&options),
        Command::Soak(options) => soak::soak(&options),
    };
    exit_code(done)
}
