//! flannel on a host of the lab. Its VXLAN backend's work on the kernel is written as commands, in flannel's own order
//! (flannel pkg/backend/vxlan/vxlan_network.go); its daemon, or what stands in for it, runs as a process.
use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use crate::{host::Host, namespace::Running, subnet::address_in, wait::wait_until};

/// The tunnel device of a host.
#[derive(Clone, Debug)]
pub struct FlannelDevice {
    /// `flannel.<VNI>`
    pub name: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Size in bytes of the largest inner IP packet.
    pub mtu: u32,
}

impl FlannelDevice {
    /// The device of `vni`. If the config's MTU is 0, flannel takes the underlay's and subtracts 50 bytes of outer
    /// headers.
    pub fn new(vni: u32, port: u16, underlay_mtu: u32) -> Self {
        Self { name: format!("flannel.{vni}"), vni, port, mtu: underlay_mtu - 50 }
    }

    /// Makes the device, without a queue as netlink's library for Go does, on a host whose interface `underlay` has the address `local` and which owns `subnet`.
    pub fn make(&self, mac: &str, local: Ipv4Addr, underlay: &str, subnet: &str) -> Result<Vec<String>> {
        let Self { name, vni, port, mtu } = self;
        let base = address_in(subnet, 0)?;
        Ok(vec![
            format!(
                "ip link add {name} txqueuelen 0 address {mac} mtu {mtu} type vxlan id {vni} local {local} dev {underlay} dstport {port} \
                 srcport 0 0 nolearning udpcsum"
            ),
            format!("ip address add {base}/32 dev {name}"),
            format!("ip link set {name} up"),
        ])
    }

    /// Adds or alters a peer: neighbour, forwarding entry, route.
    pub fn put_peer(&self, subnet: &str, mac: &str, public_ip: Ipv4Addr) -> Result<Vec<String>> {
        let (name, gateway) = (&self.name, address_in(subnet, 0)?);
        Ok(vec![
            format!("ip neighbour replace {gateway} lladdr {mac} dev {name} nud permanent"),
            format!("bridge fdb replace {mac} dev {name} dst {public_ip} self permanent"),
            format!("ip route replace {subnet} via {gateway} dev {name} onlink"),
        ])
    }

    /// Removes a peer's entries in the order in which flannel does it.
    pub fn remove_peer(&self, subnet: &str, mac: &str, public_ip: Ipv4Addr) -> Result<Vec<String>> {
        let (name, gateway) = (&self.name, address_in(subnet, 0)?);
        Ok(vec![
            format!("ip neighbour delete {gateway} lladdr {mac} dev {name}"),
            format!("bridge fdb delete {mac} dev {name} dst {public_ip} self"),
            format!("ip route delete {subnet} via {gateway} dev {name} onlink"),
        ])
    }
}

/// A running flanneld, or what stands in for it. It is killed when this is dropped; on a panic its log is shown. As
/// flannel does, it leaves its device, routes and lease behind.
#[derive(Debug)]
pub struct Flanneld {
    process: Running,
    log: PathBuf,
}

impl Host {
    /// Starts the command `words` with flanneld's own environment variables, which name the etcd, the interface and the
    /// path of subnet.env, and waits until that file is written.
    pub fn start_flanneld(&self, words: &[&str], etcd: &str) -> Result<Flanneld> {
        let log = self.folder().join("flanneld.log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let subnet_file = self.subnet_file();
        let written = || fs::metadata(&subnet_file).ok().map(|file| file.ino());
        let before = written();
        let mut command = self.namespace().command(words)?;
        command
            .env("FLANNELD_ETCD_ENDPOINTS", etcd)
            .env("FLANNELD_IFACE", "eth0")
            .env("FLANNELD_SUBNET_FILE", &subnet_file)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let mut flanneld = Flanneld { process: Running::start(&mut command)?, log };
        // flanneld writes a new file and renames it over the old one, so a file that is there is complete.
        wait_until("flanneld's subnet.env", Duration::from_secs(20), || {
            if let Some(status) = flanneld.process.status()? {
                bail!("flanneld ended with {status}: {}", flanneld.log());
            }
            Ok(written().is_some_and(|file| Some(file) != before))
        })
        .with_context(|| flanneld.log())?;
        Ok(flanneld)
    }
}

impl Flanneld {
    /// What this flanneld and its predecessors on this host have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends SIGTERM and waits until flanneld has ended.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(Duration::from_secs(10))
    }

    /// Waits until flanneld has ended by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.wait(limit)
    }
}

impl Drop for Flanneld {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}
