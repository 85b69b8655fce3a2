//! Containers that live for a moment, made several at a time: network namespaces without names, which end with their
//! threads.
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

/// Where visitors stay, and how they are connected there.
#[derive(Clone, Debug)]
pub struct Guesthouse {
    pub(crate) host: Namespace,
    /// A bridge of the host.
    pub bridge: String,
    /// The bridge's address, their default route.
    pub gateway: Ipv4Addr,
    /// Length of the subnet's prefix.
    pub prefix_len: u8,
    /// MTU of their links in bytes.
    pub mtu: u32,
}

/// The links of one party, to be deleted by one request: each of its own would wait for the kernel's grace periods.
const GROUP: u32 = 7;

impl Guesthouse {
    /// Makes one container for each port and address, runs `work` in all of them at once, and removes their veths, as a
    /// container runtime does. Blocks until all are gone. One party at a time.
    pub fn visit(
        &self,
        party: &[(String, Ipv4Addr)],
        work: impl Fn(usize, Ipv4Addr) -> Result<()> + Sync,
    ) -> Result<()> {
        check_interrupted()?;
        // Passed when all namespaces are there, when the links are, when their insides are, when the bridge forwards, when
        // all work is done, and when the links are gone: a namespace that ends would take its own along.
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

    /// The bridge takes nothing from a port before the kernel's link watch has seen its carrier, some milliseconds after
    /// the other end came up: a container's first ARP request would be lost, and the next one is a second away.
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

/// `ip` opens a path with a slash as it is; /run/netns has no name for these.
fn path(namespace: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

/// Several `ip` commands by one process, in this thread's namespace.
fn ip(lab: &str, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).env(MARK, lab);
    let mut ip = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start ip")?;
    ip.stdin.take().context("ip's input")?.write_all(lines.as_bytes())?;
    let output = ip.wait_with_output()?;
    ensure!(output.status.success(), "ip: {}: {lines}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
