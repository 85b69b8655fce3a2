//! `cargo xtask test`: the rungs of the tests in order, from those that need nothing to whole hosts.
use std::fs;

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use nix::unistd::Uid;
use xtask::{
    command::pass_through,
    lab::leaks,
    project::{cargo, root},
    setup,
};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only this rung.
    #[arg(long)]
    rung: Option<Rung>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Rung {
    /// Without root, in seconds.
    Units,
    /// Programs loaded into this kernel and given frames.
    Kernel,
    /// Hosts as network namespaces.
    Hosts,
}

/// Every file of integration tests: its rung, package and name. A file that is not listed is an error, so that none is
/// forgotten.
const TESTS: &[(Rung, &str, &str)] = &[
    (Rung::Units, "overlay-user", "acquire"),
    (Rung::Units, "overlay-user", "agent"),
    (Rung::Units, "overlay-user", "bad_input"),
    (Rung::Units, "overlay-user", "store"),
    (Rung::Kernel, "overlay-user", "kernel"),
    (Rung::Hosts, "xtask", "lab"),
    (Rung::Hosts, "overlay-user", "host"),
    (Rung::Hosts, "overlay-user", "bad_input_host"),
    (Rung::Hosts, "overlay-user", "bad_input_store"),
    (Rung::Hosts, "overlay-user", "repair"),
    (Rung::Hosts, "overlay-user", "cluster"),
    (Rung::Hosts, "overlay-user", "flannel"),
];

pub(crate) fn test(options: &Options) -> Result<()> {
    all_are_listed()?;
    setup::setup()?;
    for rung in [Rung::Units, Rung::Kernel, Rung::Hosts] {
        if options.rung.is_none_or(|only| only == rung) {
            run(rung)?;
        }
    }
    let leaks = leaks(None);
    ensure!(leaks.is_empty(), "tests left behind: {} (`cargo xtask lab down` removes it)", leaks.join(", "));
    Ok(())
}

fn run(rung: Rung) -> Result<()> {
    println!("== rung: {rung:?}");
    if rung == Rung::Units {
        pass_through(&mut cargo(&["test", "--lib", "--bins"]))?;
    } else if !Uid::effective().is_root() {
        bail!("this rung loads programs and makes network namespaces: run `cargo xtask test` as root");
    }
    for (_, package, name) in TESTS.iter().filter(|(of, _, _)| *of == rung) {
        // One after the other: hosts under load on few cores disturb each other's timing.
        pass_through(&mut cargo(&["test", "--package", package, "--test", name, "--", "--test-threads=1"]))?;
    }
    Ok(())
}

fn all_are_listed() -> Result<()> {
    for package in ["overlay-common", "overlay-user", "xtask"] {
        let Ok(files) = fs::read_dir(root().join(package).join("tests")) else {
            continue;
        };
        for file in files {
            let path = file?.path();
            let Some(name) = path.file_stem().filter(|_| path.extension().is_some_and(|end| end == "rs"))
            else {
                continue;
            };
            let listed = TESTS.iter().any(|(_, of, listed)| *of == package && name == *listed);
            ensure!(listed, "{} belongs to no rung: add it to TESTS in xtask/src/test.rs", path.display());
        }
    }
    Ok(())
}
