//! Reads options from environment variables: `OVERLAY_<NAME>`, and `FLANNELD_<NAME>` for those who come from flannel.
use std::ffi::OsString;

use anyhow::{Result, bail};
use clap::{
    Arg, ArgAction, Command, CommandFactory as _, FromArgMatches as _,
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
    let known = long_names(&command);
    let arguments: Vec<OsString> =
        arguments.into_iter().map(|argument| with_two_dashes(argument, &known)).collect();
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
        options::Command::Check(check) => Some(&check.store),
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

/// The long names of all options, those that flannel has for them among them.
fn long_names(command: &Command) -> Vec<String> {
    let own = command.get_arguments().flat_map(|arg| {
        arg.get_long().into_iter().chain(arg.get_all_aliases().into_iter().flatten()).map(str::to_owned)
    });
    own.chain(command.get_subcommands().flat_map(long_names)).collect()
}

/// An option that is written with one dash, as flanneld's may be, gets its second. Letters of our own stay as they are.
fn with_two_dashes(argument: OsString, known: &[String]) -> OsString {
    let text = argument.to_str().and_then(|text| text.strip_prefix('-'));
    let name = text.map(|text| text.split('=').next().unwrap_or_default());
    match (name, text) {
        (Some(name), Some(text)) if name.len() > 1 && known.iter().any(|one| one == name) => {
            format!("--{text}").into()
        }
        _ => argument,
    }
}

/// What to say about the variables that look like options' and belong to none: what flanneld would do with them, or that they
/// are misspelt.
pub fn ignored_variables(names: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let known: Vec<String> = long_names(&Cli::command()).iter().map(|name| variable_name(name)).collect();
    let mut names: Vec<String> = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
    names.sort();
    let say = |name: String| {
        let flannels = name.strip_prefix("FLANNELD_");
        let option = flannels.or_else(|| name.strip_prefix("OVERLAY_"))?;
        if known.iter().any(|one| one == option) {
            return None;
        }
        let why = flannels.and_then(|option| FLANNELS_OWN.iter().find(|(own, _)| *own == option));
        Some(match why {
            Some((_, why)) => format!("variable {name} is ignored: {why}"),
            None => format!(
                "variable {name} is the name of no option: ignored; `overlay agent --help` lists the options"
            ),
        })
    };
    names.into_iter().filter_map(say).collect()
}

/// Options that flanneld has and the agent has not, by the names of their variables, and why they would do nothing here.
const FLANNELS_OWN: [(&str, &str); 9] = [
    ("KUBE_API_URL", "leases come from etcd or a folder, not from Kubernetes"),
    ("KUBE_ANNOTATION_PREFIX", "leases come from etcd or a folder, not from Kubernetes"),
    ("KUBECONFIG_FILE", "leases come from etcd or a folder, not from Kubernetes"),
    ("SET_NODE_NETWORK_UNAVAILABLE", "leases come from etcd or a folder, not from Kubernetes"),
    ("V", "RUST_LOG says how much is logged, such as RUST_LOG=debug"),
    ("VMODULE", "RUST_LOG says how much is logged, such as RUST_LOG=overlay_user::store=debug"),
    ("LOG_BACKTRACE_AT", "RUST_LOG says how much is logged"),
    ("VERSION", "`overlay --version` shows the version"),
    ("HELP", "`overlay agent --help` lists the options"),
];

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
        let Some((variable, value)) = names.into_iter().find_map(|name| value_of(name, variable)) else {
            return arg;
        };
        match arg.get_action() {
            ArgAction::Help | ArgAction::Version => arg,
            // Our variables for repeatable options put commas between the values. flanneld takes the whole of its own for one
            // value; and a comma may be part of a pattern.
            ArgAction::Append if is_list(&arg, &variable) => {
                let text = value.to_string_lossy();
                let values: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
                arg.default_values(values)
            }
            _ => arg.default_value(value),
        }
    });
    command.mut_subcommands(move |command| with_variables(command, variable))
}

/// Whether the value of a repeatable option's variable is several values with commas between them.
fn is_list(arg: &Arg, variable: &str) -> bool {
    let is_pattern = arg.get_id() == "iface_regex";
    arg.get_value_delimiter().is_some() || (!is_pattern && variable.starts_with("OVERLAY_"))
}

#[cfg(test)]
#[path = "environment_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "flannel_tests.rs"]
mod flannel_tests;
