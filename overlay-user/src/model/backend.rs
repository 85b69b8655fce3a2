//! How packets travel between hosts, and what follows from that: device, MTU, lease, programs.
use std::fmt;

use anyhow::{Result, anyhow, bail};
use log::info;
use overlay_common::{ENCAPSULATION_UDP, ENCAPSULATION_VXLAN, wire};

use crate::model::{
    lease::LeaseBackend,
    mac::Mac,
    network::{BackendConfig, NetworkConfig, UDP_PORT, VXLAN_PORT},
};

/// By how many bytes IPv6's fixed header (RFC 8200 section 3) is longer than IPv4's without options.
const IPV6_LONGER: usize = 20;

/// The smallest MTU of a link of IPv6, in bytes (RFC 8200 section 5).
const IPV6_LEAST: u32 = 1280;

/// How packets travel between hosts: the network's `Backend`, if it is one that this agent can carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// VXLAN (RFC 7348).
    Vxlan {
        /// VXLAN network identifier.
        vni: u32,
        /// UDP port, in the machine's order.
        port: u16,
        /// MTU of the underlay in bytes, if it is not the interface's.
        mtu: Option<u32>,
        /// Peers on the same link are reached without encapsulation (`DirectRouting`).
        direct: bool,
    },
    /// Bare IPv4 in UDP, flannel's udp backend.
    Udp {
        /// UDP port, in the machine's order.
        port: u16,
    },
    /// flannel's host-gw backend: peers on the same link are reached without encapsulation. Peers behind a router, which
    /// flannel does not reach with this backend, get bare IPv4 in UDP.
    HostGw,
}

impl Backend {
    /// VXLAN with flannel's defaults.
    pub const DEFAULT: Self = Self::Vxlan { vni: 1, port: VXLAN_PORT, mtu: None, direct: false };

    /// A backend by its name, with flannel's defaults.
    pub fn named(name: &str) -> Option<Self> {
        [Self::DEFAULT, Self::Udp { port: UDP_PORT }, Self::HostGw]
            .into_iter()
            .find(|backend| backend.name() == name)
    }

    /// What the config asks for.
    ///
    /// # Errors
    /// When the backend is one that flannel may know, but this agent does not.
    pub fn of(network: &NetworkConfig) -> Result<Self> {
        let backend = match network.backend {
            BackendConfig::Vxlan { vni, port, mtu, direct_routing } => {
                Self::Vxlan { vni, port, mtu, direct: direct_routing }
            }
            BackendConfig::Udp { port } => Self::Udp { port },
            BackendConfig::HostGw => Self::HostGw,
            BackendConfig::Unsupported(ref other) => bail!(
                "the network's backend is {other}, and vxlan, udp and host-gw are the supported ones: \
                 `overlay config set '{{\"Network\":...,\"Backend\":{{\"Type\":\"vxlan\"}}}}'`"
            ),
        };
        if backend.is_direct() {
            info!(
                "peers on the same link are reached without encapsulation: who sends is told by the inner address alone"
            );
        }
        Ok(backend)
    }

    /// flannel's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan { .. } => "vxlan",
            Self::Udp { .. } => "udp",
            Self::HostGw => "host-gw",
        }
    }

    /// VXLAN network identifier; `None` for a backend that has none.
    pub const fn vni(self) -> Option<u32> {
        match self {
            Self::Vxlan { vni, .. } => Some(vni),
            Self::Udp { .. } | Self::HostGw => None,
        }
    }

    /// UDP port that encapsulated packets are sent to, in the machine's order.
    pub const fn port(self) -> u16 {
        match self {
            Self::Vxlan { port, .. } | Self::Udp { port } => port,
            Self::HostGw => UDP_PORT,
        }
    }

    /// Peers on the same link are reached without encapsulation.
    pub const fn is_direct(self) -> bool {
        matches!(self, Self::HostGw | Self::Vxlan { direct: true, .. })
    }

    /// The number by which the programs are told the encapsulation (`ENCAPSULATION_*`).
    pub const fn encapsulation(self) -> u8 {
        match self {
            Self::Vxlan { .. } => ENCAPSULATION_VXLAN,
            Self::Udp { .. } | Self::HostGw => ENCAPSULATION_UDP,
        }
    }

    /// MTU inside the overlay in bytes, that of containers and of overlay0, over an underlay interface of this MTU, by flannel's
    /// rule. With `DirectRouting` the outer headers are subtracted even though peers on the same link do not need them. With
    /// host-gw they are not, so packets to a peer behind a router must be 28 bytes shorter; their senders are told so by ICMP.
    pub fn overlay_mtu(self, interface: u32) -> u32 {
        self.mtu_of(interface, false)
    }

    /// The same on a host that has an IPv6 subnet, too, if `has_ipv6`. It leaves space for an outer header of IPv6, which is
    /// longer, or every container would have to be told so for each destination anew. (flannel does not.)
    pub fn mtu_of(self, interface: u32, has_ipv6: bool) -> u32 {
        let (underlay, overhead) = match self {
            Self::Vxlan { mtu, .. } => {
                let longer = if has_ipv6 { IPV6_LONGER } else { 0 };
                (mtu.unwrap_or(interface), wire::OVERHEAD + longer)
            }
            Self::Udp { .. } => (interface, wire::DATAGRAM),
            Self::HostGw => (interface, 0),
        };
        underlay.saturating_sub(overhead as u32)
    }

    /// Why an underlay interface of this MTU carries no IPv6 inside the overlay, if it does not: every link of IPv6 carries at
    /// least 1280 bytes (RFC 8200 section 5), and the kernel takes IPv6 from an interface with less.
    pub fn too_small_for_ipv6(self, interface: u32) -> Option<String> {
        let mtu = self.mtu_of(interface, true);
        let (whose, of) = match self {
            Self::Vxlan { mtu: Some(mtu), .. } => ("the config's", mtu),
            _ => ("its", interface),
        };
        (mtu < IPV6_LEAST).then(|| {
            let least = of - mtu + IPV6_LEAST;
            format!(
                "{whose} MTU of {of} leaves {mtu} bytes for packets inside the overlay, but IPv6 needs {IPV6_LEAST}: raise it to \
                 {least} or more"
            )
        })
    }

    /// What this host's lease says about the backend. `vtep_mac` is only called for VXLAN.
    pub fn published(self, vtep_mac: impl FnOnce() -> Mac) -> LeaseBackend {
        match self {
            Self::Vxlan { vni, .. } => LeaseBackend::Vxlan { vni, vtep_mac: vtep_mac() },
            // flannel's udp backend writes no `BackendType` at all.
            Self::Udp { .. } => LeaseBackend::Other(String::new()),
            Self::HostGw => LeaseBackend::Other("host-gw".to_owned()),
        }
    }

    /// MAC address of a peer's tunnel device, as one half of its lease says it, if the lease is for this backend; `None` for a
    /// backend that needs no MAC address.
    ///
    /// # Errors
    /// Why the lease gives no peer, in words for the operator.
    pub fn peer_mac(self, theirs: &LeaseBackend) -> Result<Option<Mac>> {
        let wanted = self.name();
        match (self, theirs) {
            // A VNI of zero means that the lease does not name one, which flannel accepts.
            (Self::Vxlan { vni, .. }, LeaseBackend::Vxlan { vni: theirs, .. })
                if *theirs != vni && *theirs != 0 =>
            {
                bail!("VNI is {theirs}, not {vni}")
            }
            (Self::Vxlan { .. }, &LeaseBackend::Vxlan { vtep_mac, .. }) => Ok(Some(vtep_mac)),
            (Self::Udp { .. }, LeaseBackend::Other(name)) if name.is_empty() || name == "udp" => Ok(None),
            (Self::HostGw, LeaseBackend::Other(name)) if name == "host-gw" => Ok(None),
            (_, LeaseBackend::Vxlan { .. }) => Err(anyhow!("BackendType is vxlan, not {wanted}")),
            (_, LeaseBackend::Other(name)) if name.is_empty() => {
                Err(anyhow!("BackendType is missing, not {wanted}"))
            }
            (_, LeaseBackend::Other(name)) => Err(anyhow!("BackendType is {name}, not {wanted}")),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Vxlan { direct: true, .. } => f.write_str(" with direct routing"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(backend: &str) -> Result<Backend> {
        let text = format!(r#"{{"Network":"10.244.0.0/16"{backend}}}"#);
        Backend::of(&NetworkConfig::parse(text.as_bytes()).unwrap())
    }

    fn peer_mac(backend: Backend, value: &str) -> Result<Option<Mac>, String> {
        let value = format!(r#"{{"PublicIP":"10.99.0.2","PublicIPv6":null{value}}}"#);
        let lease = crate::model::lease::decode("10.244.2.0-24", value.as_bytes()).unwrap();
        backend.peer_mac(&lease.backend).map_err(|why| why.to_string())
    }

    #[test]
    fn flannels_backends_and_what_they_leave_of_the_mtu() {
        let udp = backend("").unwrap();
        assert_eq!((udp.name(), udp.port(), udp.overlay_mtu(1500)), ("udp", 8285, 1472));
        let vxlan = backend(r#","Backend":{"Type":"vxlan"}"#).unwrap();
        assert_eq!((vxlan.port(), vxlan.vni(), vxlan.overlay_mtu(1500)), (8472, Some(1), 1450));
        assert_eq!(backend(r#","Backend":{"Type":"vxlan","MTU":9000}"#).unwrap().overlay_mtu(1500), 8950);
        assert_eq!(vxlan.overlay_mtu(10), 0);
        assert_eq!((vxlan.mtu_of(1500, true), udp.mtu_of(1500, true)), (1430, 1472));
        let host_gw = backend(r#","Backend":{"Type":"host-gw"}"#).unwrap();
        assert_eq!((host_gw.overlay_mtu(1500), host_gw.mtu_of(1500, true)), (1500, 1500));
        assert!(host_gw.is_direct());
        let direct = backend(r#","Backend":{"Type":"vxlan","DirectRouting":true}"#).unwrap();
        assert_eq!((direct.is_direct(), direct.overlay_mtu(1500)), (true, 1450));
        assert_eq!(direct.to_string(), "vxlan with direct routing");
        let refused = backend(r#","Backend":{"Type":"wireguard"}"#).unwrap_err().to_string();
        assert!(refused.contains("backend is wireguard"), "{refused}");
    }

    #[test]
    fn ipv6_needs_links_that_carry_1280_bytes() {
        let vxlan = Backend::DEFAULT;
        let why = vxlan.too_small_for_ipv6(1349).unwrap();
        assert!(why.contains("1349 leaves 1279 bytes") && why.contains("raise it to 1350"), "{why}");
        assert_eq!(vxlan.too_small_for_ipv6(1350), None);
        assert_eq!(Backend::HostGw.too_small_for_ipv6(1280), None);
        assert!(Backend::HostGw.too_small_for_ipv6(1279).is_some());
        // An MTU of the config counts instead of the interface's.
        let narrow = Backend::Vxlan { vni: 1, port: 8472, mtu: Some(1300), direct: false };
        let why = narrow.too_small_for_ipv6(1500).unwrap();
        assert!(why.contains("the config's MTU of 1300 leaves 1230"), "{why}");
    }

    #[test]
    fn leases_are_flannels_and_others_are_left_out_with_a_reason() {
        let mac: Mac = "02:00:00:00:00:02".parse().unwrap();
        let (plain, host_gw) = ("", r#","BackendType":"host-gw""#);
        let vxlan = r#","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}"#;
        let backends = [
            (backend("").unwrap(), plain, None),
            (backend(r#","Backend":{"Type":"host-gw"}"#).unwrap(), host_gw, None),
            (backend(r#","Backend":{"Type":"vxlan"}"#).unwrap(), vxlan, Some(mac)),
        ];
        for (backend, own, found) in backends {
            assert_eq!(peer_mac(backend, own), Ok(found));
            let published = crate::model::lease::Lease {
                subnet: "10.244.2.0/24".parse().unwrap(),
                public_ip: [10, 99, 0, 2].into(),
                backend: backend.published(|| mac),
                ipv6: None,
            };
            let value = format!(r#"{{"PublicIP":"10.99.0.2","PublicIPv6":null{own}}}"#);
            assert_eq!(published.value(), value.as_bytes());
            for other in [plain, host_gw, vxlan].into_iter().filter(|other| *other != own) {
                let why = peer_mac(backend, other).unwrap_err();
                assert!(why.ends_with(&format!(", not {}", backend.name())), "{why}");
            }
        }
        let other_vni = vxlan.replace("\"VNI\":1", "\"VNI\":7");
        let backend = backend(r#","Backend":{"Type":"vxlan"}"#).unwrap();
        assert_eq!(peer_mac(backend, &other_vni), Err("VNI is 7, not 1".to_owned()));
    }
}
