//! A time of day for a host's agent alone, which can be stepped while the agent runs. The machine's own clock is everybody's, and a
//! time namespace has no time of day of its own (time_namespaces(7)), so a library that is preloaded adds the step. What the kernel
//! itself does when the clock is set (timers with TFD_TIMER_CANCEL_ON_SET, file times) stays out of it.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{command, member::Member};

const SOURCE: &str = include_str!("clock.c");

/// Has agents of `members` that are started from now on see a clock of their own. `cc` is there, as Rust links by it.
pub(super) fn give(members: &mut [Member], folder: &Path) -> Result<()> {
    let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
    fs::write(&source, SOURCE)?;
    let words = [Path::new("-O2"), "-shared".as_ref(), "-fPIC".as_ref(), "-o".as_ref(), &library, &source];
    command::run("cc", words).context("compile the clock")?;
    for member in members {
        step(member, 0)?;
        member.set_variable("LD_PRELOAD", library.clone());
        member.set_variable("LAB_CLOCK", file(member));
    }
    Ok(())
}

/// Sets by how many seconds a host's clock differs from the machine's.
pub(super) fn step(member: &Member, seconds: i64) -> Result<()> {
    // The file is replaced at once, so that nobody reads half of a number.
    let (written, file) = (file(member).with_extension("new"), file(member));
    fs::write(&written, seconds.to_string())?;
    fs::rename(&written, &file).with_context(|| format!("write {}", file.display()))
}

fn file(member: &Member) -> PathBuf {
    member.host.folder().join("clock")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_program_sees_its_clock_stepped_and_the_machine_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("clock.c"), folder.path().join("clock.so"));
        fs::write(&source, SOURCE).unwrap();
        command::run("cc", [Path::new("-shared"), "-fPIC".as_ref(), "-o".as_ref(), &library, &source])
            .unwrap();
        let file = folder.path().join("clock");
        let date = |preloaded: bool| -> i64 {
            let mut date = Command::new("date");
            date.arg("+%s");
            if preloaded {
                date.env("LD_PRELOAD", &library).env("LAB_CLOCK", &file);
            }
            command::output(&mut date).unwrap().trim().parse().unwrap()
        };
        for step in [90_000, -90_000] {
            fs::write(&file, step.to_string()).unwrap();
            let (before, seen, after) = (date(false), date(true), date(false));
            assert!((before + step..=after + step).contains(&seen), "{before} {seen} {after}");
        }
    }
}
