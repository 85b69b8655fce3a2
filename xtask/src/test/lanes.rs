//! Jobs side by side: who runs when, what is printed of them, and what remains to be said in the end.
//!
//! Two at once, as the machines have two cores. What a job prints appears as a whole when it has ended, since two that
//! print at once cannot be read.
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

use crate::interrupt;

/// How many jobs run at once.
const LANES: usize = 2;

/// How long what was told to end may take to clean up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Commands that run one after the other, until one fails.
pub(super) struct Job {
    pub(super) name: String,
    /// Whether it makes hosts under load, whose timing another such job would disturb: only one of these runs at a time.
    pub(super) hosts: bool,
    pub(super) commands: Vec<Command>,
}

/// How a job ended.
struct Ended {
    name: String,
    time: Duration,
    result: Result<()>,
}

struct Board {
    waiting: VecDeque<Job>,
    hosts_busy: bool,
    ended: Vec<Ended>,
}

/// Runs all jobs, each output of theirs going through a file in `folder`. Those in front start first. An error names every job
/// that failed, in the order in which they did.
pub(super) fn run(jobs: Vec<Job>, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let started = Instant::now();
    let lanes = Lanes {
        board: Mutex::new(Board { waiting: jobs.into(), hosts_busy: false, ended: Vec::new() }),
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
            let result = carry_out(job.commands, &file);
            let time = started.elapsed();
            let mut board = self.board();
            let how = if result.is_ok() { "passed" } else { "FAILED" };
            println!("== {} {how} after {}", job.name, minutes(time));
            // Under the lock, so that no other job's lines come in between.
            print!("{}", String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()));
            if let Err(error) = &result {
                println!("== {} failed: {error:#}", job.name);
            }
            board.hosts_busy &= !job.hosts;
            board.ended.push(Ended { name: job.name, time, result });
            self.changed.notify_all();
        }
    }

    /// The first job that may run beside the one that runs; waits while there is none. `None` when all have been taken.
    fn next(&self) -> Option<Job> {
        let mut board = self.board();
        loop {
            if interrupt::came() {
                board.waiting.clear();
            }
            if board.waiting.is_empty() {
                return None;
            }
            let busy = board.hosts_busy;
            if let Some(place) = board.waiting.iter().position(|job| !(job.hosts && busy)) {
                let job = board.waiting.remove(place)?;
                board.hosts_busy |= job.hosts;
                println!("== {} begins", job.name);
                return Some(job);
            }
            board = self.changed.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Runs commands one after the other with their output in `file`.
fn carry_out(commands: Vec<Command>, file: &Path) -> Result<()> {
    let mut output = File::create(file).with_context(|| format!("create {}", file.display()))?;
    for mut command in commands {
        let shown = command::show(&command);
        writeln!(output, "     Running {shown}")?;
        command.stdout(output.try_clone()?).stderr(output.try_clone()?);
        let status = run_one(&mut command).with_context(|| shown.clone())?;
        if !status.success() {
            bail!("{shown} ended with {status}");
        }
    }
    Ok(())
}

/// Runs a command in a process group of its own. When we are told to end, it is told, too, and has time to clean up.
pub(super) fn run_one(command: &mut Command) -> Result<ExitStatus> {
    let mut group = Group(command.stdin(Stdio::null()).process_group(0).spawn()?);
    loop {
        if let Some(status) = group.0.try_wait()? {
            return Ok(status);
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

/// How long each took, in the order in which they ended.
fn table(ended: &[Ended], all: Duration) -> String {
    let mut lines = vec!["== minutes".to_owned()];
    for Ended { name, time, result } in ended {
        let how = if result.is_ok() { "" } else { "  FAILED" };
        lines.push(format!("  {name:24}{:>10}{how}", minutes(*time)));
    }
    lines.push(format!("  {:24}{:>10}", "side by side", minutes(all)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str, hosts: bool, script: &str) -> Job {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Job { name: name.to_owned(), hosts, commands: vec![command] }
    }

    #[test]
    fn all_run_and_every_failure_is_named_the_first_first() {
        let folder = tempfile::tempdir().unwrap();
        let jobs = vec![
            job("a/one", false, "echo out; echo err >&2"),
            job("late", false, "sleep 0.2; exit 4"),
            job("early", false, "exit 3"),
            job("ended", false, "true"),
        ];
        let error = run(jobs, folder.path()).unwrap_err().to_string();
        let (first, second) = (error.find("early").unwrap(), error.find("late").unwrap());
        assert!(first < second && error.starts_with("2 of 4 jobs failed"), "{error}");
        assert!(fs::read_to_string(folder.path().join("a-one.txt")).unwrap().ends_with("\nout\nerr\n"));
    }

    #[test]
    fn jobs_with_hosts_never_run_at_the_same_time() {
        let folder = tempfile::tempdir().unwrap();
        // Each makes a folder that must not be there, and takes it away again.
        let mark = folder.path().join("mark");
        let script = format!("mkdir '{0}' && sleep 0.05 && rmdir '{0}'", mark.display());
        let jobs = (0..6).map(|number| job(&number.to_string(), true, &script)).collect();
        run(jobs, folder.path()).unwrap();
    }

    #[test]
    fn a_command_that_fails_is_its_jobs_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = job("x", false, "exit 1");
        first.commands.extend(job("x", false, "echo never").commands);
        run(vec![first], folder.path()).unwrap_err();
        assert!(!fs::read_to_string(folder.path().join("x.txt")).unwrap().ends_with("never\n"));
    }
}
