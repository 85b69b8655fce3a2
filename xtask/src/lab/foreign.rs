//! The kernel's own VXLAN device as a host of the overlay, set up the way flannel does it (flannel
//! pkg/backend/vxlan/vxlan_network.go): what our programs must talk with, made by nobody here.
use std::net::Ipv4Addr;

use anyhow::Result;

use super::{Host, host::address_in};

/// A host without an agent: `flannel.<VNI>`, and neighbour, forwarding entry and route per peer.
#[derive(Clone, Debug)]
pub struct ForeignVxlan {
    host: Host,
    device: String,
    mac: String,
}

impl ForeignVxlan {
    /// Makes the device on `host`, which owns `subnet`. Bridge and containers are made as on any host.
    pub fn new(host: &Host, subnet: &str, vni: u32, port: u16) -> Result<Self> {
        let device = format!("flannel.{vni}");
        let underlay_mtu = host.mtu()?;
        // Of the host's number, so that a capture is readable; a later device gets another one by `set_mac`.
        let mac = format!("02:00:00:00:00:{:02x}", host.address().octets()[3]);
        let namespace = host.namespace();
        namespace.ip(&format!(
            "link add {device} address {mac} mtu {} type vxlan id {vni} local {} dev eth0 dstport {port} srcport 0 0 \
             nolearning udpcsum",
            underlay_mtu - 50,
            host.address()
        ))?;
        namespace.ip(&format!("address add {}/32 dev {device}", address_in(subnet, 0)?))?;
        namespace.ip(&format!("link set {device} up"))?;
        Ok(Self { host: host.clone(), device, mac })
    }

    /// MAC address of the device: the `VtepMAC` of this host's lease.
    pub fn mac(&self) -> &str {
        &self.mac
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Gives the device another MAC address, as a host that made it anew.
    pub fn set_mac(&mut self, mac: &str) -> Result<()> {
        self.host.namespace().ip(&format!("link set {} address {mac}", self.device))?;
        mac.clone_into(&mut self.mac);
        Ok(())
    }

    /// Adds or alters a peer: in flannel's order, neighbour, forwarding entry, route.
    pub fn put_peer(&self, subnet: &str, mac: &str, public_ip: Ipv4Addr) -> Result<()> {
        let (device, gateway) = (&self.device, address_in(subnet, 0)?);
        self.host
            .namespace()
            .ip(&format!("neighbour replace {gateway} lladdr {mac} dev {device} nud permanent"))?;
        self.host.exec(&format!("bridge fdb replace {mac} dev {device} dst {public_ip} self permanent"))?;
        self.host.namespace().ip(&format!("route replace {subnet} via {gateway} dev {device} onlink"))
    }
}
