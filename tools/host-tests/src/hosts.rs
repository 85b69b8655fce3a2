//! Whole hosts for tests: the real binary on hosts of the lab, with a store and containers.
use std::{fs::OpenOptions, process::Command, time::Duration};

use overlay_lab::{Agent, Backend, Container, Host, Lab, Options, PingOptions, Running, wait_until};

use crate::overlay as binary;

/// The config of most tests' network.
pub const CONFIG: &str = Backend::Vxlan.config();
/// How long anything may take that should happen soon. It is generous because the machine may be busy.
pub const SOON: Duration = Duration::from_secs(30);

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// Exit code. It is 124 if the command went on and had to be ended.
    pub code: i32,
    /// What it wrote to both of its output streams.
    pub text: String,
}

impl Said {
    /// Asserts that the command ended with this code and that these words are in its text.
    #[track_caller]
    pub fn is(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}", self.text);
        for word in words {
            assert!(self.text.contains(word), "`{word}` is not in: {}", self.text);
        }
        assert!(!self.text.contains("panicked"), "{}", self.text);
    }
}

/// Makes a lab of `hosts` hosts.
pub fn lab(hosts: u8) -> Lab {
    Lab::new(Options { hosts, ..Options::default() }).unwrap()
}

/// Makes the lab's shared folder of leases, with a config in it.
pub fn store(lab: &Lab) -> String {
    let store = lab.folder().join("store").display().to_string();
    overlay(lab.host(0), &["config", "set", CONFIG, "--store-dir", &store]).is(0, &["10.244.0.0/16"]);
    store
}

/// Runs one of the binary's commands on a host, with the host's own folders, and waits for its end.
pub fn overlay(host: &Host, words: &[&str]) -> Said {
    said(&mut program(host, host, &["timeout", "20"], words))
}

/// One of the binary's commands, to be run on a host behind other words, such as `setpriv` and its options, which start it. The
/// pins and the state are in the folders of `folders`, which may be another host's.
pub fn program(host: &Host, folders: &Host, behind: &[&str], words: &[&str]) -> Command {
    let binary = [binary().to_str().unwrap()];
    let mut command = host.namespace().command(&[behind, &binary, words].concat()).unwrap();
    command.env("OVERLAY_BPF_ROOT", folders.bpf_root());
    command.env("OVERLAY_STATE_DIR", folders.folder().join("state"));
    command.env("OVERLAY_SUBNET_FILE", host.subnet_file());
    command
}

/// Starts an agent by a command of [`program`], for tests that need other words or folders than those of the lab's own agents. Its
/// log goes where [`logged`] looks. The process is killed when this is dropped, so it must be the agent itself: `setpriv` becomes
/// the agent, whereas `timeout` has it as a child, which would go on.
pub fn start_logged(host: &Host, command: &mut Command) -> Running {
    let log = OpenOptions::new().create(true).append(true).open(host.agent_log()).unwrap();
    Running::start(command.stdout(log.try_clone().unwrap()).stderr(log)).unwrap()
}

/// Runs a command and waits for its end.
pub fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    Said { code: output.status.code().unwrap_or(-1), text: String::from_utf8_lossy(&text).into_owned() }
}

/// What `overlay status --json` shows on a host whose agent runs.
pub fn status(host: &Host) -> serde_json::Value {
    let text = host.overlay(binary(), &["status", "--json"]).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Packets that a hook of a host, such as `encap`, counted as carried to or from peers.
pub fn carried(host: &Host, hook: &str) -> u64 {
    let status = status(host);
    let counters = status["counters"].as_array().unwrap().iter();
    let of_hook = counters.filter(|counter| counter["hook"] == hook && counter["reason"] == "carried");
    of_hook.map(|counter| counter["packets"].as_u64().unwrap()).sum()
}

/// Waits until the host's status fulfils `is`. `what` says in the error what was waited for.
#[track_caller]
pub fn until(host: &Host, what: &str, mut is: impl FnMut(&serde_json::Value) -> bool) {
    let mut last = serde_json::Value::Null;
    let done = wait_until(what, SOON, || {
        // An agent that is just starting has no status yet.
        let Ok(text) = host.overlay(binary(), &["status", "--json"]) else { return Ok(false) };
        last = serde_json::from_str(&text)?;
        Ok(is(&last))
    });
    done.unwrap_or_else(|error| panic!("{error:#}: {last:#}"));
}

/// Waits until these words are in the log of the host's agents.
#[track_caller]
pub fn logged(host: &Host, words: &str) {
    let log = || std::fs::read_to_string(host.agent_log()).unwrap_or_default();
    wait_until(words, SOON, || Ok(log().contains(words)))
        .unwrap_or_else(|error| panic!("{error:#}: {}", log()));
}

/// A host with a running agent and a container in the subnet it leased.
pub struct JoinedHost {
    /// The host.
    pub host: Host,
    /// Its agent.
    pub agent: Agent,
    /// Its container.
    pub container: Container,
    /// Its subnet, such as `10.244.7.0/24`.
    pub subnet: String,
}

impl JoinedHost {
    /// Starts the agent with these arguments and waits until it is ready.
    pub fn join(host: &Host, arguments: &[&str]) -> Self {
        let mut agent = host.start_agent(binary(), arguments).unwrap();
        agent.wait_ready(SOON).unwrap();
        let (subnet, mtu) = agent.subnet().unwrap();
        host.add_bridge(&subnet, mtu).unwrap();
        let container = host.add_container("a", &subnet, 2, mtu).unwrap();
        Self { host: host.clone(), agent, container, subnet }
    }

    /// Ends the agent and starts another with these arguments.
    pub fn restarted(self, arguments: &[&str]) -> Self {
        self.agent.terminate().unwrap();
        let mut agent = self.host.start_agent(binary(), arguments).unwrap();
        agent.wait_ready(SOON).unwrap();
        Self { agent, ..self }
    }

    /// The key of its lease, such as `10.244.7.0-24`.
    pub fn key(&self) -> String {
        self.subnet.replace('/', "-")
    }

    /// Waits until the other's container answers, then sends it ten more pings, all of which must be answered.
    #[track_caller]
    pub fn reaches(&self, other: &Self) {
        let once = PingOptions { count: 1, timeout: 0.3, ..PingOptions::default() };
        wait_until("a first answer", SOON, || {
            Ok(self.container.ping(other.container.address(), once)?.complete())
        })
        .unwrap();
        let ten = PingOptions { count: 10, ..PingOptions::default() };
        let ping = self.container.ping(other.container.address(), ten).unwrap();
        assert!(ping.complete(), "{}", ping.output);
    }
}
