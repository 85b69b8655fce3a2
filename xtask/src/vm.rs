//! VMs with other kernels, by qemu's software emulation, so that neither KVM nor root is needed and nothing is
//! installed. Debian's kernel boots into an initramfs that holds the test programs, runs them, and powers off.
use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use overlay_project::project;

use crate::setup::{
    apt,
    progress::{Progress, lock},
};

mod debian;
mod files;
mod image;
mod kernels;
mod machine;
mod modules;
pub(crate) mod report;
pub(crate) mod table;

pub(crate) use self::{
    kernels::{KERNELS, Kernel},
    report::Report,
};

/// The commands that run the machine, and the guest's shell.
const TOOLS: &[&str] =
    &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios", "busybox-static"];

/// Runs `tests` (programs that cargo built) one after the other on `kernel`; `programs` are in the guest at the paths
/// that they have here. Prints what they print. It fails if a test fails, or if the machine ends before its init does.
pub(crate) fn run(kernel: &Kernel, tests: &[&Path], programs: &[&Path]) -> Result<Report> {
    let context = || format!("Linux {} in a VM", kernel.version);
    run_in(kernel, tests, programs).with_context(context)
}

/// How the names of the runs' folders begin. The process's id follows.
const RUN: &str = "run-";

/// Removes the folders of runs that were killed, whose qemu has died with them.
fn remove_orphans(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let owner = files::name(&path).strip_prefix(RUN).and_then(|name| name.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn run_in(kernel: &Kernel, tests: &[&Path], programs: &[&Path]) -> Result<Report> {
    let progress = Progress::start();
    let folder = project::target().join("vm");
    let tools = folder.join("tools");
    let lock = lock(&folder, &progress)?;
    if !tools.join("ready").exists() {
        let packages = apt::with_libraries(TOOLS, &progress)?;
        let unpacked = apt::unpack(&packages, &folder, &progress)?;
        fs::write(unpacked.tree().join("ready"), "")?;
        unpacked.put("", &tools)?;
    }
    let kernel = debian::kernel(kernel, &folder, &tools, &progress)?;
    drop(lock);
    remove_orphans(&folder)?;
    let prefix = format!("{RUN}{}-", std::process::id());
    let work = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(&folder)
        .context("make a folder for the machine")?;
    // Only the init of this run knows this word, so neither a test's output nor a crash can look like the end.
    let nonce = work.path().file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let image = image::build(work.path(), &tools, &kernel, tests, programs, &nonce)?;
    let started = std::time::Instant::now();
    let console = folder.join(format!("console-{}", kernel.version));
    let said = machine::run(&tools, &kernel, &image, &console)?;
    let report = Report::parse(&said.lines, &nonce, tests);
    println!("vm {} | {:.0} s", kernel.version, started.elapsed().as_secs_f32());
    report.or_else(|error| {
        let console = fs::read_to_string(&console).unwrap_or_default();
        let lines: Vec<_> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        bail!("{error:#}; {}\nlast lines of the kernel's console:\n{tail}", said.end)
    })
}
