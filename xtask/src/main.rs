//! `cargo xtask`: what cargo cannot do. It is built before anything is set up, hence from few crates; what needs more is a
//! tool of its own (`tools/`), which this one sets up, builds and starts.
use std::{env, ffi::OsString, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use overlay_project::command::exit_code;

use self::setup::For;

mod ci;
mod fresh;
#[cfg(test)]
mod house;
mod interrupt;
mod run;
mod setup;
mod test;
mod tool;
mod vm;

/// What cargo cannot do: set-up, demo, tests, hosts to play with.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings in what the project needs beyond cargo; says what and why, removes nothing.
    Setup,
    /// Containers on several hosts talk through the overlay; checks what it shows, and cleans up.
    #[command(disable_help_flag = true)]
    Demo(Given),
    /// Runs the tests, from units to whole hosts.
    Test(test::TestOptions),
    /// Hosts to play with.
    #[command(disable_help_flag = true)]
    Lab(Given),
    /// Builds the agent and starts it on this machine with the given arguments.
    Run(run::RunOptions),
    /// How fast and how large the agent is with many peers: cold start, single changes, memory, CPU.
    #[command(disable_help_flag = true)]
    BenchAgent(Given),
    /// Measures ours beside a bare route, the kernel's VXLAN device, a userspace relay and the least that programs at TC can
    /// do; and the agent with 10,000 peers.
    #[command(disable_help_flag = true)]
    Bench(Given),
    /// Control loops of thousands of hosts beside a real etcd: what they cost it, and how soon all agree.
    #[command(disable_help_flag = true)]
    Scale(Given),
    /// Hostile frames to our decapsulation and to the kernel's VXLAN device, compared byte for byte.
    #[command(disable_help_flag = true)]
    Fuzz(Given),
    /// Agents that come and go under packets, and faults between that: counts what is lost.
    #[command(disable_help_flag = true)]
    Endure(Given),
    /// Whether anything grows while containers and peers come and go for hours: memory, descriptors, maps, tracked connections.
    #[command(disable_help_flag = true)]
    Soak(Given),
    /// Before a push: format and lints, then what CI runs, all tests.
    Ci,
    /// What the rung `fresh` starts in its namespaces.
    #[command(hide = true)]
    InFreshRoot(fresh::Inside),
    /// What the rung `vm` is, beside others.
    #[command(hide = true)]
    InVms(test::InVms),
}

/// The arguments of a tool, which are the tool's to understand, `--help` among them.
#[derive(Args)]
struct Given {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Given {
    fn has(&self, word: &str) -> bool {
        self.arguments.iter().any(|argument| argument == word)
    }

    /// Only making hosts needs anything.
    fn lab(&self) -> For {
        if self.has("up") { For::Lab } else { For::Tool }
    }

    /// What the demo needs, which depends on what it is asked for.
    fn demo(&self) -> For {
        if self.has("--docker") {
            For::DemoDocker
        } else if self.has("etcd") || self.has("--store=etcd") {
            For::DemoEtcd
        } else {
            For::Demo
        }
    }
}

fn main() -> ExitCode {
    let done = match Arguments::parse_from(help_as_option(env::args_os().collect())).command {
        Command::Setup => setup::provide(For::ALL),
        Command::Test(options) => test::test(&options),
        Command::Run(options) => run::run(&options),
        Command::Ci => ci::ci(),
        Command::InFreshRoot(inside) => fresh::enter(&inside),
        Command::InVms(what) => test::in_vms(&what),
        Command::Demo(given) => tool::LAB.take_over("demo", &given.arguments, given.demo()),
        Command::Lab(given) => tool::LAB.take_over("lab", &given.arguments, given.lab()),
        Command::Endure(given) => tool::LAB.take_over("endure", &given.arguments, For::Endure),
        Command::Soak(given) => tool::BENCH.take_over("soak", &given.arguments, For::Bench),
        Command::Fuzz(given) => tool::FUZZ.take_over("fuzz", &given.arguments, For::Fuzz),
        Command::Bench(given) => tool::BENCH.take_over("bench", &given.arguments, For::Bench),
        Command::Scale(given) => {
            let draws = |word: &OsString| word.as_encoded_bytes().starts_with(b"--draw");
            let what = if given.arguments.iter().any(draws) { For::Draw } else { For::Scale };
            tool::SCALE.take_over("scale", &given.arguments, what)
        }
        Command::BenchAgent(given) => tool::BENCH.take_over("bench-agent", &given.arguments, For::Bench),
    };
    exit_code(done)
}

/// `cargo xtask help demo` is `cargo xtask demo --help`: clap itself would not ask the tool.
fn help_as_option(mut words: Vec<OsString>) -> Vec<OsString> {
    if words.get(1).is_some_and(|word| word == "help") {
        words.remove(1);
        words.push("--help".into());
    }
    words
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_commands_are_of_one_piece() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_a_tool_is_given_passes_as_it_is() {
        for words in [&["--help"][..], &["--mode", "udp", "-h"], &["--docker", "--", "x"], &[]] {
            let all = ["cargo xtask", "demo"].iter().chain(words);
            let Command::Demo(given) = Arguments::try_parse_from(all).unwrap().command else { panic!() };
            let given: Vec<_> = given.arguments.iter().map(|word| word.to_str().unwrap()).collect();
            assert_eq!(given, words);
        }
    }

    #[test]
    fn help_is_a_command_too() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(help_as_option(words("xtask help lab up")), words("xtask lab up --help"));
        assert_eq!(help_as_option(words("xtask help")), words("xtask --help"));
        assert_eq!(help_as_option(words("xtask lab up")), words("xtask lab up"));
    }

    #[test]
    fn a_demo_needs_what_it_is_asked_for() {
        let given = |words: &[&str]| Given { arguments: words.iter().map(OsString::from).collect() };
        assert_eq!(given(&["--keep"]).demo(), For::Demo);
        assert_eq!(given(&["--docker"]).demo(), For::DemoDocker);
        assert_eq!(given(&["--store", "etcd"]).demo(), For::DemoEtcd);
        assert_eq!(given(&["--store=etcd"]).demo(), For::DemoEtcd);
    }
}
