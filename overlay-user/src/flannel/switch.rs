//! The moments of a move in which nobody has the UDP port: one tunnel device goes down, and the other comes up with its routes.
//! Whatever can be done before these moments is done before.
use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use tokio::time::Instant;

use super::Flannel;
use crate::host::{
    device::{self, Device, DeviceKind, DeviceSpec},
    netlink::{Address, ClassicTunnel, GatewayRoute, Link, LinkChange, LinkKind, Netlink},
};

/// What a switch between the two devices took, and what it made.
#[derive(Clone, Copy, Debug)]
pub struct Switched<T> {
    /// The time from the request that takes the old device down to the answer that the last route of the new one is there.
    pub interruption: Duration,
    /// What the switch has made.
    pub now: T,
}

const UP: LinkChange = LinkChange { mac: None, mtu: None, up: Some(true), arp: None };
const DOWN: LinkChange = LinkChange { up: Some(false), ..UP };

/// Refuses a name for our device that is flannel's (`flannel`), or that a device of somebody else has, because the way back
/// takes down the device of this name, which therefore must be ours.
///
/// # Errors
/// The error says whose the name is.
pub async fn refuse_foreign(netlink: &Netlink, name: &str, flannel: Option<&str>) -> Result<()> {
    if flannel == Some(name) {
        bail!("--device {name}: flannel's own device is called so; choose another name");
    }
    if netlink.link_named(name).await?.is_some_and(|link| !is_ours(&link)) {
        bail!(
            "--device {name}: there is an interface of that name, and it is not of the overlay's making; choose another name"
        );
    }
    Ok(())
}

/// Whether a device is of a kind that [`device::prepare`] makes, in one mode or another. flannel's device or a VPN's never is.
pub fn is_ours(link: &Link) -> bool {
    device::is_tunnel(&link.kind)
}

/// Switches from flannel's device (`flannel`, if there is one) to ours (`tunnel`), which exists and is down. flannel's device
/// stays, but it is down and has lost its routes and neighbours. `edge` is called just before the interruption and right after
/// it.
///
/// # Errors
/// When a step failed. flannel's device may then be down while ours is not yet up. Packets that have no route are then dropped
/// until [`to_flannel`] is called.
pub async fn to_overlay(
    netlink: &Netlink,
    spec: &DeviceSpec,
    tunnel: u32,
    flannel: Option<u32>,
    mut edge: impl FnMut() -> Result<()>,
) -> Result<Switched<Device>> {
    let Some(flannel) = flannel else {
        // Without a device of flannel's, nothing has to go first. flannel's plain routes take precedence over ours until they
        // are removed.
        edge()?;
        let now = device::ensure(netlink, spec).await?;
        edge()?;
        return Ok(Switched { interruption: Duration::ZERO, now });
    };
    let link = netlink.link_named(&spec.name).await?.context("our tunnel device went away")?;
    let (LinkKind::Vxlan(vxlan), DeviceKind::Vxlan { vni, .. }) = (link.kind, spec.kind) else {
        bail!("{} is no vxlan device", spec.name);
    };
    if let Err(error) = netlink.no_generated_addresses(tunnel).await {
        // This fails on a kernel without IPv6, where no addresses would be generated anyway.
        log::debug!("{error}");
    }
    if vxlan.vnifilter {
        netlink.add_vni(tunnel, vni)?;
    }
    // The kernel accepts an address on a device that is down, but no route through it.
    let address = spec.subnet.network();
    netlink.put_address(Address::alone(tunnel, address)).await?;
    // `edge` is called before the last step that takes time, so that a packet which is passing through the old device at this
    // moment is counted as well.
    edge()?;
    netlink.drop_unrouted(spec.network).await?;
    let begun = Instant::now();
    netlink.change_link(flannel, DOWN).await?;
    let down = begun.elapsed();
    netlink.change_link(tunnel, UP).await.context("the port is free, and our device cannot have it")?;
    let up = begun.elapsed();
    for route in spec.routes(tunnel) {
        netlink.put_route(&route).await?;
    }
    let interruption = begun.elapsed();
    edge()?;
    log::debug!(
        "flannel's device was down after {down:?}, ours up after {up:?}, the route there after {interruption:?}"
    );
    netlink.stop_dropping_unrouted(spec.network).await?;
    // This adds whatever else the agent needs of the device.
    let now = device::ensure(netlink, spec).await?;
    Ok(Switched { interruption, now })
}

/// Switches from our device (`ours`, if it exists) to flannel's with all its entries, which is made if it is missing. Our
/// device stays, but it is down. It is no error if something exists already, or if a route cannot be put, since flanneld makes
/// its routes from the leases. `edge` is called as in [`to_overlay`].
///
/// # Errors
/// When a step failed.
pub async fn to_flannel(
    netlink: &Netlink,
    flannel: &Flannel,
    ours: Option<u32>,
    network: IpNet,
    mut edge: impl FnMut() -> Result<()>,
) -> Result<Switched<()>> {
    if let Some(device) = &flannel.device {
        let switched = to_device(netlink, flannel, device, ours, network, edge).await;
        // The route that drops packets is removed even if the switch failed, because nobody else knows of it. It may also be
        // left over from the move that is being undone.
        let stopped = netlink.stop_dropping_unrouted(network).await;
        let switched = switched?;
        stopped?;
        return Ok(switched);
    }
    edge()?;
    put_routes(netlink, &flannel.routes).await?;
    edge()?;
    Ok(Switched { interruption: Duration::ZERO, now: () })
}

async fn to_device(
    netlink: &Netlink,
    flannel: &Flannel,
    device: &ClassicTunnel,
    ours: Option<u32>,
    network: IpNet,
    mut edge: impl FnMut() -> Result<()>,
) -> Result<Switched<()>> {
    let link = present(netlink, device).await?;
    for net in &flannel.addresses {
        netlink.put_address(Address { link, address: net.addr(), prefix_len: net.prefix_len() }).await?;
    }
    // The kernel accepts these entries on a device that is down, but no routes through it.
    for entry in &flannel.neighbours {
        netlink.put_static_neighbour(link, *entry).await?;
    }
    for entry in &flannel.forwarding {
        netlink.put_forwarding(link, *entry).await?;
    }
    edge()?;
    netlink.drop_unrouted(network).await?;
    let begun = Instant::now();
    if let Some(ours) = ours {
        netlink.change_link(ours, DOWN).await?;
    }
    netlink.change_link(link, UP).await?;
    put_routes(netlink, &flannel.routes).await?;
    let interruption = begun.elapsed();
    edge()?;
    Ok(Switched { interruption, now: () })
}

async fn put_routes(netlink: &Netlink, routes: &[GatewayRoute]) -> Result<()> {
    let links = netlink.links().await?;
    for route in routes {
        let GatewayRoute { destination, gateway, interface, .. } = route;
        let why = match links.iter().find(|link| link.name == *interface) {
            Some(link) => {
                netlink.put_gateway_route(link.index, route).await.err().map(|error| error.to_string())
            }
            None => Some(format!("{interface} is gone")),
        };
        if let Some(why) = why {
            log::warn!(
                "route {destination} via {gateway} dev {interface} is not put back: {why}; flanneld makes its routes anew \
                 when it starts"
            );
        }
    }
    Ok(())
}

/// Finds flannel's device, or makes it if it is missing.
async fn present(netlink: &Netlink, wanted: &ClassicTunnel) -> Result<u32> {
    let find = async || {
        let tunnels = netlink.classic_tunnels().await?;
        anyhow::Ok(tunnels.into_iter().find(|(_, tunnel)| tunnel.name == wanted.name))
    };
    match find().await? {
        Some((link, found)) if found == *wanted => return Ok(link),
        Some((link, found)) => {
            // A device that went away meanwhile is no longer up.
            let is_up = netlink.link_named(&found.name).await?.is_some_and(|link| link.up);
            if !is_leftover(&found, wanted, is_up) {
                bail!(
                    "there is a {} already, and it is not as it was (vni {}, port {}, {}, {}): delete it, and try again",
                    found.name,
                    found.vni,
                    found.port,
                    found.mac,
                    if is_up { "up" } else { "down" }
                );
            }
            log::warn!(
                "{} was made anew since the move, with MAC address {}: making it as it was, with {}",
                found.name,
                found.mac,
                wanted.mac
            );
            netlink.remove_link(link).await?;
        }
        None => {}
    }
    netlink.create_classic(wanted).await?;
    let (link, made) = find().await?.with_context(|| format!("{} went away again", wanted.name))?;
    if made != *wanted {
        log::warn!("{} is not wholly as it was: {made:?} instead of {wanted:?}", made.name);
    }
    Ok(link)
}

/// Whether a device that is not as it was is what a flanneld has left that was started while the host was the overlay's: it made
/// its device with a MAC address of its own, and ended because overlay0 has the port. Such a device is down for the same reason. One
/// that is up carries traffic, so somebody uses it.
fn is_leftover(found: &ClassicTunnel, wanted: &ClassicTunnel, is_up: bool) -> bool {
    !is_up && (found.vni, found.port) == (wanted.vni, wanted.port)
}

/// Whether a host is reached without a router, which is the condition of flannel's `DirectRouting`.
pub async fn is_neighbour(netlink: &Netlink, host: IpAddr) -> bool {
    netlink.route_to(host).await.is_ok_and(|route| route.gateway.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::mac::Mac;

    #[test]
    fn a_device_that_is_up_or_another_one_is_nothing_left_over() {
        let wanted = ClassicTunnel::example("flannel.1", 1, 8472);
        let anew = ClassicTunnel { mac: Mac([2, 0, 0, 0, 0, 2]), ..wanted.clone() };
        assert!(is_leftover(&anew, &wanted, false));
        assert!(!is_leftover(&anew, &wanted, true));
        assert!(!is_leftover(&ClassicTunnel { port: 4789, ..anew.clone() }, &wanted, false));
        assert!(!is_leftover(&ClassicTunnel { vni: 2, ..anew }, &wanted, false));
    }
}
