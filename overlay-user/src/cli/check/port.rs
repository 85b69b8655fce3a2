//! Checks whether the tunnel can have its UDP port.
use overlay_common::ENCAPSULATION_UDP;

use super::{
    finding::{Finding, Level},
    spec::CheckSpec,
};
use crate::host::{
    netlink::{Link, LinkKind},
    port_holder,
};

/// Checks the UDP port: the network's own, if its device tells that, or else the default. In the latter case the finding says
/// so.
pub(super) fn finding(spec: &CheckSpec, device: Option<&Link>, links: &[Link], sockets: &str) -> Finding {
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
    if port_holder::is_bound(sockets, port) {
        if spec.backend.encapsulation() == ENCAPSULATION_UDP && spec.subnet.is_some() {
            return Finding::ok(&what, "bound by a process, as the agent does while it runs");
        }
        let (detail, remedy) = port_holder::find(port).described(port);
        return Finding::new(&what, Level::Fail, detail, remedy);
    }
    Finding::ok(&what, "free")
}

#[cfg(test)]
mod tests {
    use super::{
        super::spec::examples::{link, spec},
        *,
    };
    use crate::host::netlink::Vxlan;

    #[test]
    fn a_port_that_another_has_is_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n \
                     11: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0\n";
        let port = |spec: &CheckSpec, links: &[Link], sockets: &str| finding(spec, None, links, sockets);
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
}
