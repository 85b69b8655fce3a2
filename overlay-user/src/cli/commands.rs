//! The commands of the `overlay` binary, one file each. Only these files know both the traits and the types that implement
//! them.
mod adopt;
mod agent;
mod check;
mod config;
mod docker_opts;
mod down;
mod dry_run;
mod endpoint;
mod endpoints;
mod losses;
mod opened;
mod output;
mod peers;
mod same_host;
mod show;

use anyhow::Result;

pub use self::output::Completion;
use crate::cli::options::{Cli, Command};

/// Runs one command.
///
/// # Errors
/// The error says what failed, on what object, and what to do about it.
pub async fn run(cli: Cli) -> Result<Completion> {
    match cli.command {
        Command::Agent(options) => agent::agent(*options).await?,
        Command::Status(options) => show::status(&options).await?,
        Command::Peers(options) => peers::peers(&options).await?,
        Command::Endpoints(options) => endpoints::endpoints(&options).await?,
        Command::Config(options) => config::config(options).await?,
        Command::Attach(options) => endpoint::attach(&options).await?,
        Command::Detach(options) => endpoint::detach(&options).await?,
        Command::Check(options) => return check::check(&options).await,
        Command::DockerOpts(options) => docker_opts::docker_opts(&options).await?,
        Command::Down(options) => down::down(&options).await?,
        Command::AdoptFlannel(options) => adopt::adopt(&options).await?,
    }
    Ok(Completion::Done)
}
