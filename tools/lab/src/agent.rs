//! An `overlay agent` on a host of the lab.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use crate::{command, host::Host, namespace::Running, wait::wait_until};

/// Where the lab's agents answer /healthz and /readyz, in their host's namespace.
const HEALTH_PORT: u16 = 8471;

/// A running agent. It is killed when this is dropped; on a panic the end of its log is shown.
#[derive(Debug)]
pub struct Agent {
    host: Host,
    process: Option<Running>,
    log: PathBuf,
}

impl Host {
    /// Starts `overlay agent` with the host's own folders and interface, and with further `arguments` (such as the
    /// store's).
    pub fn start_agent(&self, binary: &Path, arguments: &[&str]) -> Result<Agent> {
        self.start_agent_with(binary, arguments, &[])
    }

    /// Does the same with further variables in the agent's environment.
    pub(crate) fn start_agent_with(
        &self,
        binary: &Path,
        arguments: &[&str],
        environment: &[(String, PathBuf)],
    ) -> Result<Agent> {
        let log = self.agent_log();
        let file = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = self.overlay_command(binary, &["agent"])?;
        command
            .args(["--iface", "eth0", "--healthz-ip", "127.0.0.1"])
            .args(["--healthz-port", &HEALTH_PORT.to_string()])
            .arg("--subnet-file")
            .arg(self.subnet_file())
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdout(file.try_clone()?)
            .stderr(file);
        Ok(Agent { host: self.clone(), process: Some(Running::start(&mut command)?), log })
    }

    /// Runs another of `overlay`'s commands for this host's network and returns what it prints.
    pub fn overlay(&self, binary: &Path, words: &[&str]) -> Result<String> {
        command::output(&mut self.overlay_command(binary, words)?)
    }

    /// Starts one of `overlay`'s commands, which goes on running: an agent of another network, say. Its output is not kept.
    pub fn start_overlay(&self, binary: &Path, words: &[&str]) -> Result<Running> {
        Running::start(self.overlay_command(binary, words)?.stdout(Stdio::null()))
    }

    fn overlay_command(&self, binary: &Path, words: &[&str]) -> Result<Command> {
        let binary = binary.to_str().context("the path of the overlay binary is not UTF-8")?;
        let mut command = self.namespace().command(&[&[binary], words].concat())?;
        // They are given as variables because a command that has no such option would refuse the option.
        command.env("OVERLAY_BPF_ROOT", self.bpf_root());
        command.env("OVERLAY_STATE_DIR", self.folder().join("state"));
        Ok(command)
    }

    /// The file `subnet.env` that the agent writes.
    pub fn subnet_file(&self) -> PathBuf {
        self.folder().join("subnet.env")
    }

    /// The file into which all agents of this host write their logs, one after the other.
    pub fn agent_log(&self) -> PathBuf {
        self.folder().join("agent.log")
    }

    /// The last 30 lines of that log.
    pub fn agent_log_tail(&self) -> String {
        let log = fs::read_to_string(self.agent_log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Agent {
    /// Waits until /readyz answers that the lease is held and the data path is attached.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let host = self.host.clone();
        wait_until(&format!("the agent of {}", host.name()), limit, || {
            if let Some(status) = self.process()?.status()? {
                bail!("it ended with {status}:\n{}", self.host.agent_log_tail());
            }
            // A refused connection means that the agent does not listen yet.
            Ok(host.http_get(HEALTH_PORT, "/readyz").is_ok_and(|(code, _)| code == 200))
        })
        .with_context(|| format!("last lines of {}:\n{}", self.log.display(), self.host.agent_log_tail()))
    }

    /// What /readyz answers now: its code, and why.
    pub fn readiness(&self) -> Result<(u16, String)> {
        self.host.http_get(HEALTH_PORT, "/readyz")
    }

    /// Variables of subnet.env: `FLANNEL_SUBNET`, `FLANNEL_MTU`, ...
    pub fn subnet_env(&self) -> Result<BTreeMap<String, String>> {
        let path = self.host.subnet_file();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// The subnet it leased (`10.244.7.0/24`), and the MTU for containers in bytes.
    pub fn subnet(&self) -> Result<(String, u32)> {
        let variables = self.subnet_env()?;
        let get = |name: &str| variables.get(name).with_context(|| format!("no {name} in subnet.env"));
        // flannel writes the bridge's address with the subnet's length: 10.244.7.1/24.
        let (bridge, length) =
            get("FLANNEL_SUBNET")?.split_once('/').context("FLANNEL_SUBNET without a length")?;
        let bridge: std::net::Ipv4Addr = bridge.parse().context("FLANNEL_SUBNET")?;
        let base = std::net::Ipv4Addr::from(u32::from(bridge) - 1);
        Ok((format!("{base}/{length}"), get("FLANNEL_MTU")?.parse().context("FLANNEL_MTU")?))
    }

    /// The agent's process id.
    pub fn pid(&mut self) -> Result<u32> {
        Ok(self.process()?.pid())
    }

    /// The agent's exit status, if it has ended.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        self.process()?.status()
    }

    /// Kills the agent with `kill -9` and waits until it is gone.
    pub fn kill9(mut self) -> Result<()> {
        self.process()?.signal(Signal::SIGKILL)?;
        self.process()?.wait(Duration::from_secs(5)).map(drop)
    }

    /// Sends SIGTERM and waits until the agent has ended by itself.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.process()?.signal(Signal::SIGTERM)?;
        self.process()?.wait(Duration::from_secs(10))
    }

    /// Sends a signal such as SIGSTOP or SIGCONT.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process()?.signal(signal)
    }

    /// What this agent and its predecessors on this host have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn process(&mut self) -> Result<&mut Running> {
        self.process.as_mut().context("the agent was let go")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}: {}\n{}", self.host.name(), self.log.display(), self.host.agent_log_tail());
        }
        if self.host.keep() {
            // In a lab that is kept, the agent must survive this process, so its handle must not kill it.
            std::mem::forget(self.process.take());
        }
    }
}
