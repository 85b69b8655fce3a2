//! The VXLAN device, and the question who else has its UDP port.
use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;

use super::spec::DeviceSpec;
use crate::{
    host::{
        netlink::{Link, LinkKind, Netlink, NetlinkError, NewTunnel, Vxlan},
        port_holder,
    },
    model::mac::Mac,
};

/// Makes the device, and leaves it down. It takes the place of a device that has its name.
pub(super) async fn make(
    netlink: &Netlink,
    spec: &DeviceSpec,
    port: u16,
    mac: Option<Mac>,
    present: Option<&Link>,
    links: &[Link],
) -> Result<()> {
    if let Some(link) = present {
        // The old device is removed only once it is known that the new one can have the port.
        refuse_taken_port(spec, port, links)?;
        netlink.remove_link(link.index).await?;
    }
    let tunnel =
        NewTunnel { name: spec.name.clone(), port, mac: mac.unwrap_or_else(Mac::random), mtu: spec.mtu };
    netlink.create_tunnel(&tunnel).await.map_err(|error| port_error(error, spec, port, links))
}

/// Makes a filtering device accept the VNI.
pub(super) async fn accept(
    netlink: &Netlink,
    spec: &DeviceSpec,
    link: u32,
    port: u16,
    vni: u32,
) -> Result<()> {
    match netlink.add_vni(link, vni) {
        Err(error) if error.errno == Errno::EEXIST => {
            let links = netlink.links().await?;
            let names: Vec<&str> =
                port_holders(spec, port, &links).map(|(link, _)| link.name.as_str()).collect();
            bail!(
                "vni {vni} on udp port {port} belongs to {}: networks that share a port need different VNIs (`Backend.VNI` \
                 in the network's config)",
                names.join(" or ")
            )
        }
        added => Ok(added?),
    }
}

fn refuse_taken_port(spec: &DeviceSpec, port: u16, links: &[Link]) -> Result<()> {
    // Filtering devices can share a port.
    let holder = port_holders(spec, port, links).find(|(_, vxlan)| !vxlan.vnifilter);
    holder.map_or(Ok(()), |(holder, vxlan)| {
        let (holder, vni) = (&holder.name, vxlan.vni);
        bail!(
            "udp port {port} belongs to vxlan device {holder} (vni {vni}): a host has one owner per port. If flannel made \
             it, `overlay adopt-flannel` moves the host over under traffic; else stop what manages it, run `ip link delete \
             {holder}`, and start the agent again"
        )
    })
}

/// The VXLAN devices, besides ours, that have our port.
fn port_holders<'a>(
    spec: &DeviceSpec,
    port: u16,
    links: &'a [Link],
) -> impl Iterator<Item = (&'a Link, Vxlan)> {
    links.iter().filter_map(move |link| match link.kind {
        LinkKind::Vxlan(vxlan) if vxlan.port == port && link.name != spec.name => Some((link, vxlan)),
        _ => None,
    })
}

/// Explains what the kernel's answer means here: "address in use" means that a socket has the port, and "file exists"
/// that a device has the same VNI and port.
pub(super) fn port_error(error: NetlinkError, spec: &DeviceSpec, port: u16, links: &[Link]) -> anyhow::Error {
    if !matches!(error.errno, Errno::EADDRINUSE | Errno::EEXIST) {
        return error.into();
    }
    match refuse_taken_port(spec, port, links) {
        Err(taken) => taken,
        Ok(()) if error.errno == Errno::EADDRINUSE => {
            let (what, remedy) = port_holder::find(port).described(port);
            anyhow!("udp port {port} is {what}: {remedy}")
        }
        Ok(()) => error.into(),
    }
}
