//! The config's `Backend`, with the rules of flannel's Documentation/backends.md.
use serde::{Serialize, Serializer};
use serde_json::json;

use super::values::{ConfigError, bad, read, switch};
use crate::model::{json::Fields, lease::MAX_VNI};

/// The UDP port of flannel's VXLAN devices. It is the kernel's own default, not the 4789 that IANA assigned.
pub const VXLAN_PORT: u16 = 8472;
/// The UDP port of flannel's udp backend.
pub const UDP_PORT: u16 = 8285;

/// How packets travel between hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendConfig {
    /// VXLAN (RFC 7348).
    Vxlan {
        /// VXLAN network identifier, 1 to 2^24 - 1.
        vni: u32,
        /// UDP port. It is the same on all hosts, since leases do not carry it.
        port: u16,
        /// MTU of the underlay in bytes; `None` takes that of the interface.
        mtu: Option<u32>,
        /// Hosts on the same link are reached by plain routes, without encapsulation.
        direct_routing: bool,
    },
    /// Bare IPv4 in UDP.
    Udp {
        /// UDP port, the same on all hosts.
        port: u16,
    },
    /// flannel's host-gw: plain routes.
    HostGw,
    /// One that flannel may know and this agent does not, as it is written.
    Unsupported(String),
}

impl BackendConfig {
    /// Reads the field `Backend` of a config.
    pub(super) fn read(fields: &Fields) -> Result<Self, ConfigError> {
        let wants = r#"it must be an object such as {"Type":"vxlan"}"#;
        let Some(value) = fields.written("Backend") else {
            return Ok(BackendConfig::Udp { port: UDP_PORT });
        };
        let options = Fields::of(value.clone()).ok_or_else(|| bad("Backend", value, wants))?;
        let wants = "it must be a name such as \"vxlan\", \"udp\" or \"host-gw\"";
        let name: String =
            read(&options, "Type", wants)?.ok_or_else(|| bad("Backend's Type", "missing", wants))?;
        match name.to_ascii_lowercase().as_str() {
            "vxlan" => vxlan(&options),
            "udp" => Ok(BackendConfig::Udp { port: port(&options, UDP_PORT)? }),
            "host-gw" => Ok(BackendConfig::HostGw),
            "" => Err(bad("Backend's Type", "empty", wants)),
            _ => Ok(BackendConfig::Unsupported(name)),
        }
    }
}

/// Reads the options of a VXLAN backend. `Learning` makes no difference: peers are known from their leases, and are never
/// learned from traffic.
fn vxlan(options: &Fields) -> Result<BackendConfig, ConfigError> {
    let wants = format!("it must be 1 to {MAX_VNI}");
    let vni = read(options, "VNI", &wants)?.unwrap_or(1);
    if !(1..=MAX_VNI).contains(&vni) {
        return Err(bad("VNI", vni, &wants));
    }
    // IPv4 asks of a link that it carries 68 bytes (RFC 791), and the outer headers take 50.
    let wants = "it must be the underlay's MTU, 118 to 65535 bytes, or left out";
    let mtu: Option<u32> = read(options, "MTU", wants)?.filter(|&mtu| mtu != 0);
    if let Some(mtu) = mtu.filter(|mtu| !(118..=65535).contains(mtu)) {
        return Err(bad("MTU", mtu, wants));
    }
    switch(options, "Learning")?;
    if switch(options, "GBP")? == Some(true) {
        return Err(bad("GBP", "true", "group policy tags are not carried: remove the field"));
    }
    Ok(BackendConfig::Vxlan {
        vni,
        port: port(options, VXLAN_PORT)?,
        mtu,
        direct_routing: switch(options, "DirectRouting")?.unwrap_or_default(),
    })
}

fn port(options: &Fields, default: u16) -> Result<u16, ConfigError> {
    let port = read(options, "Port", "it must be a UDP port, 1 to 65535")?;
    Ok(port.filter(|&port| port != 0).unwrap_or(default))
}

impl Serialize for BackendConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = match self {
            Self::Vxlan { vni, port, mtu, direct_routing } => json!({
                "Type": "vxlan", "VNI": vni, "Port": port, "MTU": mtu, "DirectRouting": direct_routing,
            }),
            Self::Udp { port } => json!({ "Type": "udp", "Port": port }),
            Self::HostGw => json!({ "Type": "host-gw" }),
            Self::Unsupported(name) => json!({ "Type": name }),
        };
        value.serialize(serializer)
    }
}
