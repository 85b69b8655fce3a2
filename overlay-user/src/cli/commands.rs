//! The commands of the `overlay` binary, one file each; the only code that names both the traits and their details.
mod adopt;
mod agent;
mod check;
mod config;
mod docker_opts;
mod down;
mod dry_run;
mod endpoint;
mod losses;
mod show;

use std::{
    fmt::Display,
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result};

use crate::{
    cli::options::{
        Cli, Command, Place,
        store::{Etcd, StoreChoice},
    },
    datapath::state::Paths,
    store::{
        dir::DirStore,
        etcd::{EtcdOptions, EtcdStore},
    },
};

/// How a command ended when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Exit code 0.
    Done,
    /// Exit code 3: `overlay check` found what will not work.
    Problems,
}

/// Runs one command.
///
/// # Errors
/// What failed, on what object, and what to do about it.
pub async fn run(cli: Cli) -> Result<Ended> {
    match cli.command {
        Command::Agent(options) => agent::agent(*options).await?,
        Command::Status(options) => show::status(&options).await?,
        Command::Peers(options) => show::peers(&options).await?,
        Command::Endpoints(options) => show::endpoints(&options).await?,
        Command::Config(options) => config::config(options).await?,
        Command::Attach(options) => endpoint::attach(&options).await?,
        Command::Detach(options) => endpoint::detach(&options).await?,
        Command::Check(options) => return check::check(&options).await,
        Command::DockerOpts(options) => docker_opts::docker_opts(&options).await?,
        Command::Down(options) => down::down(&options).await?,
        Command::AdoptFlannel(options) => adopt::adopt(&options).await?,
    }
    Ok(Ended::Done)
}

/// Prints a line, or a text of several. Who reads may have seen enough (`| head`): then the rest is nobody's, and no failure.
fn say(text: impl Display) -> Result<()> {
    let text = text.to_string();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(io::stdout(), "{text}{end}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}

impl Place {
    pub(crate) fn paths(&self) -> Paths {
        Paths::new(&self.bpf_root, &self.state_dir, &self.network)
    }
}

/// Either store, opened.
enum Opened {
    Etcd(Box<EtcdStore>),
    Directory { store: DirStore, path: PathBuf, shared: bool },
}

fn open(choice: StoreChoice) -> Result<Opened> {
    Ok(match choice {
        StoreChoice::Etcd(Etcd { endpoints, prefix, ca, identity, login }) => {
            let (certfile, keyfile) = identity.unzip();
            let (username, password) = login.unzip();
            let options =
                EtcdOptions { endpoints, prefix, cafile: ca, certfile, keyfile, username, password };
            Opened::Etcd(Box::new(EtcdStore::new(&options)?))
        }
        StoreChoice::Directory { path, shared } => {
            Opened::Directory { store: DirStore::new(&path), path, shared }
        }
    })
}
