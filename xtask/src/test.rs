//! `cargo xtask test`: the rungs of the tests in order, from those that need nothing to whole hosts.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use nix::unistd::Uid;
use overlay_project::{
    command::{output, pass_through},
    project::{build_overlay, cargo, root},
};

use crate::{
    fresh, interrupt,
    setup::{For, provide},
    tool,
    vm::{self, KERNELS, Kernel, table},
};

#[derive(Args)]
pub(crate) struct TestOptions {
    /// Only this rung.
    #[arg(long)]
    rung: Option<Rung>,
    /// Debian's kernels for the rung `vm`.
    #[arg(long, value_delimiter = ',', default_value = DEFAULT_KERNEL, value_parser = kernel_names())]
    kernels: Vec<String>,
    /// Write what the rung `vm` shows into docs/kernels.md, rather than compare the two.
    #[arg(long)]
    write_docs: bool,
    /// With the rung `fresh`: all that CI runs, on a bare machine, in place of the rung's own steps.
    #[arg(long)]
    whole: bool,
}

/// The oldest that is promised.
const DEFAULT_KERNEL: &str = "6.1";
const ALL_KERNELS: &str = "all";

fn kernel_names() -> PossibleValuesParser {
    PossibleValuesParser::new(KERNELS.iter().map(|kernel| kernel.version).chain([ALL_KERNELS]))
}

impl Default for TestOptions {
    fn default() -> Self {
        Self { rung: None, kernels: vec![DEFAULT_KERNEL.to_owned()], write_docs: false, whole: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Rung {
    /// Without root, in seconds.
    Units,
    /// Programs loaded into this kernel and given frames.
    Kernel,
    /// Hosts as network namespaces.
    Hosts,
    /// The tests of the kernel rung, and hosts under every ingress, in VMs with other kernels.
    Vm,
    /// The README's commands on a bare machine: a root with nothing in it.
    Fresh,
}

impl Rung {
    fn needs(self) -> For {
        match self {
            Self::Units => For::Units,
            Self::Kernel => For::Kernel,
            Self::Hosts => For::Hosts,
            Self::Vm => For::Vm,
            Self::Fresh => For::Fresh,
        }
    }
}

/// Every file of integration tests: its rung, package and name. A file that is not listed is an error, so that none is
/// forgotten.
const TESTS: &[(Rung, &str, &str)] = &[
    (Rung::Units, "overlay-user", "acquire"),
    (Rung::Units, "overlay-user", "agent"),
    (Rung::Units, "overlay-user", "bad_input"),
    (Rung::Units, "overlay-user", "store"),
    (Rung::Kernel, "overlay-user", "kernel"),
    (Rung::Hosts, "overlay-lab", "lab"),
    (Rung::Hosts, "overlay-bench", "bench"),
    (Rung::Hosts, "overlay-host-tests", "host"),
    (Rung::Hosts, "overlay-host-tests", "bad_input_host"),
    (Rung::Hosts, "overlay-host-tests", "bad_input_store"),
    (Rung::Hosts, "overlay-host-tests", "repair"),
    (Rung::Hosts, "overlay-host-tests", "cluster"),
    (Rung::Hosts, "overlay-host-tests", "hostile"),
    (Rung::Hosts, "overlay-host-tests", "kernels"),
    (Rung::Hosts, "overlay-host-tests", "modes"),
    (Rung::Hosts, "overlay-host-tests", "path_mtu"),
    (Rung::Hosts, "overlay-host-tests", "nat"),
    (Rung::Hosts, "overlay-host-tests", "flannel"),
    (Rung::Hosts, "overlay-host-tests", "docker"),
];

/// What runs in VMs: the programs, and whole hosts.
const IN_VMS: &[(&str, &str)] = &[("overlay-user", "kernel"), ("overlay-host-tests", "kernels")];

pub(crate) fn test(options: &TestOptions) -> Result<()> {
    all_are_listed()?;
    let rungs: Vec<_> = Rung::value_variants()
        .iter()
        .copied()
        .filter(|rung| options.rung.is_none_or(|only| only == *rung))
        .collect();
    provide(&rungs.iter().map(|rung| rung.needs()).collect::<Vec<_>>())?;
    interrupt::watch()?;
    for rung in rungs {
        match rung {
            Rung::Vm => in_vms(options)?,
            Rung::Fresh => fresh::run(options.whole)?,
            _ => run(rung)?,
        }
    }
    pass_through(Command::new(tool::LAB.build()?).args(["lab", "leaks"]))
        .context("tests left something behind")
}

fn run(rung: Rung) -> Result<()> {
    println!("== rung: {rung:?}");
    if rung == Rung::Units {
        pass_through(&mut cargo(&["test", "--lib", "--bins"]))?;
    } else if !Uid::effective().is_root() {
        bail!("this rung loads programs and makes network namespaces: run `cargo xtask test` as root");
    }
    if rung == Rung::Hosts {
        // The tests have it built themselves, but what cargo says then would stand among their lines.
        build_overlay()?;
    }
    for (_, package, name) in TESTS.iter().filter(|(of, _, _)| *of == rung) {
        // One after the other: hosts under load on few cores disturb each other's timing.
        pass_through(&mut cargo(&["test", "--package", package, "--test", name, "--", "--test-threads=1"]))?;
    }
    Ok(())
}

/// Runs on every kernel before it fails for one.
fn in_vms(options: &TestOptions) -> Result<()> {
    println!("== rung: {:?}", Rung::Vm);
    let overlay = build_overlay()?;
    let tests =
        IN_VMS.iter().map(|(package, name)| test_program(package, name)).collect::<Result<Vec<_>>>()?;
    let tests: Vec<_> = tests.iter().map(PathBuf::as_path).collect();
    let wanted =
        |kernel: &&Kernel| options.kernels.iter().any(|name| name == ALL_KERNELS || name == kernel.version);
    let (mut reports, mut failed) = (Vec::new(), Vec::new());
    for kernel in KERNELS.iter().filter(wanted) {
        match vm::run(kernel, &tests, &[&overlay]) {
            Ok(report) => reports.push((kernel.version, report)),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    table::compare_or_write(&reports, options.write_docs)
}

/// The program that cargo makes of a file of integration tests.
fn test_program(package: &str, name: &str) -> Result<PathBuf> {
    let build = ["test", "--no-run", "--package", package, "--test", name, "--message-format", "json"];
    let mut cargo = cargo(&build);
    let messages = output(cargo.stderr(Stdio::inherit()))?;
    let program = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == name).then(|| message["executable"].as_str().map(PathBuf::from))?
    };
    messages.lines().find_map(program).with_context(|| format!("cargo names no program of the test {name}"))
}

fn all_are_listed() -> Result<()> {
    let (top, tools) = (root().to_owned(), root().join("tools"));
    for folder in [top, tools] {
        for package in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let tests = package?.path().join("tests");
            for file in fs::read_dir(tests).into_iter().flatten() {
                is_listed(&file?.path())?;
            }
        }
    }
    Ok(())
}

/// By the name alone, as no two packages have a file of one name.
fn is_listed(path: &Path) -> Result<()> {
    let Some(name) = path.file_stem().filter(|_| path.extension().is_some_and(|end| end == "rs")) else {
        return Ok(());
    };
    let listed = TESTS.iter().any(|(_, _, listed)| name == *listed);
    ensure!(listed, "{} belongs to no rung: add it to TESTS in xtask/src/test.rs", path.display());
    Ok(())
}
