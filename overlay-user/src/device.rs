//! `overlay0`: the kernel's own tunnel device, which holds the UDP port and carries whatever the fast path does not.
use ipnet::Ipv4Net;
use nix::errno::Errno;
use overlay_common::wire;

use crate::{
    mac::Mac,
    netlink::{
        Address, Link, LinkChange, LinkKind, Netlink, NetlinkError, NewTunnel, Route, TABLE_MAIN, Vxlan,
    },
};

/// What the device must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Interface name, `overlay0` unless the operator says otherwise.
    pub name: String,
    /// UDP port, in the machine's order.
    pub port: u16,
    /// VXLAN network identifier.
    pub vni: u32,
    /// The wanted MAC address. `None` keeps what an existing device has, and makes one up for a new device.
    pub mac: Option<Mac>,
    /// MTU of the device in bytes, see [`mtu`].
    pub mtu: u32,
    /// The subnet this host leased: its base address becomes the device's (flannel's rule, its pkg/backend/vxlan).
    pub subnet: Ipv4Net,
    /// The whole overlay, routed through the device.
    pub network: Ipv4Net,
}

/// The device as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Interface index.
    pub ifindex: u32,
    /// The VtepMAC, to be published in the lease.
    pub mac: Mac,
    /// The kernel itself drops foreign VNIs (Linux 5.18 and later).
    pub vnifilter: bool,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Another VXLAN device has the port.
    #[error(
        "udp port {port} belongs to vxlan device {holder} (vni {vni}): a host has one owner per port. To move over, stop \
         what manages it (flannel: `systemctl stop flanneld`), run `ip link delete {holder}`, and start the agent again"
    )]
    PortTaken {
        /// The port, in the machine's order.
        port: u16,
        /// Name of the device that has it.
        holder: String,
        /// That device's VNI.
        vni: u32,
    },
    /// Another network of ours has the VNI on this port.
    #[error(
        "vni {vni} on udp port {port} belongs to {holder}: networks that share a port need different VNIs (`Backend.VNI` \
         in the network's config)"
    )]
    VniTaken {
        /// The VNI.
        vni: u32,
        /// The port, in the machine's order.
        port: u16,
        /// Name of the device that has it, or of all that may.
        holder: String,
    },
    /// A socket, not a device, has the port.
    #[error("udp port {port} is bound by a process: find it with `ss -ulnp 'sport = :{port}'` and stop it")]
    PortBound {
        /// The port, in the machine's order.
        port: u16,
    },
    /// The name is taken by something else.
    #[error(
        "interface {name} exists and is a {kind}, not a vxlan device: rename or delete it, or choose another --device"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// What has it.
        kind: String,
    },
    /// Somebody else routes the overlay.
    #[error(
        "{network} is already routed through interface {interface}: remove that route first \
         (`ip route delete {network} dev {interface}`)"
    )]
    RouteTaken {
        /// The destination.
        network: Ipv4Net,
        /// Name of the interface.
        interface: String,
    },
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
}

/// MTU inside the overlay: the underlay's less what encapsulation adds (50 bytes over IPv4).
pub const fn mtu(underlay: u32) -> u32 {
    underlay.saturating_sub(wire::OVERHEAD as u32)
}

/// A device that is there, perhaps not up yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Interface index.
    pub ifindex: u32,
    /// It was made just now, and is down.
    pub made: bool,
}

/// Sees to it that there is a device to attach programs to. A new one stays down, and hears nothing, until [`ensure`]:
/// so that no frame enters the stack before the program that checks it is in place.
pub async fn prepare(netlink: &Netlink, spec: &DeviceSpec) -> Result<Prepared, DeviceError> {
    let links = netlink.links().await?;
    refuse_foreign_route(netlink, spec, &links).await?;
    match links.iter().find(|link| link.name == spec.name).map(|link| (link, &link.kind)) {
        Some((link, LinkKind::Vxlan(vxlan))) if fits(vxlan, spec) => {
            return Ok(Prepared { ifindex: link.index, made: false });
        }
        Some((link, LinkKind::Vxlan(vxlan))) => {
            log::warn!(
                "{} is a vxlan device of another kind (port {}): making it anew",
                spec.name,
                vxlan.port
            );
            refuse_taken_port(spec, &links)?;
            netlink.remove_link(link.index).await?;
        }
        Some((_, kind)) => {
            return Err(DeviceError::NameTaken { name: spec.name.clone(), kind: kind_name(kind) });
        }
        None => {}
    }
    let tunnel = NewTunnel {
        name: spec.name.clone(),
        port: spec.port,
        mac: spec.mac.unwrap_or_else(Mac::random),
        mtu: spec.mtu,
    };
    netlink.create_tunnel(&tunnel).await.map_err(|error| port_error(error, spec, &links))?;
    let link = netlink.link_named(&spec.name).await?.ok_or_else(|| vanished(spec))?;
    Ok(Prepared { ifindex: link.index, made: true })
}

/// Makes the device what it must be. One that fits is adopted and repaired without being taken down; one of our name
/// with another port is made anew; on error a device made here is removed again, and an adopted one keeps its routes.
pub async fn ensure(netlink: &Netlink, spec: &DeviceSpec) -> Result<Device, DeviceError> {
    let prepared = prepare(netlink, spec).await?;
    let link = netlink.link_named(&spec.name).await?.ok_or_else(|| vanished(spec))?;
    let device = set_up(netlink, spec, &link).await;
    if device.is_err()
        && prepared.made
        && let Err(error) = netlink.remove_link(link.index).await
    {
        log::warn!("{} stays half-made: {error}", spec.name);
    }
    device
}

/// Removes the device, its address and its route. No such device is no error; one of another kind is left alone.
pub async fn remove(netlink: &Netlink, name: &str) -> Result<(), DeviceError> {
    match netlink.link_named(name).await? {
        Some(link) if matches!(link.kind, LinkKind::Vxlan(_)) => Ok(netlink.remove_link(link.index).await?),
        Some(link) => Err(DeviceError::NameTaken { name: link.name, kind: kind_name(&link.kind) }),
        None => Ok(()),
    }
}

fn fits(vxlan: &Vxlan, spec: &DeviceSpec) -> bool {
    vxlan.collect_metadata && vxlan.port == spec.port
}

async fn set_up(netlink: &Netlink, spec: &DeviceSpec, link: &Link) -> Result<Device, DeviceError> {
    let LinkKind::Vxlan(vxlan) = link.kind else {
        return Err(vanished(spec).into());
    };
    let known = link.mac.ok_or_else(|| vanished(spec))?;
    let mac = spec.mac.unwrap_or(known);
    let change = LinkChange {
        mac: (mac != known).then_some(mac),
        mtu: (link.mtu != spec.mtu).then_some(spec.mtu),
        arp: (!link.noarp).then_some(false),
        up: None,
    };
    if change != LinkChange::default() {
        netlink.change_link(link.index, change).await?;
    }
    if let Err(error) = netlink.no_generated_addresses(link.index).await {
        // Without IPv6 there is nothing to generate.
        log::debug!("{error}");
    }
    if vxlan.vnifilter {
        match netlink.add_vni(link.index, spec.vni) {
            Err(error) if error.errno == Errno::EEXIST => return Err(vni_taken(netlink, spec).await?),
            added => added?,
        }
    }
    if !link.up {
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        if let Err(error) = netlink.change_link(link.index, up).await {
            return Err(port_error(error, spec, &netlink.links().await?));
        }
    }
    set_addresses(netlink, spec, link.index).await?;
    Ok(Device { ifindex: link.index, mac, vnifilter: vxlan.vnifilter })
}

/// Address before route, and what is stale last: deleting an address takes the routes that prefer it along.
async fn set_addresses(netlink: &Netlink, spec: &DeviceSpec, link: u32) -> Result<(), DeviceError> {
    let wanted = Address { link, address: spec.subnet.network(), prefix_len: 32 };
    let addresses = netlink.addresses().await?;
    if !addresses.contains(&wanted) {
        netlink.put_address(wanted).await?;
    }
    let route = Route {
        destination: spec.network,
        link: Some(link),
        gateway: None,
        source: Some(wanted.address),
        metric: 0,
        table: TABLE_MAIN,
    };
    if !netlink.routes().await?.contains(&route) {
        netlink.put_route(&route).await?;
    }
    for stale in addresses.into_iter().filter(|address| address.link == link && *address != wanted) {
        netlink.remove_address(stale).await?;
    }
    Ok(())
}

async fn refuse_foreign_route(
    netlink: &Netlink,
    spec: &DeviceSpec,
    links: &[Link],
) -> Result<(), DeviceError> {
    let name = |index| {
        let link = links.iter().find(|link| Some(link.index) == index);
        link.map_or("?", |link| link.name.as_str())
    };
    for route in netlink.routes().await? {
        if route.destination == spec.network && route.metric == 0 && name(route.link) != spec.name {
            return Err(DeviceError::RouteTaken {
                network: spec.network,
                interface: name(route.link).to_owned(),
            });
        }
    }
    Ok(())
}

fn refuse_taken_port(spec: &DeviceSpec, links: &[Link]) -> Result<(), DeviceError> {
    // Filtering devices share a port.
    let holder = port_holders(spec, links).find(|(_, vxlan)| !vxlan.vnifilter);
    holder.map_or(Ok(()), |(holder, vxlan)| {
        Err(DeviceError::PortTaken { port: spec.port, holder: holder.name.clone(), vni: vxlan.vni })
    })
}

async fn vni_taken(netlink: &Netlink, spec: &DeviceSpec) -> Result<DeviceError, NetlinkError> {
    let links = netlink.links().await?;
    let names: Vec<&str> = port_holders(spec, &links).map(|(link, _)| link.name.as_str()).collect();
    Ok(DeviceError::VniTaken { vni: spec.vni, port: spec.port, holder: names.join(" or ") })
}

/// The VXLAN devices, other than ours, that have our port.
fn port_holders<'a>(spec: &DeviceSpec, links: &'a [Link]) -> impl Iterator<Item = (&'a Link, Vxlan)> {
    links.iter().filter_map(|link| match link.kind {
        LinkKind::Vxlan(vxlan) if vxlan.port == spec.port && link.name != spec.name => Some((link, vxlan)),
        _ => None,
    })
}

/// What "address in use" (the socket) or "file exists" (a device with the same VNI and port) means here.
fn port_error(error: NetlinkError, spec: &DeviceSpec, links: &[Link]) -> DeviceError {
    if !matches!(error.errno, Errno::EADDRINUSE | Errno::EEXIST) {
        return error.into();
    }
    match refuse_taken_port(spec, links) {
        Err(taken) => taken,
        Ok(()) if error.errno == Errno::EADDRINUSE => DeviceError::PortBound { port: spec.port },
        Ok(()) => error.into(),
    }
}

fn vanished(spec: &DeviceSpec) -> NetlinkError {
    NetlinkError {
        action: format!("read back interface {}", spec.name),
        detail: "it went away while it was being set up; something else on this host removes it".into(),
        errno: Errno::ENODEV,
    }
}

fn kind_name(kind: &LinkKind) -> String {
    match kind {
        LinkKind::Bridge => "bridge".into(),
        LinkKind::Veth => "veth".into(),
        LinkKind::Vxlan(_) => "vxlan device".into(),
        LinkKind::Other(name) if name.is_empty() => "physical device".into(),
        LinkKind::Other(name) => format!("{name} device"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtu_leaves_room_for_the_outer_headers() {
        assert_eq!(mtu(1500), 1450);
        assert_eq!(mtu(9000), 8950);
        assert_eq!(mtu(10), 0);
    }
}
