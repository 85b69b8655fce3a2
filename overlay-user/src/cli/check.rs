//! `overlay check` looks which of this host's kernel features, rights, settings and firewall rules suit the overlay, and says
//! what to do about the others.
mod datagrams;
pub mod features;
mod finding;
mod firewall;
mod input;
mod ipsec;
mod kernel;
mod networks;
mod packet_filter;
mod path_mtu;
mod policies;
mod tc;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
};

pub use self::finding::{Finding, Level};
use self::{finding::Sysctl, networks::Overlay};
use crate::{
    datapath::{xdp::XdpLink, xdp_fitness},
    host::{
        firewall::analysis,
        ipsec::Traffic,
        netlink::{Link, LinkKind, Netlink, NetlinkError},
        port_holder,
    },
    model::{backend::Backend, fast_path::AskedFastPath},
};
use ipnet::{IpNet, Ipv4Net};
use overlay_common::{ENCAPSULATION_UDP, wire};

/// What the host is to be checked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSpec {
    /// Name of the underlay interface, where it is known.
    pub underlay: Option<String>,
    /// Name of the tunnel device.
    pub device: String,
    /// How packets travel, as far as it is known. Where neither a record nor the tunnel device tells, flannel's defaults are
    /// taken.
    pub backend: Backend,
    /// The own subnet, where there is one.
    pub subnet: Option<IpNet>,
    /// The own address on the underlay interface, where it is known.
    pub address: Option<IpAddr>,
    /// Which packets the programs are asked to carry past the stack: as the record says, or else what is asked by default.
    pub fast_path: AskedFastPath,
    /// Network, where it is known.
    pub network: Option<IpNet>,
    /// The folder below which everything is pinned.
    pub bpf_root: std::path::PathBuf,
    /// The folder where this network's pins are, or would be.
    pub pins: std::path::PathBuf,
}

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
    findings.push(forwarding(&[&interfaces[..], &["lo"]].concat(), &read_sysctl));
    findings.extend(interfaces.iter().map(|name| rp_filter(name, *name == spec.device, &read_sysctl)));
    findings.extend(mtu(spec, &links, &bridges));
    if let Some(underlay) = underlay {
        findings.push(path_mtu::finding(&underlay.name, underlay.mtu).await);
        findings.push(xdp(netlink, underlay, &XdpLink::new(&spec.pins)).await?);
    }
    if spec.backend.encapsulation() == ENCAPSULATION_UDP {
        findings.extend(datagrams::findings(underlay, &read_sysctl).await);
    }
    let sockets = fs::read_to_string("/proc/thread-self/net/udp").unwrap_or_default();
    findings.push(port(spec, device, &links, &sockets));
    findings.push(bridge_netfilter(&read_sysctl));
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
    let network = spec.network.or(widest);
    let site = site(netlink, spec, network, &prefixes).await?;
    findings.extend(firewall::findings(network, spec.subnet, &site, spec.fast_path).await);
    findings.push(ipsec::finding(&Traffic { network, underlay: spec.address, port: site.port }));
    Ok(findings)
}

/// Where packets between containers pass. What is not known yet may be anything, so that every rule may concern it.
async fn site(
    netlink: &Netlink,
    spec: &CheckSpec,
    network: Option<IpNet>,
    prefixes: &[IpNet],
) -> Result<analysis::Site, NetlinkError> {
    let leasable = prefixes.iter().map(IpNet::network).min().zip(prefixes.iter().map(IpNet::broadcast).max());
    let anything = IpNet::from(Ipv4Net::default());
    let names = match spec.subnet {
        Some(subnet) => analysis::names(netlink, subnet).await?,
        None => analysis::Names::default(),
    };
    let network = network.unwrap_or(anything);
    Ok(analysis::Site {
        network,
        leasable: leasable.unwrap_or((network.network(), network.broadcast())),
        subnet: spec.subnet.unwrap_or(anything),
        device: spec.device.clone(),
        underlay: spec.underlay.clone().unwrap_or_default(),
        address: spec.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        port: spec.backend.port(),
        is_direct: spec.backend.is_direct(),
        names,
    })
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

/// The value of a sysctl below `net`, in the calling thread's network namespace.
fn read_sysctl(name: &str) -> Option<String> {
    let value = fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?;
    Some(value.trim().to_owned())
}

fn forwarding(interfaces: &[&str], sysctl: Sysctl<'_>) -> Finding {
    let what = "ipv4 forwarding";
    let is_off = |name: &str| sysctl(name).as_deref() != Some("1");
    if is_off("ipv4/ip_forward") {
        let remedy = "sysctl -w net.ipv4.ip_forward=1";
        return Finding::new(what, Level::Fail, "net.ipv4.ip_forward is off", remedy);
    }
    let off = interfaces.iter().find(|name| is_off(&format!("ipv4/conf/{name}/forwarding")));
    off.map_or_else(
        || Finding::ok(what, "on"),
        |name| {
            let detail = format!("off for {name}");
            Finding::new(what, Level::Fail, detail, format!("sysctl -w net.ipv4.conf.{name}.forwarding=1"))
        },
    )
}

/// Checks rp_filter. The kernel applies the larger of `all` and the interface's own value
/// (Documentation/networking/ip-sysctl.rst).
fn rp_filter(interface: &str, is_tunnel: bool, sysctl: Sysctl<'_>) -> Finding {
    let what = format!("rp_filter of {interface}");
    let value = |name: &str| {
        sysctl(&format!("ipv4/conf/{name}/rp_filter")).and_then(|value| value.parse::<u8>().ok())
    };
    let (all, own) = (value("all").unwrap_or(0), value(interface).unwrap_or(0));
    match all.max(own) {
        1 if is_tunnel => Finding::new(
            &what,
            Level::Warn,
            "strict: packets that other hosts send from their own addresses are dropped here",
            format!("sysctl -w net.ipv4.conf.{interface}.rp_filter=2"),
        ),
        1 => Finding::ok(&what, "strict: peers must be reached through this interface"),
        2 => Finding::ok(&what, "loose"),
        _ => Finding::ok(&what, "off"),
    }
}

fn mtu(spec: &CheckSpec, links: &[Link], bridges: &[Link]) -> Vec<Finding> {
    let underlay = links.iter().find(|link| Some(&link.name) == spec.underlay.as_ref());
    let Some(underlay) = underlay else {
        return Vec::new();
    };
    let fits = spec.backend.overlay_mtu(underlay.mtu);
    let assess = |bridge: &Link| {
        let what = format!("mtu of {}", bridge.name);
        let detail = format!("{}; {} carries {fits} after encapsulation", bridge.mtu, underlay.name);
        if bridge.mtu <= fits {
            return Finding::ok(&what, detail);
        }
        let remedy = format!(
            "start containers with mtu {fits} (dockerd --mtu {fits}, or FLANNEL_MTU for CNI): larger packets are \
             answered with ICMP fragmentation needed, or fragmented"
        );
        Finding::new(&what, Level::Warn, detail, remedy)
    };
    bridges.iter().map(assess).collect()
}

/// Checks the UDP port: the network's own, if its device tells that, or else the default. In the latter case the finding says
/// so.
fn port(spec: &CheckSpec, device: Option<&Link>, links: &[Link], sockets: &str) -> Finding {
    let mut found = port_of(spec, links, sockets);
    if !matches!(device, Some(Link { kind: LinkKind::Vxlan(_), .. })) {
        let default = format!("{}'s default: no device tells the network's own", spec.backend.name());
        found.detail = format!("{}; that is {default}", found.detail);
    }
    found
}

fn port_of(spec: &CheckSpec, links: &[Link], sockets: &str) -> Finding {
    let port = spec.backend.port();
    let what = format!("udp port {port}");
    for link in links {
        match link.kind {
            // Devices that filter VNIs can share a port.
            LinkKind::Vxlan(vxlan) if vxlan.port == port && !vxlan.vnifilter && link.name != spec.device => {
                let detail = format!("vxlan device {} (vni {}) has it", link.name, vxlan.vni);
                let remedy = if link.name.starts_with("flannel.") {
                    "`overlay adopt-flannel` moves the host over under traffic".to_owned()
                } else {
                    format!("stop what manages it, then `ip link delete {}`", link.name)
                };
                return Finding::new(&what, Level::Fail, detail, remedy);
            }
            _ => {}
        }
    }
    // The kernel's table of sockets lists a tunnel device's own socket, too, on some kernels with an inode as if a process had
    // it.
    let holder = links
        .iter()
        .find(|link| matches!(link.kind, LinkKind::Vxlan(vxlan) if vxlan.port == port && link.up));
    if let Some(holder) = holder {
        return Finding::ok(&what, format!("ours: {} has it", holder.name));
    }
    if bound_by_process(sockets, port) {
        if spec.backend.encapsulation() == ENCAPSULATION_UDP && spec.subnet.is_some() {
            return Finding::ok(&what, "bound by a process, as the agent does while it runs");
        }
        let (detail, remedy) = port_holder::find(port).described(port);
        return Finding::new(&what, Level::Fail, detail, remedy);
    }
    Finding::ok(&what, "free")
}

/// Whether the text of /proc/net/udp lists a socket that is bound to the port.
fn bound_by_process(table: &str, port: u16) -> bool {
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = fields.get(1).and_then(|local| local.rsplit_once(':'));
        let local = local.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        local == Some(port)
    })
}

fn bridge_netfilter(sysctl: Sysctl<'_>) -> Finding {
    let detail = match sysctl("bridge/bridge-nf-call-iptables").as_deref() {
        Some("1") => {
            "on: packets between containers of one bridge pass iptables; between hosts, only those that take the stack do"
        }
        _ => "off, or br_netfilter is not loaded",
    };
    Finding::ok("bridge-nf-call-iptables", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::{LinkType, Vxlan};

    fn spec() -> CheckSpec {
        CheckSpec {
            underlay: Some("eth0".into()),
            device: "overlay0".into(),
            backend: Backend::DEFAULT,
            subnet: None,
            address: None,
            fast_path: AskedFastPath::Auto,
            network: None,
            bpf_root: "/sys/fs/bpf".into(),
            pins: "/nowhere".into(),
        }
    }

    fn link(name: &str, kind: LinkKind, mtu: u32) -> Link {
        Link {
            index: 1,
            name: name.into(),
            kind,
            link_type: LinkType::ETHERNET,
            master: None,
            mac: None,
            mtu,
            up: true,
            carrier: true,
            noarp: false,
            peer: None,
            peer_netns: None,
        }
    }

    fn sysctls(values: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        move |name| {
            let found = values.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn forwarding_off_is_found_with_its_command() {
        let all_off = forwarding(&["eth0"], &sysctls(&[("ipv4/ip_forward", "0")]));
        assert_eq!(
            (all_off.level, all_off.remedy.as_str()),
            (Level::Fail, "sysctl -w net.ipv4.ip_forward=1")
        );
        let one_off = [("ipv4/ip_forward", "1"), ("ipv4/conf/eth0/forwarding", "0")];
        let found = forwarding(&["eth0"], &|name| {
            one_off.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        });
        assert_eq!(found.remedy, "sysctl -w net.ipv4.conf.eth0.forwarding=1");
        let on = sysctls(&[("ipv4/ip_forward", "1"), ("ipv4/conf/eth0/forwarding", "1")]);
        assert_eq!(forwarding(&["eth0"], &on).level, Level::Ok);
    }

    #[test]
    fn the_larger_rp_filter_counts() {
        let strict = sysctls(&[("ipv4/conf/all/rp_filter", "1"), ("ipv4/conf/overlay0/rp_filter", "0")]);
        assert_eq!(rp_filter("overlay0", true, &strict).level, Level::Warn);
        assert_eq!(rp_filter("overlay0", false, &strict).level, Level::Ok);
        let loose = sysctls(&[("ipv4/conf/all/rp_filter", "1"), ("ipv4/conf/overlay0/rp_filter", "2")]);
        assert_eq!(rp_filter("overlay0", true, &loose).detail, "loose");
    }

    #[test]
    fn a_port_that_another_has_is_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n \
                     11: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0\n";
        let port = |spec: &CheckSpec, links: &[Link], sockets: &str| port(spec, None, links, sockets);
        assert_eq!(port(&spec(), &[], table).level, Level::Fail);
        assert_eq!(port(&spec(), &[], &table.replace("2118", "2119")).level, Level::Ok);
        let vxlan = LinkKind::Vxlan(Vxlan { vni: 1, port: 8472, collect_metadata: false, vnifilter: false });
        let found = port(&spec(), &[link("flannel.1", vxlan.clone(), 1450)], "");
        assert!(found.remedy.starts_with("`overlay adopt-flannel`"), "{}", found.remedy);
        let found = port(&spec(), &[link("vx9", vxlan.clone(), 1450)], "");
        assert_eq!(found.remedy, "stop what manages it, then `ip link delete vx9`");
        let ours = link("overlay0", vxlan, 1450);
        assert_eq!(
            port(&spec(), std::slice::from_ref(&ours), table).level,
            Level::Ok,
            "our device's own socket"
        );
        assert_eq!(port(&spec(), &[Link { up: false, ..ours }], table).level, Level::Fail);
    }

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
        let found = port(&known, Some(&device), std::slice::from_ref(&device), "");
        assert_eq!((found.what.as_str(), found.detail.as_str()), ("udp port 4789", "ours: overlay0 has it"));
        assert_eq!(told_by(Some(&device), 1300).backend.overlay_mtu(1300), 1250);
        let unknown = told_by(None, 1500);
        assert_eq!((unknown.backend.port(), unknown.backend.overlay_mtu(1500)), (8472, 1450));
        let found = port(&unknown, None, &[], "");
        assert_eq!(found.detail, "free; that is vxlan's default: no device tells the network's own");
    }

    #[test]
    fn a_bridge_larger_than_the_underlay_carries_is_found() {
        let underlay = link("eth0", LinkKind::Other(String::new()), 1500);
        let level = |mtu| mtu_of(&underlay, mtu);
        assert_eq!((level(1450), level(1451)), (Level::Ok, Level::Warn));
    }

    fn mtu_of(underlay: &Link, bridge: u32) -> Level {
        let bridges = [link("docker0", LinkKind::Bridge, bridge)];
        mtu(&spec(), std::slice::from_ref(underlay), &bridges)[0].level
    }
}
