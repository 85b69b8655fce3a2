//! A lab: hosts and what is between them, made together and taken away together.
use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Result, bail};
use nix::unistd::Uid;

use crate::{
    command::sh,
    host::Host,
    names::folder_of,
    namespace::Namespace,
    options::{Options, SWITCH},
    path::RoutedPath,
    sweep::{self, sweep},
};

/// Hosts and the underlay between them. They are removed when this is dropped.
#[derive(Debug)]
pub struct Lab {
    pub(crate) name: String,
    pub(crate) options: Options,
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
        // The switch must not run bridged frames through a packet filter, whose hooks would be measured as time on the
        // wire.
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

    /// Tells every machine on the switch the routes to the networks behind the routers.
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

    /// The underlay's own machine, at [`Lab::SWITCH`], which every host reaches. A store may run here.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Address of the underlay's own machine.
    pub const SWITCH: Ipv4Addr = SWITCH;

    /// The name that everything of this lab begins with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves everything in place, for `cargo xtask lab down` to remove. This works only with [`Options::keep`].
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
