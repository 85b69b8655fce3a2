//! Hosts that take part in an overlay: they share a store, and each has an agent, a bridge and two containers.
use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{agent::Agent, container::Container, counters::Counters, etcd::Etcd, host::Host, lab::Lab};

/// Where leases are kept.
#[derive(Debug)]
pub struct Store {
    etcd: Option<Etcd>,
    arguments: Vec<String>,
}

/// A host that takes part in the overlay.
#[derive(Debug)]
pub struct Member {
    /// The host.
    pub host: Host,
    /// Its subnet: `10.244.7.0/24`.
    pub subnet: String,
    /// MTU of its bridge and containers in bytes.
    pub mtu: u32,
    /// Its containers.
    pub containers: Vec<Container>,
    agent: Option<Agent>,
    binary: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, PathBuf)>,
}

/// How packets travel between hosts: the network's backend, configured with flannel's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// VXLAN.
    Vxlan,
    /// IPv4 packets directly in UDP.
    Udp,
    /// Routes to the hosts, without encapsulation.
    HostGw,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Vxlan, Self::Udp, Self::HostGw];

    /// Its name in the network's config.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Udp => "udp",
            Self::HostGw => "host-gw",
        }
    }

    /// The config of 10.244.0.0/16. Agents choose subnets below 10.244.64.0; tests that assign subnets by hand use
    /// those above, which no agent chooses. Of the leasable range only 10.244.0.0/24 is certainly nobody's.
    pub const fn config(self) -> &'static str {
        match self {
            Self::Vxlan => {
                r#"{"Network":"10.244.0.0/16","SubnetMax":"10.244.63.0","Backend":{"Type":"vxlan"}}"#
            }
            Self::Udp => r#"{"Network":"10.244.0.0/16","SubnetMax":"10.244.63.0","Backend":{"Type":"udp"}}"#,
            Self::HostGw => {
                r#"{"Network":"10.244.0.0/16","SubnetMax":"10.244.63.0","Backend":{"Type":"host-gw"}}"#
            }
        }
    }
}

/// VXLAN, but direct routing to peers on the same link; the rest is as in [`Backend::config`].
pub const DIRECT_VXLAN: &str = r#"{"Network":"10.244.0.0/16","SubnetMax":"10.244.63.0","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

/// How long an agent may take to be ready. A VM without KVM needs most of this on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

impl Store {
    /// A folder that the hosts of `lab` share.
    pub fn folder(lab: &Lab) -> Self {
        let folder = lab.folder().join("store").display().to_string();
        Self { etcd: None, arguments: vec!["--store-dir".into(), folder, "--store-shared".into()] }
    }

    /// A real etcd on the underlay.
    pub fn etcd(lab: &Lab) -> Result<Self> {
        let etcd = Etcd::start_in_netns(&lab.folder(), lab.switch().name(), Lab::SWITCH)?;
        let arguments = vec!["--etcd-endpoints".into(), etcd.client_url()];
        Ok(Self { etcd: Some(etcd), arguments })
    }

    /// The arguments that tell `overlay` to use this store.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The etcd, for tests that stop it or run etcdctl.
    pub fn as_etcd(&mut self) -> Result<&mut Etcd> {
        self.etcd.as_mut().context("the store is a folder")
    }
}

/// Writes the config of 10.244.0.0/16 with VXLAN, and starts an agent on every host of `lab`, with `options` besides
/// the store's arguments.
pub fn populate(lab: &Lab, binary: &Path, store: &Store, options: &[&str]) -> Result<Vec<Member>> {
    populate_with(lab, binary, store, Backend::Vxlan.config(), options)
}

/// Does the same as [`populate`] with another config.
pub fn populate_with(
    lab: &Lab,
    binary: &Path,
    store: &Store,
    config: &str,
    options: &[&str],
) -> Result<Vec<Member>> {
    configure(lab, binary, store, config)?;
    populate_some(lab.hosts(), binary, store, options)
}

/// Has these hosts take part in a network whose config has been written already.
pub fn populate_some(hosts: &[Host], binary: &Path, store: &Store, options: &[&str]) -> Result<Vec<Member>> {
    let started = |host: &Host| Member::start(host, binary, store, options);
    // All agents are started before any is waited for, so that they start side by side.
    let mut members = hosts.iter().map(started).collect::<Result<Vec<_>>>()?;
    for member in &mut members {
        member.settle()?;
    }
    Ok(members)
}

/// Writes the network's config.
pub fn configure(lab: &Lab, binary: &Path, store: &Store, config: &str) -> Result<()> {
    let words = ["config", "set", config].into_iter().chain(words(store.arguments()));
    lab.host(0).overlay(binary, &words.collect::<Vec<_>>()).map(drop)
}

fn words(owned: &[String]) -> impl Iterator<Item = &str> {
    owned.iter().map(String::as_str)
}

impl Member {
    /// Starts the agent, and does not wait for it.
    fn start(host: &Host, binary: &Path, store: &Store, options: &[&str]) -> Result<Self> {
        let options = options.iter().map(|&option| option.to_owned());
        let mut member = Self {
            host: host.clone(),
            subnet: String::new(),
            mtu: 0,
            containers: Vec::new(),
            agent: None,
            binary: binary.to_owned(),
            arguments: store.arguments().iter().cloned().chain(options).collect(),
            environment: Vec::new(),
        };
        member.start_agent()?;
        Ok(member)
    }

    /// Has a host take part without a bridge and containers, because a container engine is to make them.
    pub fn join(host: &Host, binary: &Path, store: &Store, options: &[&str]) -> Result<Self> {
        let mut member = Self::start(host, binary, store, options)?;
        member.lease()?;
        Ok(member)
    }

    /// Waits for the agent, and reads which subnet it leased.
    fn lease(&mut self) -> Result<()> {
        self.wait_ready()?;
        (self.subnet, self.mtu) = self.agent()?.subnet()?;
        Ok(())
    }

    /// Waits for the agent, and makes bridge and containers in the subnet it leased.
    fn settle(&mut self) -> Result<()> {
        self.lease()?;
        self.host.add_bridge(&self.subnet, self.mtu)?;
        let container = |(name, last)| self.host.add_container(name, &self.subnet, last, self.mtu);
        self.containers = [("a", 2), ("b", 3)].into_iter().map(container).collect::<Result<_>>()?;
        Ok(())
    }

    /// Sets the options that the next agent is started with, besides the store's arguments.
    pub fn set_options(&mut self, store: &Store, options: &[&str]) {
        let options = options.iter().map(|&option| option.to_owned());
        self.arguments = store.arguments().iter().cloned().chain(options).collect();
    }

    /// The host's running agent.
    pub fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().with_context(|| format!("no agent runs on {}", self.host.name()))
    }

    /// Starts an agent with the arguments of the one before, and does not wait for it.
    pub fn start_agent(&mut self) -> Result<()> {
        let arguments: Vec<_> = words(&self.arguments).collect();
        self.agent = Some(self.host.start_agent_with(&self.binary, &arguments, &self.environment)?);
        Ok(())
    }

    /// Has every agent that is started from now on have this variable in its environment.
    pub(crate) fn set_variable(&mut self, name: &str, value: PathBuf) {
        self.environment.push((name.to_owned(), value));
    }

    /// Has every agent that is started from now on run this binary.
    pub fn install(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// Waits until the agent is ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.agent()?.wait_ready(PATIENCE)
    }

    /// Starts an agent and waits until it is ready.
    pub fn restart_agent(&mut self) -> Result<()> {
        self.start_agent()?;
        self.wait_ready()
    }

    /// Has the next agent start without this argument.
    pub fn drop_argument(&mut self, argument: &str) {
        self.arguments.retain(|one| one != argument);
    }

    /// Kills the agent with `kill -9`.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("no agent to kill")?.kill9()
    }

    /// Ends the agent with SIGTERM.
    pub fn end_agent(&mut self) -> Result<ExitStatus> {
        self.agent.take().context("no agent to end")?.terminate()
    }

    /// Runs one of `overlay`'s commands on this host.
    pub fn overlay(&self, words: &[&str]) -> Result<String> {
        self.host.overlay(&self.binary, words)
    }

    /// The counters that `overlay status --json` shows.
    pub fn counters(&self) -> Result<Counters> {
        Counters::parse(&self.overlay(&["status", "--json"])?)
            .with_context(|| format!("the status of {}", self.host.name()))
    }
}
