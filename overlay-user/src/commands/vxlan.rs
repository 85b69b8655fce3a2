//! What the agent takes from the network's config: VXLAN's parameters, or a clear word about other backends.
use anyhow::{Result, bail};
use log::warn;

use crate::network::{BackendConfig, NetworkConfig};

/// The parameters of `Backend.Type` = `vxlan`.
pub(super) struct Vxlan {
    pub(super) vni: u32,
    pub(super) port: u16,
    pub(super) mtu: Option<u32>,
}

impl Vxlan {
    pub(super) fn of(network: &NetworkConfig) -> Result<Self> {
        let other = match &network.backend {
            BackendConfig::Vxlan { vni, port, mtu, direct_routing } => {
                if *direct_routing {
                    warn!(
                        "DirectRouting is not supported yet: every peer is reached by VXLAN, which works everywhere"
                    );
                }
                return Ok(Self { vni: *vni, port: *port, mtu: *mtu });
            }
            BackendConfig::Udp { .. } => "udp (also what a config without `Backend` means)",
            BackendConfig::HostGw => "host-gw",
            BackendConfig::Unsupported(other) => other,
        };
        bail!(
            "the network's backend is {other}, and only vxlan is supported yet: \
             `overlay config set '{{\"Network\":\"{}\",\"Backend\":{{\"Type\":\"vxlan\"}}}}'`",
            network.network
        )
    }
}
