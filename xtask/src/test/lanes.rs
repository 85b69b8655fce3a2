//! Jobs side by side: who runs when, what is printed of them, and what remains to be said in the end.
//!
//! What a job prints appears as a whole when it has ended, since two that print at once cannot be read.
use std::{
    collections::VecDeque,
    fs::{self, File},
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use overlay_project::command;

use super::spent;
use crate::interrupt;

/// How many jobs run at once: one more than the machines have cores, because tests of hosts wait about half of the time.
const LANES: usize = 3;

/// How long what was told to end may take to clean up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a job does to those that run beside it. Jobs start in this order: the longest first, then those of which few may run at once,
/// then the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// It computes without a pause, as compilers and an emulated CPU do. Whatever else runs goes first.
    Computing,
    /// It makes hosts under load, whose timing others would disturb: beside jobs that compute only one of these runs at a time, and
    /// two when there are none.
    Timed,
    /// It neither disturbs others nor minds them.
    Other,
}

/// How nice a computing job is to others. A CPU gives a process of niceness 10 a tenth of what it gives an ordinary one.
const NICENESS: &str = "10";

/// Commands that run one after the other, until one fails.
pub(super) struct Job {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) commands: Vec<Command>,
}

/// How a job ended.
struct Ended {
    name: String,
    /// How long it ran, on the clock.
    time: Duration,
    /// How long all its processes together ran on CPUs.
    cpu: Duration,
    result: Result<()>,
}

struct Board {
    waiting: VecDeque<Job>,
    running: Vec<Kind>,
    ended: Vec<Ended>,
}

impl Board {
    /// Whether a job of this kind may begin beside those that run. Tests of hosts need about half of a core.
    fn may_begin(&self, kind: Kind) -> bool {
        let running = |kind| self.running.iter().filter(|running| **running == kind).count();
        kind != Kind::Timed || running(Kind::Timed) < if running(Kind::Computing) == 0 { 2 } else { 1 }
    }
}

/// Runs all jobs, each output of theirs going through a file in `folder`. Those in front start first. An error names every job
/// that failed, in the order in which they did.
pub(super) fn run(jobs: Vec<Job>, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let started = Instant::now();
    let lanes = Lanes {
        board: Mutex::new(Board { waiting: jobs.into(), running: Vec::new(), ended: Vec::new() }),
        changed: Condvar::new(),
        folder: folder.to_owned(),
    };
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| lanes.work());
        }
    });
    let ended = std::mem::take(&mut lanes.board().ended);
    println!("{}", table(&ended, started.elapsed()));
    if interrupt::came() {
        bail!("interrupted");
    }
    let failed: Vec<_> = ended
        .iter()
        .filter_map(|job| job.result.as_ref().err().map(|error| format!("{}: {error:#}", job.name)))
        .collect();
    if !failed.is_empty() {
        bail!("{} of {} jobs failed; the first was {}", failed.len(), ended.len(), failed.join("\n  then "));
    }
    Ok(())
}

struct Lanes {
    board: Mutex<Board>,
    changed: Condvar,
    folder: PathBuf,
}

impl Lanes {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One lane: takes jobs until there are none.
    fn work(&self) {
        while let Some(job) = self.next() {
            let started = Instant::now();
            let file = self.folder.join(format!("{}.txt", job.name.replace('/', "-")));
            let mut cpu = Duration::ZERO;
            let result = carry_out(job.kind, job.commands, &file, &mut cpu);
            let time = started.elapsed();
            let mut board = self.board();
            let how = if result.is_ok() { "passed" } else { "FAILED" };
            println!("== {} {how} after {}, {} of CPU", job.name, minutes(time), minutes(cpu));
            // Under the lock, so that no other job's lines come in between.
            print!("{}", String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()));
            if let Err(error) = &result {
                println!("== {} failed: {error:#}", job.name);
            }
            if let Some(place) = board.running.iter().position(|running| *running == job.kind) {
                board.running.remove(place);
            }
            board.ended.push(Ended { name: job.name, time, cpu, result });
            self.changed.notify_all();
        }
    }

    /// The first job that may run beside those that run; waits while there is none. `None` when all have been taken.
    fn next(&self) -> Option<Job> {
        let mut board = self.board();
        loop {
            if interrupt::came() {
                board.waiting.clear();
            }
            if board.waiting.is_empty() {
                return None;
            }
            if let Some(place) = board.waiting.iter().position(|job| board.may_begin(job.kind)) {
                let job = board.waiting.remove(place)?;
                board.running.push(job.kind);
                println!("== {} begins", job.name);
                return Some(job);
            }
            board = self.changed.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Runs commands one after the other with their output in `file`. What they spend on CPUs is added to `cpu`.
fn carry_out(kind: Kind, commands: Vec<Command>, file: &Path, cpu: &mut Duration) -> Result<()> {
    let mut output = File::create(file).with_context(|| format!("create {}", file.display()))?;
    for command in commands {
        let mut command = if kind == Kind::Computing { nice(&command) } else { command };
        let shown = command::show(&command);
        writeln!(output, "     Running {shown}")?;
        command.stdout(output.try_clone()?).stderr(output.try_clone()?);
        let (status, spent) = run_one(&mut command).with_context(|| shown.clone())?;
        *cpu += spent;
        if !status.success() {
            bail!("{shown} ended with {status}");
        }
    }
    Ok(())
}

/// The same command, which lets others go first.
fn nice(command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", NICENESS]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        nice.current_dir(folder);
    }
    nice
}

/// Runs a command in a process group of its own, and returns what it and its children spent on CPUs too. When we are told to
/// end, it is told, too, and has time to clean up.
pub(super) fn run_one(command: &mut Command) -> Result<(ExitStatus, Duration)> {
    let mut group = Group(command.stdin(Stdio::null()).process_group(0).spawn()?);
    loop {
        if let Some(spent) = spent::when_ended(&group.0)? {
            return Ok((group.0.wait()?, spent));
        }
        if interrupt::came() {
            bail!("interrupted");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        let started = Instant::now();
        let pid = i32::try_from(self.0.id()).map(Pid::from_raw);
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if let (Ok(None), Ok(pid)) = (self.0.try_wait(), pid) {
                // The only error is that all have ended.
                let _ = killpg(pid, signal);
            }
            while matches!(self.0.try_wait(), Ok(None)) && started.elapsed() < PATIENCE {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

pub(super) fn minutes(time: Duration) -> String {
    format!("{:.1} min", time.as_secs_f32() / 60.0)
}

/// How long each took, and how much of it on CPUs, in the order in which they ended. A job that took much longer than it ran on
/// CPUs has mostly waited. One that ran on several CPUs at once can show more time on CPUs than on the clock.
fn table(ended: &[Ended], all: Duration) -> String {
    let line = |name: &str, time: Duration, cpu: Duration, how: &str| {
        format!("  {name:24}{:>10}{:>10}{how}", minutes(time), minutes(cpu))
    };
    let mut lines = vec![format!("== {:24}{:>9}{:>10}", "minutes", "clock", "CPU")];
    for Ended { name, time, cpu, result } in ended {
        lines.push(line(name, *time, *cpu, if result.is_ok() { "" } else { "  FAILED" }));
    }
    lines.push(line("side by side", all, ended.iter().map(|job| job.cpu).sum(), ""));
    lines.join("\n")
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
