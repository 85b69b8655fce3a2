//! The lab's own commands. `cargo xtask` builds this program and hands its arguments over, hence the name in the usage.
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod demo;
mod endure;
mod play;

/// Hosts as network namespaces: a demo, some to play with, and agents that come and go.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Containers on several hosts talk through the overlay; checks what it shows, and cleans up.
    Demo(demo::DemoOptions),
    /// Hosts to play with.
    #[command(subcommand)]
    Lab(play::LabCommand),
    /// Agents that come and go under packets: counts what is lost.
    Endure(endure::EndureOptions),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Demo(options) => demo::demo(&options),
        Command::Lab(command) => play::play(&command),
        Command::Endure(options) => endure::endure(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
