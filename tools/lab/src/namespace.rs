//! A network namespace of the lab: commands, processes and threads inside it.
use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{command, interrupt::check_interrupted, names::MARK};

/// A handle on a named network namespace; the lab removes the namespace itself.
#[derive(Clone, Debug)]
pub struct Namespace {
    lab: String,
    name: String,
    dies_with_us: bool,
}

impl Namespace {
    pub(crate) fn named(lab: &str, part: &str, dies_with_us: bool) -> Self {
        Self { lab: lab.to_owned(), name: format!("{lab}-{part}"), dies_with_us }
    }

    pub(crate) fn create(&self) -> Result<()> {
        command::sh(&format!("ip netns add {}", self.name))?;
        self.ip("link set lo up")
    }

    pub(crate) fn lab(&self) -> &str {
        &self.lab
    }

    /// The namespace's name, for `ip -n` and `nsenter --net=/run/netns/NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `ip` in here, with space-separated arguments.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        check_interrupted()?;
        command::sh(&format!("ip -n {} {arguments}", self.name)).map(drop)
    }

    /// Runs a command in here to its end and returns its stdout. The words are separated by spaces; no shell sees them.
    pub fn exec(&self, line: &str) -> Result<String> {
        let words: Vec<_> = line.split_whitespace().collect();
        self.exec_words(&words)
    }

    /// Does the same with words that may have spaces, such as a path of this project.
    pub fn exec_words(&self, words: &[&str]) -> Result<String> {
        command::output(&mut self.command(words)?)
    }

    /// Starts a command in here. The process dies with the *thread* that calls this, so that none outlives a killed test.
    pub fn spawn(&self, line: &str) -> Result<Running> {
        let words: Vec<_> = line.split_whitespace().collect();
        Running::start(self.command(&words)?.stdin(Stdio::null()).stdout(Stdio::null()))
    }

    /// A command that will run in here. It does not use `ip netns exec`, which mounts a fresh /sys that hides the
    /// bpffs.
    pub fn command(&self, words: &[&str]) -> Result<Command> {
        check_interrupted()?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--");
        if self.dies_with_us {
            command.args(["setpriv", "--pdeathsig", "KILL"]);
        }
        command.args(words).env(MARK, &self.lab).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs `work` on a thread of its own that lives in here.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let path = self.path();
        thread::spawn(move || {
            let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", path.display()))?;
            work()
        })
    }

    /// Runs `work` in here and waits for it.
    pub fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        join(self.thread(work))
    }

    /// Writes below /proc/sys/net as this namespace sees it: `sysctl("ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let (path, value) = (format!("/proc/sys/net/{key}"), value.to_owned());
        self.enter(move || std::fs::write(&path, &value).with_context(|| format!("write {value} to {path}")))
    }
}

/// Waits for a thread and returns its result. A panic in it is an error like any other.
pub fn join<T>(handle: JoinHandle<Result<T>>) -> Result<T> {
    match handle.join() {
        Ok(result) => result,
        Err(_) => bail!("a thread of the lab panicked"),
    }
}

/// A process that ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shown: String,
}

impl Running {
    /// Starts a command, such as one of [`Namespace::command`].
    pub fn start(command: &mut Command) -> Result<Self> {
        let shown = command::show(command);
        let child = command.spawn().with_context(|| format!("start {shown}"))?;
        Ok(Self { child, shown })
    }

    /// Id of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), signal)
            .with_context(|| format!("send {signal} to {}", self.shown))
    }

    /// Exit status of the process, if it has ended.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits at most `limit` for the process to end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > limit {
                bail!("{} still runs after {limit:?}", self.shown);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The only possible error is that the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
