//! `overlay check` looks which of this host's kernel features, rights, settings and firewall rules suit the overlay, and says
//! what to do about the others.
mod datagrams;
pub mod families;
pub mod features;
mod finding;
mod firewall;
mod gates;
mod ipsec;
mod kernel;
mod mtu;
mod networks;
mod packet_filter;
mod path_mtu;
mod policies;
mod port;
mod same_host;
mod spec;
mod sysctls;
mod tc;

use std::fs;

use self::networks::Overlay;
pub use self::{
    finding::{Finding, Level},
    spec::CheckSpec,
};
use crate::{
    datapath::{xdp::XdpLink, xdp_fitness},
    host::{
        netlink::{Link, LinkKind, Netlink, NetlinkError},
        site::{Names, Site},
    },
    model::backend::Backend,
};
use ipnet::IpNet;
use overlay_common::{ENCAPSULATION_UDP, wire};

/// Looks at everything, in the network namespace of the calling thread. This fails only if the kernel cannot be asked for
/// links, addresses or routes.
pub async fn check(netlink: &Netlink, spec: &CheckSpec) -> Result<Vec<Finding>, NetlinkError> {
    let links = netlink.links().await?;
    let bridges: Vec<Link> = match spec.subnet {
        Some(subnet) => bridges(&links, netlink, subnet).await?,
        None => Vec::new(),
    };
    let mut findings = kernel::findings(&spec.bpf_root);
    let device = links.iter().find(|link| link.name == spec.device);
    let underlay = links.iter().find(|link| Some(&link.name) == spec.underlay.as_ref());
    let spec = &CheckSpec { backend: told(spec.backend, device, underlay), ..spec.clone() };
    findings.extend(features::findings(&features::features(device)));
    let interfaces = [spec.underlay.as_deref(), Some(spec.device.as_str())];
    let present = |name: &&str| links.iter().any(|link| link.name == **name);
    let interfaces: Vec<&str> = interfaces.into_iter().flatten().filter(present).collect();
    // The kernel looks up the paths to peers as it does for the host's own packets, which come from the loopback device.
    findings.push(sysctls::forwarding(&[&interfaces[..], &["lo"]].concat(), &sysctls::read));
    findings
        .extend(interfaces.iter().map(|name| sysctls::rp_filter(name, *name == spec.device, &sysctls::read)));
    findings.extend(mtu::findings(spec, &links, &bridges));
    if let Some(underlay) = underlay {
        findings.push(path_mtu::finding(&underlay.name, underlay.mtu).await);
        findings.push(xdp(netlink, underlay, &XdpLink::new(&spec.pins)).await?);
    }
    if spec.backend.encapsulation() == ENCAPSULATION_UDP {
        findings.extend(datagrams::findings(underlay, &sysctls::read).await);
    }
    let sockets = fs::read_to_string("/proc/thread-self/net/udp").unwrap_or_default();
    findings.push(port::finding(spec, device, &links, &sockets));
    findings.push(sysctls::bridge_netfilter(&sysctls::read));
    let routes = netlink.routes().await?;
    let prefixes = match (device, spec.subnet) {
        (Some(device), Some(subnet)) => networks::prefixes(&routes, device.index, subnet),
        _ => Vec::new(),
    };
    let overlay = Overlay { prefixes: &prefixes, subnet: spec.subnet, underlay };
    findings.extend(networks::findings(&overlay, &links, &netlink.addresses().await?, &routes));
    findings.push(policies::finding(&prefixes, &bridges).await);
    findings.extend(tc::findings(&spec.pins, &links));
    let widest = prefixes.iter().copied().min_by_key(IpNet::prefix_len);
    let site = site(netlink, spec, spec.network.or(widest), &prefixes).await?;
    let (filter, at_bridges) = firewall::findings(&site, spec.fast_path).await;
    findings.push(same_host::finding(spec.fast_path, &links, &bridges, at_bridges.as_ref()));
    findings.extend(filter);
    findings.push(ipsec::finding(&site));
    Ok(findings)
}

/// What is known of the overlay on this host.
async fn site(
    netlink: &Netlink,
    spec: &CheckSpec,
    network: Option<IpNet>,
    prefixes: &[IpNet],
) -> Result<Site, NetlinkError> {
    let mut site = Site {
        network,
        leasable: prefixes.iter().map(IpNet::network).min().zip(prefixes.iter().map(IpNet::broadcast).max()),
        subnet: spec.subnet,
        device: spec.device.clone(),
        underlay: spec.underlay.clone(),
        address: spec.address,
        port: spec.backend.port(),
        is_direct: spec.backend.is_direct(),
        names: Names::default(),
    };
    site.names = site.look_around(netlink).await?;
    Ok(site)
}

/// The backend with the network's own port and MTU, which the agent gave to a VXLAN device. A TUN tells neither: it has no
/// port, and a network of its kind has no MTU of its own in its config.
fn told(backend: Backend, device: Option<&Link>, underlay: Option<&Link>) -> Backend {
    match (backend, device) {
        (Backend::Vxlan { vni, direct, .. }, Some(&Link { kind: LinkKind::Vxlan(vxlan), mtu, .. })) => {
            let mtu = mtu.saturating_add(wire::OVERHEAD as u32);
            // The underlay's MTU may have become smaller since.
            let mtu = underlay.map_or(mtu, |underlay| mtu.min(underlay.mtu));
            Backend::Vxlan { vni, port: vxlan.port, mtu: Some(mtu), direct }
        }
        _ => backend,
    }
}

/// Whether `--ingress` may ask for XDP here. It is never a fault if it may not, since TC does the same work.
async fn xdp(netlink: &Netlink, underlay: &Link, ours: &XdpLink) -> Result<Finding, NetlinkError> {
    let why = xdp_fitness::unfit(netlink, underlay, ours).await?;
    let detail = match (why, ours.mode(underlay.index)) {
        (None, Some(mode)) => format!("in use: {mode}"),
        (None, None) => format!("{} can: --ingress xdp or xdp-strip", underlay.name),
        (Some(why), _) => format!("{why}; TC takes packets in"),
    };
    Ok(Finding::ok("xdp", detail))
}

async fn bridges(links: &[Link], netlink: &Netlink, subnet: IpNet) -> Result<Vec<Link>, NetlinkError> {
    let addresses = netlink.addresses().await?;
    let holds = |link: &&Link| {
        let mut own = addresses.iter().filter(|address| address.link == link.index);
        link.kind == LinkKind::Bridge && own.any(|address| subnet.contains(&address.address))
    };
    Ok(links.iter().filter(holds).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::{
        spec::examples::{link, spec},
        *,
    };
    use crate::host::netlink::Vxlan;

    #[test]
    fn the_device_tells_the_networks_port_and_mtu() {
        let vxlan = LinkKind::Vxlan(Vxlan { vni: 0, port: 4789, collect_metadata: true, vnifilter: true });
        let device = link("overlay0", vxlan, 1350);
        let told_by = |device, underlay| {
            let underlay = link("eth0", LinkKind::Other(String::new()), underlay);
            CheckSpec { backend: told(Backend::DEFAULT, device, Some(&underlay)), ..spec() }
        };
        let known = told_by(Some(&device), 1500);
        assert_eq!((known.backend.port(), known.backend.overlay_mtu(1500)), (4789, 1350));
        let found = port::finding(&known, Some(&device), std::slice::from_ref(&device), "");
        assert_eq!((found.what.as_str(), found.detail.as_str()), ("udp port 4789", "ours: overlay0 has it"));
        assert_eq!(told_by(Some(&device), 1300).backend.overlay_mtu(1300), 1250);
        let unknown = told_by(None, 1500);
        assert_eq!((unknown.backend.port(), unknown.backend.overlay_mtu(1500)), (8472, 1450));
        let found = port::finding(&unknown, None, &[], "");
        assert_eq!(found.detail, "free; that is vxlan's default: no device tells the network's own");
    }
}
