//! A host of the overlay that has the kernel's VXLAN device, set up by hand as flannel does it, in place of our agent.
//! Our programs must be able to talk with it.
use std::net::Ipv4Addr;

use anyhow::Result;

use crate::{flannel::FlannelDevice, host::Host};

/// A host without an agent: it has `flannel.<VNI>`, and a neighbour, a forwarding entry and a route for each peer.
#[derive(Clone, Debug)]
pub struct ForeignVxlan {
    host: Host,
    device: FlannelDevice,
    mac: String,
}

impl ForeignVxlan {
    /// Makes the device on `host`, which owns `subnet`. The bridge and the containers are made as on any host.
    pub fn new(host: &Host, subnet: &str, vni: u32, port: u16) -> Result<Self> {
        let device = FlannelDevice::new(vni, port, host.mtu()?);
        // The last byte is the host's number, which makes a capture readable.
        let mac = format!("02:00:00:00:00:{:02x}", host.address().octets()[3]);
        let foreign = Self { host: host.clone(), device, mac };
        foreign.run(foreign.device.make(&foreign.mac, host.address(), "eth0", subnet)?)?;
        Ok(foreign)
    }

    /// MAC address of the device: the `VtepMAC` of this host's lease.
    pub fn mac(&self) -> &str {
        &self.mac
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device.name
    }

    /// Gives the device another MAC address, as it has after a host made its device anew.
    pub fn set_mac(&mut self, mac: &str) -> Result<()> {
        self.host.namespace().ip(&format!("link set {} address {mac}", self.device.name))?;
        mac.clone_into(&mut self.mac);
        Ok(())
    }

    /// Adds or alters a peer.
    pub fn put_peer(&self, subnet: &str, mac: &str, public_ip: Ipv4Addr) -> Result<()> {
        self.run(self.device.put_peer(subnet, mac, public_ip)?)
    }

    fn run(&self, commands: Vec<String>) -> Result<()> {
        commands.iter().try_for_each(|command| self.host.exec(command).map(drop))
    }
}
