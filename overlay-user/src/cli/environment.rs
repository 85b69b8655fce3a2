//! Options from variables: `OVERLAY_<NAME>`, and `FLANNELD_<NAME>` for those who come from flannel.
use std::ffi::OsString;

use clap::{ArgAction, Command, CommandFactory as _, FromArgMatches as _, error::ErrorKind};

use super::{Cli, Config, Store};

/// Reads the command line (`arguments` with the program's name first) and the variables behind it. An error knows its
/// exit code and prints itself: 2 for wrong usage, 0 for `--help`.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString> + Copy,
) -> Result<Cli, clap::Error> {
    let mut command = with_variables(Cli::command(), variable);
    let matches = command.try_get_matches_from_mut(arguments)?;
    let cli = Cli::from_arg_matches(&matches)?;
    check(&cli).map_err(|problem| command.error(ErrorKind::ArgumentConflict, problem))?;
    Ok(cli)
}

/// What clap cannot say, because values from variables reach it as defaults.
fn check(cli: &Cli) -> Result<(), String> {
    let store: Option<&Store> = match &cli.command {
        super::Command::Agent(agent) if agent.kube_subnet_mgr => {
            return Err("--kube-subnet-mgr is not supported yet: keep leases in etcd (--etcd-endpoints) or in a shared \
                        folder (--store-dir)"
                .to_owned());
        }
        super::Command::Agent(agent) => Some(&agent.store),
        super::Command::Config(Config::Show { store, .. } | Config::Set { store, .. }) => Some(store),
        _ => None,
    };
    store.map_or(Ok(()), |store| store.choice().map(|_| ()))
}

/// Variables become defaults: clap knows one variable per option, and reading the environment through `variable` lets
/// tests bring their own.
fn with_variables(command: Command, variable: impl Fn(&str) -> Option<OsString> + Copy) -> Command {
    let command = command.mut_args(|arg| {
        let Some(name) = arg.get_long().map(|long| long.to_uppercase().replace('-', "_")) else {
            return arg;
        };
        let value = variable(&format!("OVERLAY_{name}")).or_else(|| variable(&format!("FLANNELD_{name}")));
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            return arg;
        };
        match arg.get_action() {
            ArgAction::Help | ArgAction::Version => arg,
            // Repeatable options: flannel's variables put commas between values, too.
            ArgAction::Append => {
                let text = value.to_string_lossy();
                let values: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
                arg.default_values(values)
            }
            _ => arg.default_value(value),
        }
    });
    command.mut_subcommands(move |command| with_variables(command, variable))
}
