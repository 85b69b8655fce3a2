//! The lab: hosts as network namespaces on one machine, with an underlay between them, bridges and containers.
//!
//! ```text
//!   container      container        container      container     ov<pid>n<lab>-h1-a, ...
//!        \            /                  \            /
//!   h1:   br0 10.244.1.1/24         h2:   br0 10.244.2.1/24      ov<pid>n<lab>-h1, -h2, ...
//!         eth0 10.99.0.1                  eth0 10.99.0.2
//!            \_______________ br0 _______________/               ov<pid>n<lab>-switch
//!                              |
//!   h3: eth0 10.99.3.3 --- two routers                         ov<pid>n<lab>-h3-near, -h3-far; Options::behind_routers
//! ```
//!
//! Everything a lab makes carries its name: namespaces, one folder with a bpffs mounted inside, the control groups of
//! containers, and the environment of every process. Cleaning up is therefore one function ([`sweep()`]) that needs no list of what was made, used by
//! `Drop` (a panic unwinds through it), by Ctrl-C, and by `cargo xtask lab down` for what a killed process left.
use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::Uid;

use crate::command::sh;

pub use self::{
    agent::Agent,
    container::{Container, Ping, PingOptions},
    counters::{Carried, Counters},
    docker::{Docker, DockerContainer},
    flannel::{FlannelDevice, Flanneld},
    foreign::ForeignVxlan,
    host::{Capture, Host},
    latency::{Latency, latency},
    ledger::{Accounts, Ledger, Traffic},
    member::{Backend, DIRECT_VXLAN, Member, Store, configure, populate, populate_some, populate_with},
    namespace::{MARK, Namespace, Running},
    numbered::{Numbered, NumberedReport, queue_overflows},
    path::Path as RoutedPath,
    relay::Relay,
    steady::{Steady, SteadyReport},
    stream::{Transfer, iperf3, transfer, transfer_by},
    sweep::{interrupted, leaks, orphans, sweep},
    visitor::Guesthouse,
};

pub(crate) use self::namespace::join;

mod agent;
mod container;
mod counters;
mod direct;
mod docker;
mod flannel;
mod foreign;
mod host;
mod latency;
mod ledger;
mod member;
mod namespace;
mod numbered;
mod path;
mod relay;
mod steady;
mod stream;
mod sweep;
mod visitor;

/// How the lab's underlay is.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many hosts.
    pub hosts: u8,
    /// How many of them, the last ones, stand behind routers of their own instead of on the switch.
    pub behind_routers: u8,
    /// MTU of the underlay in bytes; one host's can be lowered later by [`Host::set_mtu`].
    pub mtu: u32,
    /// One frame per segment with finished checksums, and GRO at the receiver, as behind a real NIC. Otherwise veth's
    /// default: 64 KiB frames with unfinished checksums cross the underlay whole.
    pub wire_like: bool,
    /// `rp_filter` of the hosts: 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// Processes of the lab may outlive this one; [`Lab::keep`] then leaves it all in place.
    pub keep: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { hosts: 2, behind_routers: 0, mtu: 1500, wire_like: false, rp_filter: 0, keep: false }
    }
}

/// Hosts and what is between them; gone when dropped.
#[derive(Debug)]
pub struct Lab {
    name: String,
    options: Options,
    switch: Namespace,
    hosts: Vec<Host>,
    kept: bool,
}

impl Lab {
    /// Builds the underlay and the hosts. Fails without root.
    pub fn new(options: Options) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !Uid::effective().is_root() {
            bail!("network namespaces take root: run this as root");
        }
        let name = format!("ov{}n{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        sweep::on_signals(&name)?;
        let folder = folder_of(&name);
        let switch = Namespace::named(&name, "switch", !options.keep);
        let mut lab = Self { name, options, switch, hosts: Vec::new(), kept: false };
        fs::create_dir_all(folder.join("bpf"))?;
        sh(&format!("mount -t bpf bpf {}", folder.join("bpf").display()))?;
        lab.switch.create()?;
        lab.switch.ip("link add br0 type bridge")?;
        // A switch has no packet filter: hooks into one would be counted as time on the wire.
        if fs::exists("/proc/sys/net/bridge")? {
            lab.switch.sysctl("bridge/bridge-nf-call-iptables", "0")?;
        }
        lab.switch.ip("address add 10.99.0.254/24 dev br0")?;
        lab.switch.ip(&format!("link set br0 mtu {} up", lab.options.mtu))?;
        for number in 1..=lab.options.hosts {
            let host = Host::new(&lab.name, number, &lab.options, &lab.switch)?;
            lab.hosts.push(host);
        }
        lab.route()?;
        Ok(lab)
    }

    /// Everybody on the switch learns what lies behind the routers there.
    fn route(&self) -> Result<()> {
        for path in self.hosts.iter().filter_map(Host::path) {
            let on_switch = self.hosts.iter().filter(|host| host.path().is_none()).map(Host::namespace);
            let others = self.hosts.iter().filter_map(Host::path).map(RoutedPath::near);
            let others = others.filter(|near| near.name() != path.near().name());
            for namespace in on_switch.chain(others).chain([&self.switch]) {
                namespace.ip(&format!("route add {} via {}", path.network(), path.gateway()))?;
            }
        }
        Ok(())
    }

    /// Host number `index`, from zero.
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The underlay's namespace: a machine at [`Lab::SWITCH`] that every host reaches, for a store say.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Address of the underlay's own machine.
    pub const SWITCH: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);

    /// The name that everything of this lab begins with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves everything in place, for `cargo xtask lab down` to remove. Takes [`Options::keep`].
    pub fn keep(mut self) {
        self.kept = self.options.keep;
    }

    /// A folder that goes with the lab.
    pub fn folder(&self) -> PathBuf {
        folder_of(&self.name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        sweep::forget(&self.name);
        if self.kept {
            return;
        }
        if let Err(error) = sweep(&self.name) {
            eprintln!("clean up lab {}: {error:#}", self.name);
        }
    }
}

fn folder_of(lab: &str) -> PathBuf {
    Path::new("/tmp").join(lab)
}

/// Asks `ready` every 20 ms until it says yes, for at most `limit`; `what` is what was waited for.
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !ready().with_context(|| format!("wait for {what}"))? {
        sweep::check_interrupted()?;
        if started.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
