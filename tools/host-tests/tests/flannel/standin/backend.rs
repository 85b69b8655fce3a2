//! flannel's backends: what each does to the host's kernel for the own subnet and for the lease of every other host
//! (flannel pkg/backend/vxlan, udp, hostgw).
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail};
use ipnet::Ipv4Net;
use overlay_lab::{FlannelDevice, Relay, command};
use serde_json::Value;

use super::{config::Config, lease::Lease};

/// The interface by which the other hosts are reached.
#[derive(Clone, Debug)]
pub(super) struct Underlay {
    pub iface: String,
    pub address: Ipv4Addr,
    pub mtu: u32,
}

/// How a host reaches the containers of the others.
pub(super) trait Backend {
    /// The text behind the address in the own lease, beginning with a comma.
    fn lease_fields(&self) -> String;
    /// MTU for containers, in bytes.
    fn mtu(&self) -> u32;
    /// Makes what the own subnet needs.
    fn set_up(&mut self, subnet: Ipv4Net) -> Result<()>;
    /// Carries out a lease that was put, even if it was only renewed. Returns `false` if the lease is of another
    /// backend.
    fn put(&mut self, subnet: Ipv4Net, lease: &Lease) -> Result<bool>;
    /// Removes what was made for a lease that is gone.
    fn remove(&mut self, subnet: Ipv4Net, lease: &Lease) -> Result<()>;
}

/// The backend that the config asks for.
pub(super) fn backend(config: &Config, underlay: Underlay) -> Result<Box<dyn Backend>> {
    match config.backend.as_str() {
        "vxlan" => Ok(Box::new(Vxlan::new(config, underlay))),
        "udp" => Ok(Box::new(Udp::new(config, underlay))),
        "host-gw" => Ok(Box::new(HostGw { underlay })),
        other => bail!("this stands in for vxlan, udp and host-gw, not for {other}"),
    }
}

/// The kernel's VXLAN device, with a neighbour, a forwarding entry and a route per host.
struct Vxlan {
    underlay: Underlay,
    device: FlannelDevice,
    mac: String,
    is_new: bool,
    direct_routing: bool,
}

impl Vxlan {
    fn new(config: &Config, underlay: Underlay) -> Self {
        let port = if config.port == 0 { 8472 } else { config.port };
        let mtu = if config.mtu == 0 { underlay.mtu } else { config.mtu };
        let device = FlannelDevice::new(config.vni, port, mtu);
        // A device that exists and fits is kept, with its MAC address. With etcd as its store, flannel chooses a random
        // address for a new device.
        let old = shown(&format!("ip -j link show dev {}", device.name)).ok();
        let mac = old.as_ref().and_then(|link| Some(link[0]["address"].as_str()?.to_owned()));
        Self {
            underlay,
            device,
            is_new: mac.is_none(),
            mac: mac.unwrap_or_else(random_mac),
            direct_routing: config.direct_routing,
        }
    }

    /// Whether `DirectRouting` is on and no gateway is on the path.
    fn is_direct(&self, to: Ipv4Addr) -> bool {
        let route = || shown(&format!("ip -j route get {to}"));
        self.direct_routing && route().is_ok_and(|route| route[0]["gateway"].is_null())
    }
}

impl Backend for Vxlan {
    fn lease_fields(&self) -> String {
        format!(
            r#","BackendType":"vxlan","BackendData":{{"VNI":{},"VtepMAC":"{}"}}"#,
            self.device.vni, self.mac
        )
    }

    fn mtu(&self) -> u32 {
        self.device.mtu
    }

    fn set_up(&mut self, subnet: Ipv4Net) -> Result<()> {
        if !self.is_new {
            // flannel brings a device up that it finds, too, which fails if another has the port.
            return all(vec![format!("ip link set {} up", self.device.name)]);
        }
        let Underlay { iface, address, .. } = &self.underlay;
        all(self.device.make(&self.mac, *address, iface, &subnet.to_string())?)
    }

    fn put(&mut self, subnet: Ipv4Net, lease: &Lease) -> Result<bool> {
        let Some(mac) = lease.mac.as_ref().filter(|_| lease.backend == "vxlan") else { return Ok(false) };
        if self.is_direct(lease.public_ip) {
            self.underlay.put_route(subnet, lease.public_ip)?;
        } else {
            all(self.device.put_peer(&subnet.to_string(), mac, lease.public_ip)?)?;
        }
        Ok(true)
    }

    fn remove(&mut self, subnet: Ipv4Net, lease: &Lease) -> Result<()> {
        if self.is_direct(lease.public_ip) {
            return self.underlay.remove_route(subnet, lease.public_ip);
        }
        let mac = lease.mac.as_deref().context("a vxlan lease without a VtepMAC")?;
        all(self.device.remove_peer(&subnet.to_string(), mac, lease.public_ip)?)
    }
}

/// A relay in user space. It makes routes of the other leases whatever their type.
struct Udp {
    underlay: Underlay,
    network: Ipv4Net,
    port: u16,
    relay: Option<Relay>,
}

impl Udp {
    fn new(config: &Config, underlay: Underlay) -> Self {
        let port = if config.port == 0 { 8285 } else { config.port };
        Self { underlay, network: config.network, port, relay: None }
    }

    fn relay(&self) -> Result<&Relay> {
        self.relay.as_ref().context("the relay does not run yet")
    }
}

impl Backend for Udp {
    fn lease_fields(&self) -> String {
        String::new()
    }

    fn mtu(&self) -> u32 {
        self.underlay.mtu - Relay::OVERHEAD
    }

    fn set_up(&mut self, subnet: Ipv4Net) -> Result<()> {
        let Underlay { address, mtu, .. } = self.underlay;
        let (subnet, network) = (subnet.to_string(), self.network.to_string());
        self.relay = Some(Relay::start(&subnet, &network, address, self.port, mtu)?);
        Ok(())
    }

    fn put(&mut self, subnet: Ipv4Net, lease: &Lease) -> Result<bool> {
        self.relay()?.put_route(&subnet.to_string(), lease.public_ip)?;
        Ok(true)
    }

    fn remove(&mut self, subnet: Ipv4Net, _: &Lease) -> Result<()> {
        self.relay()?.remove_route(&subnet.to_string())
    }
}

/// Routes by the other hosts, and nothing else.
struct HostGw {
    underlay: Underlay,
}

impl Backend for HostGw {
    fn lease_fields(&self) -> String {
        r#","BackendType":"host-gw""#.to_owned()
    }

    fn mtu(&self) -> u32 {
        self.underlay.mtu
    }

    fn set_up(&mut self, _: Ipv4Net) -> Result<()> {
        Ok(())
    }

    fn put(&mut self, subnet: Ipv4Net, lease: &Lease) -> Result<bool> {
        if lease.backend != "host-gw" {
            return Ok(false);
        }
        self.underlay.put_route(subnet, lease.public_ip)?;
        Ok(true)
    }

    fn remove(&mut self, subnet: Ipv4Net, lease: &Lease) -> Result<()> {
        self.underlay.remove_route(subnet, lease.public_ip)
    }
}

impl Underlay {
    /// The interface with its first address and its MTU.
    pub(super) fn of(iface: &str) -> Result<Self> {
        let link = shown(&format!("ip -4 -j address show dev {iface}"))?;
        let address = link[0]["addr_info"][0]["local"].as_str().context("no address")?.parse()?;
        let mtu = link[0]["mtu"].as_u64().context("no mtu")?.try_into()?;
        Ok(Self { iface: iface.to_owned(), address, mtu })
    }

    fn put_route(&self, subnet: Ipv4Net, via: Ipv4Addr) -> Result<()> {
        all(vec![format!("ip route replace {subnet} via {via} dev {}", self.iface)])
    }

    fn remove_route(&self, subnet: Ipv4Net, via: Ipv4Addr) -> Result<()> {
        all(vec![format!("ip route delete {subnet} via {via} dev {}", self.iface)])
    }
}

fn all(commands: Vec<String>) -> Result<()> {
    commands.iter().try_for_each(|line| command::sh(line).map(drop))
}

fn shown(line: &str) -> Result<Value> {
    Ok(serde_json::from_str(&command::sh(line)?)?)
}

/// A MAC address that is locally administered and unicast (flannel pkg/mac/mac.go).
fn random_mac() -> String {
    let mut octets: [u8; 6] = rand::random();
    octets[0] = octets[0] & 0xfe | 0x02;
    octets.map(|octet| format!("{octet:02x}")).join(":")
}
