//! `cargo xtask test`: the rungs of the tests, from those that need nothing to whole hosts. All of them run side by side; a
//! single one runs alone, and its output is seen as it comes.
use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use overlay_project::{
    command::{output, pass_through, show},
    project::{BUILT, build_overlay, root, target},
};

use self::{
    lanes::{Job, Kind, minutes},
    programs::{TestProgram, Wanted, find},
};
use crate::{
    fresh, interrupt,
    setup::{For, provide},
    tool,
    vm::{self, KERNELS, Kernel, table},
};

mod hosts;
mod lanes;
mod programs;
mod spent;

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

/// Side by side, the rungs start in this order: the longest first, and beside them tests of hosts, most of which must wait for
/// each other.
const LONGEST_FIRST: &[Rung] = &[Rung::Fresh, Rung::Vm, Rung::Hosts, Rung::Kernel, Rung::Units];

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

    /// What its jobs do to others. Those with hosts say it themselves.
    fn kind(self) -> Kind {
        match self {
            Self::Hosts => Kind::Timed,
            Self::Vm | Self::Fresh => Kind::Computing,
            Self::Units | Self::Kernel => Kind::Other,
        }
    }
}

/// Every file of integration tests: its rung and name. No two packages have one of the same name. Those of a rung begin in this
/// order, the longest first. A file that is not listed is an error, so that none is forgotten.
const TESTS: &[(Rung, &str)] = &[
    (Rung::Units, "acquire"),
    (Rung::Units, "agent"),
    (Rung::Units, "bad_input"),
    (Rung::Units, "ipv6_leases"),
    (Rung::Units, "ipv6_peers"),
    (Rung::Units, "scale"),
    (Rung::Units, "store"),
    (Rung::Kernel, "kernel"),
    (Rung::Hosts, "cluster"),
    (Rung::Hosts, "rules"),
    (Rung::Hosts, "flannel"),
    (Rung::Hosts, "nat"),
    (Rung::Hosts, "promotion"),
    (Rung::Hosts, "modes"),
    (Rung::Hosts, "hostile"),
    (Rung::Hosts, "docker"),
    (Rung::Hosts, "path_mtu"),
    (Rung::Hosts, "bad_input_store"),
    (Rung::Hosts, "lab"),
    (Rung::Hosts, "bench"),
    (Rung::Hosts, "repair"),
    (Rung::Hosts, "accidents"),
    (Rung::Hosts, "bad_input_host"),
    (Rung::Hosts, "kernels"),
    (Rung::Hosts, "routes"),
    (Rung::Hosts, "host"),
];

/// What runs in VMs: the programs, and whole hosts.
const IN_VMS: &[&str] = &["kernel", "kernels"];

pub(crate) fn test(options: &TestOptions) -> Result<()> {
    let started = Instant::now();
    all_are_listed()?;
    let rungs: Vec<_> = Rung::value_variants()
        .iter()
        .copied()
        .filter(|rung| options.rung.is_none_or(|only| only == *rung))
        .collect();
    provide(&rungs.iter().map(|rung| rung.needs()).collect::<Vec<_>>())?;
    if options.rung == Some(Rung::Fresh) {
        interrupt::watch()?;
        return fresh::run(options.whole);
    }
    let programs = programs::build(&wanted(options.rung))?;
    let built = if rungs.contains(&Rung::Hosts) { programs::build_beside()? } else { target().join("debug") };
    println!("== set up and built after {}", minutes(started.elapsed()));
    let lab = tool::LAB.build()?;
    let before = labs_of_the_dead(&lab)?;
    // Only now, as what came before ends by itself when it is interrupted.
    interrupt::watch()?;
    let mut jobs = Vec::new();
    for rung in LONGEST_FIRST.iter().filter(|rung| rungs.contains(rung)) {
        jobs.extend(jobs_of(*rung, &programs, options)?);
    }
    jobs.sort_by_key(|job| job.kind);
    for command in jobs.iter_mut().flat_map(|job| &mut job.commands) {
        command.env(BUILT, &built);
    }
    if options.rung.is_some() {
        alone(jobs)?
    } else {
        lanes::run(jobs, &target().join("test-output"))?
    }
    pass_through(Command::new(lab).args(["lab", "leaks", "--except", &before.join(",")]))
        .context("tests left something behind")?;
    println!("== all tests passed, after {}", minutes(started.elapsed()));
    Ok(())
}

/// Labs that were there before any test: somebody keeps them, or an earlier run was killed. They say nothing about the tests.
fn labs_of_the_dead(lab: &Path) -> Result<Vec<String>> {
    let found = output(Command::new(lab).args(["lab", "orphans"]))?;
    let found: Vec<_> = found.lines().map(str::to_owned).collect();
    if !found.is_empty() {
        println!(
            "== there already are labs without a process, which `cargo xtask lab down` removes: {}",
            found.join(", ")
        );
    }
    Ok(found)
}

/// The tests to build for a rung, or for all.
fn wanted(rung: Option<Rung>) -> Wanted<'static> {
    let names = |rung| TESTS.iter().filter(move |(of, _)| *of == rung).map(|(_, name)| *name);
    match rung {
        None => Wanted::All,
        Some(Rung::Vm) => Wanted::These { own: false, names: IN_VMS.to_vec() },
        Some(rung) => Wanted::These { own: rung == Rung::Units, names: names(rung).collect() },
    }
}

/// What a rung runs.
fn jobs_of(rung: Rung, programs: &[TestProgram], options: &TestOptions) -> Result<Vec<Job>> {
    let job = |name: String, commands| Job { name, kind: rung.kind(), commands };
    let listed = || TESTS.iter().filter(|(of, _)| *of == rung).map(|(_, name)| *name);
    let of = |name| Ok(find(programs, name)?.command(Some(1)));
    Ok(match rung {
        Rung::Units => {
            let own = programs.iter().filter(|program| !program.integration);
            let own = own.map(|program| program.command(None));
            let listed = listed().map(of).collect::<Result<Vec<_>>>()?;
            vec![job("units".to_owned(), own.chain(listed).collect())]
        }
        Rung::Kernel => vec![job("kernel".to_owned(), listed().map(of).collect::<Result<_>>()?)],
        Rung::Hosts => {
            let jobs = listed().map(|name| Ok(hosts::jobs(find(programs, name)?)));
            jobs.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect()
        }
        Rung::Vm => {
            let files = IN_VMS.iter().map(|name| Ok(find(programs, name)?.file.clone()));
            let files = files.collect::<Result<Vec<_>>>()?;
            let in_vms =
                InVms { kernels: options.kernels.clone(), write_docs: options.write_docs, test: files };
            let mut command = Command::new(env::current_exe()?);
            command.args(in_vms.arguments());
            vec![job("vm".to_owned(), vec![command])]
        }
        Rung::Fresh => {
            let mut fresh = Command::new(env::current_exe()?);
            fresh.args(["test", "--rung", "fresh"]);
            vec![job("fresh".to_owned(), vec![fresh])]
        }
    })
}

/// One after the other, with their output seen as it comes.
fn alone(jobs: Vec<Job>) -> Result<()> {
    for mut command in jobs.into_iter().flat_map(|job| job.commands) {
        println!("     Running {}", show(&command));
        let (status, _) = lanes::run_one(&mut command).with_context(|| show(&command))?;
        ensure!(status.success(), "{} ended with {status}", show(&command));
    }
    Ok(())
}

/// The rung `vm` as a command of its own, so that it can run beside others.
#[derive(Args, Debug)]
pub(crate) struct InVms {
    #[arg(long, value_delimiter = ',')]
    kernels: Vec<String>,
    #[arg(long)]
    write_docs: bool,
    /// The programs to run in there.
    #[arg(long)]
    test: Vec<PathBuf>,
}

impl InVms {
    fn arguments(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> =
            vec!["in-vms".into(), "--kernels".into(), self.kernels.join(",").into()];
        words.extend(self.write_docs.then(|| "--write-docs".into()));
        words.extend(self.test.iter().flat_map(|test| ["--test".into(), test.into()]));
        words
    }
}

/// Runs on every kernel before it fails for one.
pub(crate) fn in_vms(what: &InVms) -> Result<()> {
    let overlay = build_overlay()?;
    let tests: Vec<_> = what.test.iter().map(PathBuf::as_path).collect();
    let wanted =
        |kernel: &&Kernel| what.kernels.iter().any(|name| name == ALL_KERNELS || name == kernel.version);
    let (mut reports, mut failed) = (Vec::new(), Vec::new());
    for kernel in KERNELS.iter().filter(wanted) {
        match vm::run(kernel, &tests, &[&overlay]) {
            Ok(report) => reports.push((kernel.version, report)),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    table::compare_or_write(&reports, what.write_docs)
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

fn is_listed(path: &Path) -> Result<()> {
    let Some(name) = path.file_stem().filter(|_| path.extension().is_some_and(|end| end == "rs")) else {
        return Ok(());
    };
    let listed = TESTS.iter().any(|(_, listed)| name == *listed);
    ensure!(listed, "{} belongs to no rung: add it to TESTS in xtask/src/test.rs", path.display());
    Ok(())
}
