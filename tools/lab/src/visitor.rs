//! Containers that live for a moment, several at a time. They are network namespaces without names, which end with
//! their threads.
use std::{
    collections::BTreeSet,
    fs::File,
    io::Write as _,
    net::Ipv4Addr,
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
    sync::{Barrier, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sched::{CloneFlags, unshare},
};

use crate::{
    interrupt::check_interrupted,
    names::MARK,
    namespace::{Namespace, join},
    wait::wait_until,
};

/// The bridge on which short-lived containers stay, and how they are connected to it.
#[derive(Clone, Debug)]
pub struct Guesthouse {
    pub(crate) host: Namespace,
    /// Name of the bridge.
    pub bridge: String,
    /// The bridge's address, which is the containers' default route.
    pub gateway: Ipv4Addr,
    /// Length of the subnet's prefix.
    pub prefix_len: u8,
    /// MTU of the containers' links in bytes.
    pub mtu: u32,
}

/// The link group of the containers' veths, by which one request deletes all of them. One request for each would wait
/// for the kernel's grace periods every time.
const GROUP: u32 = 7;

impl Guesthouse {
    /// Makes one container for each port and address, runs `work` in all of them at once, and removes their veths, as a
    /// container runtime does. It returns when all are gone. Only one call may run at a time.
    pub fn visit(
        &self,
        party: &[(String, Ipv4Addr)],
        work: impl Fn(usize, Ipv4Addr) -> Result<()> + Sync,
    ) -> Result<()> {
        check_interrupted()?;
        // All threads pass this barrier together after each of these steps: all namespaces exist; the links exist; they
        // are configured inside; the bridge forwards; the work is done; the links are deleted. The last step is needed
        // because a namespace that ends would delete its own link.
        let (step, work) = (Barrier::new(party.len() + 1), &work);
        let (made, namespaces) = mpsc::channel();
        thread::scope(|scope| {
            let mut visitors = Vec::new();
            for (index, (_, address)) in party.iter().enumerate() {
                let (made, step) = (made.clone(), &step);
                visitors.push(scope.spawn(move || {
                    let inside = enter_own();
                    let path = inside.as_ref().ok().map(path);
                    let sent = made.send((index, path));
                    step.wait();
                    step.wait();
                    let ready = inside.context("make a network namespace").and_then(|inside| {
                        sent.context("nobody makes links")?;
                        self.configure(*address)?;
                        Ok(inside)
                    });
                    step.wait();
                    step.wait();
                    let done = ready.and_then(|_inside| work(index, *address));
                    step.wait();
                    step.wait();
                    done
                }));
            }
            step.wait();
            let linked = self.link(party, namespaces.iter().take(party.len()));
            step.wait();
            step.wait();
            let forwarding = self.wait_for_ports(party);
            step.wait();
            step.wait();
            let removed = self.on_host(format!("link delete group {GROUP}\n"));
            step.wait();
            for visitor in visitors {
                match visitor.join() {
                    Ok(done) => done?,
                    Err(_) => bail!("a visitor panicked"),
                }
            }
            linked.and(forwarding).and(removed)
        })
    }

    fn link(
        &self,
        party: &[(String, Ipv4Addr)],
        namespaces: impl Iterator<Item = (usize, Option<String>)>,
    ) -> Result<()> {
        let Self { bridge, mtu, .. } = self;
        let mut lines = String::new();
        for (index, netns) in namespaces {
            let (port, netns) = (&party[index].0, netns.context("a visitor without a namespace")?);
            lines += &format!(
                "link add {port} mtu {mtu} group {GROUP} type veth peer name eth0 mtu {mtu} netns {netns}\n\
                 link set {port} master {bridge} up\n"
            );
        }
        self.on_host(lines)
    }

    /// Waits until the kernel's link watch has seen the carrier of every port, some milliseconds after the other end
    /// came up. Before that the bridge accepts nothing from a port: a container's first ARP request would be lost, and
    /// the next one comes a second later.
    fn wait_for_ports(&self, party: &[(String, Ipv4Addr)]) -> Result<()> {
        let mut waiting: BTreeSet<String> = party.iter().map(|(port, _)| port.clone()).collect();
        join(self.host.thread(move || {
            wait_until("ports of the bridge", Duration::from_secs(10), || {
                for interface in getifaddrs()? {
                    if interface.flags.contains(InterfaceFlags::IFF_RUNNING) {
                        waiting.remove(&interface.interface_name);
                    }
                }
                Ok(waiting.is_empty())
            })
        }))
    }

    fn on_host(&self, lines: String) -> Result<()> {
        let lab = self.host.lab().to_owned();
        join(self.host.thread(move || ip(&lab, &lines)))
    }

    fn configure(&self, address: Ipv4Addr) -> Result<()> {
        let Self { gateway, prefix_len, .. } = self;
        let lines = format!(
            "address add {address}/{prefix_len} dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"
        );
        ip(self.host.lab(), &lines)
    }
}

fn enter_own() -> Result<File> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    Ok(File::open("/proc/thread-self/ns/net")?)
}

/// A path to the namespace, which has no name in /run/netns. `ip` opens anything with a slash in it as a path.
fn path(namespace: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

/// Runs several `ip` commands by one process, in this thread's namespace.
fn ip(lab: &str, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).env(MARK, lab);
    let mut ip = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start ip")?;
    ip.stdin.take().context("ip's input")?.write_all(lines.as_bytes())?;
    let output = ip.wait_with_output()?;
    ensure!(output.status.success(), "ip: {}: {lines}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
