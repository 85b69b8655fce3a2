//! Reads options from environment variables: `OVERLAY_<NAME>`, and `FLANNELD_<NAME>` for those who come from flannel.
use std::ffi::OsString;

use anyhow::{Result, bail};
use clap::{
    ArgAction, Command, CommandFactory as _, FromArgMatches as _,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::options::{self, Cli, Config, store::StoreOptions};

/// Reads the command line (`arguments`, with the program's name first), and the variables for options that it does not set. An
/// error knows its exit code and prints itself: 2 for wrong usage, 0 for `--help`.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString> + Copy,
) -> Result<Cli, clap::Error> {
    let mut command = with_variables(Cli::command(), variable);
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let matches = command
        .try_get_matches_from_mut(&arguments)
        .map_err(|error| name_variable(error, &arguments, variable))?;
    let cli = Cli::from_arg_matches(&matches)?;
    check(&cli).map_err(|problem| command.error(ErrorKind::ArgumentConflict, problem))?;
    Ok(cli)
}

/// Checks what clap cannot check, because values from variables reach it as defaults.
fn check(cli: &Cli) -> Result<()> {
    let store: Option<&StoreOptions> = match &cli.command {
        options::Command::Agent(agent) if agent.kube_subnet_mgr => {
            bail!(
                "--kube-subnet-mgr is not supported yet: keep leases in etcd (--etcd-endpoints) or in a shared folder \
                 (--store-dir)"
            );
        }
        options::Command::Agent(agent) => Some(&agent.store),
        options::Command::AdoptFlannel(adopt) if adopt.agent.kube_subnet_mgr => {
            bail!("--kube-subnet-mgr is not supported yet: only hosts that keep leases in etcd can be moved");
        }
        options::Command::AdoptFlannel(adopt) => Some(&adopt.agent.store),
        options::Command::Config(Config::Show { store, .. } | Config::Set { store, .. }) => Some(store),
        _ => None,
    };
    store.map_or(Ok(()), |store| store.choice().map(|_| ()))
}

/// Adds the variable's name to an error about a bad value that nobody typed, since such a value comes from a variable.
fn name_variable(
    mut error: clap::Error,
    arguments: &[OsString],
    variable: impl Fn(&str) -> Option<OsString> + Copy,
) -> clap::Error {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    // clap shows the option with its value's name, such as `--public-ip <ADDRESS>`.
    let option = shown.split([' ', '=', '[']).next().unwrap_or_default().to_owned();
    let typed = arguments.iter().any(|argument| argument.to_string_lossy().starts_with(&option));
    if let Some((name, _)) = value_of(&option, variable).filter(|_| !typed) {
        let tip = format!("the value comes from the variable {name}");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// Variables whose names look like ours but belong to no option. Most likely they are misspelt.
pub fn unknown_variables(names: impl IntoIterator<Item = OsString>) -> Vec<String> {
    fn options(command: &Command, known: &mut Vec<String>) {
        known.extend(command.get_arguments().filter_map(|arg| arg.get_long()).map(variable_name));
        command.get_subcommands().for_each(|command| options(command, known));
    }
    let mut known = Vec::new();
    options(&Cli::command(), &mut known);
    let names = names.into_iter().filter_map(|name| name.into_string().ok());
    let ours = names.filter(|name| {
        name.strip_prefix("OVERLAY_").is_some_and(|name| !known.iter().any(|one| one == name))
    });
    ours.collect()
}

/// The variable's name for an option, without a prefix: `--public-ip` becomes `PUBLIC_IP`.
fn variable_name(option: &str) -> String {
    option.trim_start_matches('-').to_uppercase().replace('-', "_")
}

/// The variable that holds an option's value, and the value.
fn value_of(option: &str, variable: impl Fn(&str) -> Option<OsString>) -> Option<(String, OsString)> {
    ["OVERLAY_", "FLANNELD_"].into_iter().find_map(|prefix| {
        let name = format!("{prefix}{}", variable_name(option));
        let value = variable(&name).filter(|value| !value.is_empty())?;
        Some((name, value))
    })
}

/// Makes the variables' values the options' defaults, because clap knows only one variable per option. The environment is read
/// through `variable`, so that tests can bring their own.
fn with_variables(command: Command, variable: impl Fn(&str) -> Option<OsString> + Copy) -> Command {
    let command = command.mut_args(|arg| {
        // flannel may have another name for the option, which is an alias here.
        let names = arg.get_long().into_iter().chain(arg.get_all_aliases().into_iter().flatten());
        let Some((_, value)) = names.into_iter().find_map(|name| value_of(name, variable)) else {
            return arg;
        };
        match arg.get_action() {
            ArgAction::Help | ArgAction::Version => arg,
            // flannel's variables for repeatable options put commas between the values.
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

#[cfg(test)]
#[path = "environment_tests.rs"]
mod tests;
