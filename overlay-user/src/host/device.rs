//! `overlay0`: the device that carries whatever the fast path does not. With VXLAN the kernel's own tunnel device, which holds
//! the UDP port; with bare IPv4 in UDP a TUN.
mod spec;
mod tun;
mod vxlan;

use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;

pub use self::spec::{Device, DeviceKind, DeviceSpec, Prepared};
use crate::host::netlink::{Address, Link, LinkChange, LinkKind, Netlink, NetlinkError};

/// Makes sure that there is a device to attach programs to. A new device stays down, and so receives nothing, until
/// [`ensure`] is called. Thus no frame enters the stack before the program that checks it is attached.
pub async fn prepare(netlink: &Netlink, spec: &DeviceSpec) -> Result<Prepared> {
    let links = netlink.links().await?;
    refuse_foreign_route(netlink, spec, &links).await?;
    let present = links.iter().find(|link| link.name == spec.name);
    if let Some(link) = present {
        if is_fit(link, spec) {
            return Ok(Prepared { ifindex: link.index, made: false });
        }
        if !is_tunnel(&link.kind) {
            let wanted = match spec.kind {
                DeviceKind::Vxlan { .. } => "vxlan device",
                DeviceKind::Tun => "tun device",
            };
            return Err(name_taken(link, wanted));
        }
        log::warn!(
            "{} is a {}, and not of the kind that is needed now: making it anew",
            spec.name,
            kind_name(&link.kind)
        );
    }
    match spec.kind {
        DeviceKind::Vxlan { port, mac, .. } => vxlan::make(netlink, spec, port, mac, present, &links).await?,
        DeviceKind::Tun => {
            tun::can_be_made(&spec.name)?;
            if let Some(link) = present {
                netlink.remove_link(link.index).await?;
            }
            tun::make(&spec.name)?;
        }
    }
    let link = netlink.link_named(&spec.name).await?.ok_or_else(|| vanished(spec))?;
    Ok(Prepared { ifindex: link.index, made: true })
}

/// Makes the device what `spec` says. A device that fits is adopted, and repaired without being taken down. A device
/// that has our name but another port is made anew. On error, a device that was made here is removed again, and a
/// device that was adopted keeps its routes.
pub async fn ensure(netlink: &Netlink, spec: &DeviceSpec) -> Result<Device> {
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

/// Removes routes through the device that an agent made when leases or the config were others.
pub async fn remove_stale_routes(
    netlink: &Netlink,
    spec: &DeviceSpec,
    link: u32,
) -> Result<(), NetlinkError> {
    let present = netlink.routes().await?;
    for route in present.iter().filter(|route| spec.is_stale(route, link)) {
        netlink.remove_route(route).await?;
    }
    Ok(())
}

/// Removes the device, with its address and its routes. It is no error if there is no such device. A device of a kind
/// that no backend uses is left alone, and that is an error.
pub async fn remove(netlink: &Netlink, name: &str) -> Result<()> {
    match netlink.link_named(name).await? {
        Some(link) if is_tunnel(&link.kind) => Ok(netlink.remove_link(link.index).await?),
        Some(link) => Err(name_taken(&link, "tunnel device")),
        None => Ok(()),
    }
}

/// Whether a link may be the network's device under some backend. A VXLAN device with a VNI of its own is not:
/// flannel's device is one.
pub fn is_tunnel(kind: &LinkKind) -> bool {
    matches!(kind, LinkKind::Vxlan(vxlan) if vxlan.collect_metadata) || tun::is_ours(kind)
}

fn is_fit(link: &Link, spec: &DeviceSpec) -> bool {
    match (&link.kind, spec.kind) {
        (LinkKind::Vxlan(vxlan), DeviceKind::Vxlan { port, .. }) => {
            vxlan.collect_metadata && vxlan.port == port
        }
        (kind, DeviceKind::Tun) => tun::is_ours(kind),
        _ => false,
    }
}

async fn set_up(netlink: &Netlink, spec: &DeviceSpec, link: &Link) -> Result<Device> {
    let mac = match spec.kind {
        DeviceKind::Vxlan { mac, .. } => Some(mac.or(link.mac).ok_or_else(|| vanished(spec))?),
        DeviceKind::Tun => None,
    };
    let change = LinkChange {
        mac: mac.filter(|_| mac != link.mac),
        mtu: (link.mtu != spec.mtu).then_some(spec.mtu),
        // A TUN has no neighbours, so it never resolves any.
        arp: (!link.noarp && mac.is_some()).then_some(false),
        up: None,
    };
    if change != LinkChange::default() {
        netlink.change_link(link.index, change).await?;
    }
    if let Err(error) = netlink.no_generated_addresses(link.index).await {
        // Where IPv6 is off, the kernel generates no address anyway.
        log::debug!("{error}");
    }
    let vnifilter = match (&link.kind, spec.kind) {
        (LinkKind::Vxlan(vxlan), DeviceKind::Vxlan { port, vni, .. }) if vxlan.vnifilter => {
            vxlan::accept(netlink, spec, link.index, port, vni).await?;
            true
        }
        _ => false,
    };
    if !link.up {
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        if let Err(error) = netlink.change_link(link.index, up).await {
            return Err(match spec.kind {
                DeviceKind::Vxlan { port, .. } => {
                    vxlan::port_error(error, spec, port, &netlink.links().await?)
                }
                DeviceKind::Tun => error.into(),
            });
        }
    }
    set_addresses(netlink, spec, link.index).await?;
    Ok(Device { ifindex: link.index, mac, vnifilter })
}

/// Sets address and routes. The address comes first, since the routes name it. Stale addresses go last, because the
/// kernel deletes an address together with the routes that have it as their source.
async fn set_addresses(netlink: &Netlink, spec: &DeviceSpec, link: u32) -> Result<()> {
    let wanted = Address::alone(link, spec.subnet.network());
    let addresses = netlink.addresses().await?;
    if !addresses.contains(&wanted) {
        netlink.put_address(wanted).await?;
    }
    let present = netlink.routes().await?;
    for route in spec.routes(link).filter(|route| !present.contains(route)) {
        netlink.put_route(&route).await?;
    }
    for stale in addresses.into_iter().filter(|address| address.link == link && *address != wanted) {
        netlink.remove_address(stale).await?;
    }
    Ok(())
}

async fn refuse_foreign_route(netlink: &Netlink, spec: &DeviceSpec, links: &[Link]) -> Result<()> {
    let name = |index| {
        let link = links.iter().find(|link| Some(link.index) == index);
        link.map_or("?", |link| link.name.as_str())
    };
    for route in netlink.routes().await? {
        // The bridge's route to the own subnet is as it must be.
        let is_ours = spec.prefixes.contains(&route.destination) && route.destination != spec.subnet;
        if is_ours && route.metric == 0 && name(route.link) != spec.name {
            let (network, interface) = (route.destination, name(route.link));
            bail!(
                "{network} is already routed through interface {interface}: remove that route first \
                 (`ip route delete {network} dev {interface}`)"
            );
        }
    }
    Ok(())
}

/// The error when a link of another kind has the name of our device.
fn name_taken(link: &Link, wanted: &str) -> anyhow::Error {
    let (name, kind) = (&link.name, kind_name(&link.kind));
    anyhow!(
        "interface {name} exists and is a {kind}, not the {wanted} that the network needs: rename or delete it, or choose \
         another --device"
    )
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
        LinkKind::Vxlan(vxlan) if !vxlan.collect_metadata => {
            format!("vxlan device of vni {} that another program made", vxlan.vni)
        }
        LinkKind::Vxlan(_) => "vxlan device".into(),
        LinkKind::Tun(tun) if tun.is_tap => "tap device".into(),
        LinkKind::Tun(_) => "tun device that another program made".into(),
        LinkKind::Other(name) if name.is_empty() => "physical device".into(),
        LinkKind::Other(name) => format!("{name} device"),
    }
}
