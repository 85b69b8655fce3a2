//! The lab's own commands. `cargo xtask` builds this program and hands its arguments over, hence the name in the usage.
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use overlay_lab::command::exit_code;

mod demo;
mod endure;
mod play;

/// Makes hosts out of network namespaces, for a demo, to play with, or for agents that come and go.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows containers on several hosts talking through the overlay, checks what it shows, and cleans up.
    Demo(demo::DemoOptions),
    /// Makes hosts to play with, and removes them.
    #[command(subcommand)]
    Lab(play::LabCommand),
    /// Kills, ends and upgrades agents under traffic, strikes faults between that, and counts lost packets.
    Endure(endure::EndureOptions),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Demo(options) => demo::demo(&options),
        Command::Lab(command) => play::play(&command),
        Command::Endure(options) => endure::endure(&options),
    };
    exit_code(done)
}
