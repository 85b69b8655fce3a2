//! A host of the lab: its link to the underlay, its bridge, its folders, its containers.
use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    container::Container,
    names::folder_of,
    namespace::{Namespace, Running},
    options::Options,
    path::RoutedPath,
    subnet::{address_in, length_of},
    visitor::Guesthouse,
};

/// A handle on one host. It reaches its underlay through `eth0`; its containers are ports of `br0`.
#[derive(Clone, Debug)]
pub struct Host {
    number: u8,
    namespace: Namespace,
    path: Option<RoutedPath>,
    folder: PathBuf,
    keep: bool,
}

impl Host {
    pub(crate) fn new(lab: &str, number: u8, options: &Options, switch: &Namespace) -> Result<Self> {
        let name = format!("h{number}");
        let mut host = Self {
            number,
            path: None,
            namespace: Namespace::named(lab, &name, !options.keep),
            folder: folder_of(lab).join(&name),
            keep: options.keep,
        };
        fs::create_dir_all(&host.folder)?;
        // The agent makes the folders below; only the root itself must be there.
        fs::create_dir_all(host.bpf_root())?;
        host.namespace.create()?;
        if number > options.hosts - options.behind_routers {
            host.path = Some(RoutedPath::new(lab, number, options, switch, &host.namespace)?);
        } else {
            let (mtu, inside) = (options.mtu, host.namespace.name());
            // Both ends are made in their namespaces at once, so that nothing ever shows in the machine's own.
            switch.ip(&format!(
                "link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {inside}"
            ))?;
            switch.ip(&format!("link set {name} master br0 up"))?;
            if options.wire_like {
                // A switch passes frames on as they come, so GRO is off. With GRO, a TCP stream without outer headers
                // would be merged and cross the switch by the dozen, whereas VXLAN frames would cross one by one.
                switch.exec(&format!("ethtool -K {name} tso off gso off tx off gro off"))?;
            }
        }
        host.namespace.ip(&format!("address add {}/24 dev eth0", host.address()))?;
        host.namespace.ip("link set eth0 up")?;
        if host.path.is_some() {
            host.namespace.ip(&format!("route add default via 10.99.{number}.254"))?;
        }
        if options.wire_like {
            host.exec("ethtool -K eth0 tso off gso off tx off gro on")?;
        }
        host.namespace.sysctl("ipv4/ip_forward", "1")?;
        for which in ["all", "default", "eth0"] {
            host.namespace.sysctl(&format!("ipv4/conf/{which}/rp_filter"), &options.rp_filter.to_string())?;
        }
        Ok(host)
    }

    /// The host's name in messages and files, such as `h1`.
    pub fn name(&self) -> String {
        format!("h{}", self.number)
    }

    /// The host's address on the underlay.
    pub fn address(&self) -> Ipv4Addr {
        match self.path {
            Some(_) => RoutedPath::address(self.number),
            None => Ipv4Addr::new(10, 99, 0, self.number),
        }
    }

    /// The routers between the host and the switch, if there are any.
    pub fn path(&self) -> Option<&RoutedPath> {
        self.path.as_ref()
    }

    /// The host's network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The host's own folder, which goes with the lab.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The host's part of the lab's bpffs, for `--bpf-root`.
    pub fn bpf_root(&self) -> PathBuf {
        folder_of(self.namespace.lab()).join("bpf").join(self.name())
    }

    /// Whether the lab outlives this process.
    pub(crate) fn keep(&self) -> bool {
        self.keep
    }

    /// Runs a command on the host. The words are separated by spaces; no shell sees them.
    pub fn exec(&self, line: &str) -> Result<String> {
        self.namespace.exec(line)
    }

    /// Starts a command on the host.
    pub fn spawn(&self, line: &str) -> Result<Running> {
        self.namespace.spawn(line)
    }

    /// Sets the MTU of the host's underlay device, in bytes.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        self.namespace.ip(&format!("link set eth0 mtu {mtu}"))
    }

    /// MTU of the host's underlay device, in bytes.
    pub fn mtu(&self) -> Result<u32> {
        let link = self.exec("ip -o link show dev eth0")?;
        let mut words = link.split_whitespace().skip_while(|word| *word != "mtu");
        words.nth(1).with_context(|| format!("no mtu in {link}"))?.parse().context("an mtu that is no number")
    }

    /// Makes `br0` with the first address of `subnet` (such as `10.244.1.0/24`), as Docker and CNI plugins do.
    pub fn add_bridge(&self, subnet: &str, mtu: u32) -> Result<()> {
        self.add_bridge_named("br0", subnet, mtu)
    }

    /// Makes a bridge as [`Host::add_bridge`] does, with another name.
    pub fn add_bridge_named(&self, bridge: &str, subnet: &str, mtu: u32) -> Result<()> {
        let (gateway, length) = (address_in(subnet, 1)?, length_of(subnet)?);
        // Docker and CNI plugins set the MAC address too. A bridge without a MAC address of its own takes that of a
        // port, and another one when that port goes; containers would then send to a MAC address that nobody has until
        // they ask again.
        let [a, b, c, d] = gateway.octets();
        self.namespace
            .ip(&format!("link add {bridge} address 02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x} type bridge"))?;
        self.namespace.ip(&format!("address add {gateway}/{length} dev {bridge}"))?;
        self.namespace.ip(&format!("link set {bridge} mtu {mtu} up"))
    }

    /// Makes a container on `br0`. Its address is number `last` of the bridge's subnet; its default route leads to the
    /// bridge.
    pub fn add_container(&self, name: &str, subnet: &str, last: u8, mtu: u32) -> Result<Container> {
        self.add_container_on("br0", name, subnet, last, mtu)
    }

    /// Makes a container as [`Host::add_container`] does, on another bridge.
    pub fn add_container_on(
        &self,
        bridge: &str,
        name: &str,
        subnet: &str,
        last: u8,
        mtu: u32,
    ) -> Result<Container> {
        let address = address_in(subnet, last)?;
        let (namespace, port) = self.add_namespace(name, mtu)?;
        self.namespace.ip(&format!("link set {port} master {bridge} up"))?;
        namespace.ip(&format!("address add {address}/{} dev eth0", length_of(subnet)?))?;
        namespace.ip("link set eth0 up")?;
        namespace.ip(&format!("route add default via {}", address_in(subnet, 1)?))?;
        Ok(Container::new(namespace, address, port))
    }

    /// Makes the namespace of a container, and a veth into it whose name on the host is returned.
    fn add_namespace(&self, name: &str, mtu: u32) -> Result<(Namespace, String)> {
        let namespace =
            Namespace::named(self.namespace.lab(), &format!("{}-{name}", self.name()), !self.keep);
        namespace.create()?;
        let (inside, port) = (namespace.name(), format!("v{name}"));
        self.namespace
            .ip(&format!("link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {inside}"))?;
        Ok((namespace, port))
    }

    /// Makes a container without a bridge, as the CNI plugin `ptp` does: the gateway's address is on the veth itself,
    /// and a host route leads to the container.
    pub fn add_routed_container(&self, name: &str, subnet: &str, last: u8, mtu: u32) -> Result<Container> {
        let (address, gateway) = (address_in(subnet, last)?, address_in(subnet, 1)?);
        let (namespace, port) = self.add_namespace(name, mtu)?;
        self.namespace.ip(&format!("address add {gateway}/32 dev {port}"))?;
        self.namespace.ip(&format!("link set {port} up"))?;
        self.namespace.ip(&format!("route add {address}/32 dev {port} scope host"))?;
        namespace.ip(&format!("address add {address}/32 dev eth0"))?;
        namespace.ip("link set eth0 up")?;
        namespace.ip(&format!("route add {gateway}/32 dev eth0 scope link"))?;
        namespace.ip(&format!("route add default via {gateway}"))?;
        Ok(Container::new(namespace, address, port))
    }

    /// Has containers come and go on `br0`, whose subnet is `subnet`.
    pub fn guesthouse(&self, subnet: &str, mtu: u32) -> Result<Guesthouse> {
        Ok(Guesthouse {
            host: self.namespace.clone(),
            bridge: "br0".into(),
            gateway: address_in(subnet, 1)?,
            prefix_len: length_of(subnet)?,
            mtu,
        })
    }
}
