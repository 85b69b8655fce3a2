//! What flannel reads of the network's config (flannel pkg/subnet/config.go and each backend's own).
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use serde_json::Value;

pub(super) struct Config {
    pub network: Ipv4Net,
    pub subnet_len: u8,
    min: Ipv4Addr,
    max: Ipv4Addr,
    /// Name of the backend in lower case. flannel's default is `udp`.
    pub backend: String,
    pub vni: u32,
    /// UDP port; 0 stands for the backend's own default.
    pub port: u16,
    /// MTU of the underlay; 0 stands for the interface's.
    pub mtu: u32,
    pub direct_routing: bool,
}

/// Turns field names to lower case, because Go matches them in any case.
pub(super) fn lower(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name.to_lowercase(), lower(value))).collect()
        }
        other => other,
    }
}

impl Config {
    pub(super) fn parse(text: &[u8]) -> Result<Self> {
        let config = lower(serde_json::from_slice(text)?);
        let network: Ipv4Net = config["network"].as_str().context("no Network")?.parse()?;
        let network = network.trunc();
        let backend = &config["backend"];
        let number = |value: &Value, default: u64| value.as_u64().filter(|&n| n != 0).unwrap_or(default);
        let default = if network.prefix_len() <= 22 { 24 } else { network.prefix_len() + 2 };
        let subnet_len = number(&config["subnetlen"], default.into()).try_into()?;
        let size = 1u32 << (32 - subnet_len);
        let bound = |name: &str, default: u32| match config[name].as_str() {
            Some(address) => Ok(address.parse::<Ipv4Addr>()?),
            None => anyhow::Ok(default.into()),
        };
        Ok(Self {
            network,
            subnet_len,
            min: bound("subnetmin", u32::from(network.network()) + size)?,
            max: bound("subnetmax", u32::from(network.broadcast()) + 1 - size)?,
            backend: backend["type"].as_str().unwrap_or("udp").to_lowercase(),
            vni: number(&backend["vni"], 1).try_into()?,
            port: number(&backend["port"], 0).try_into()?,
            mtu: number(&backend["mtu"], 0).try_into()?,
            direct_routing: backend["directrouting"].as_bool().unwrap_or_default(),
        })
    }

    /// Whether a host may have this subnet.
    pub(super) fn fits(&self, subnet: Ipv4Net) -> bool {
        subnet.prefix_len() == self.subnet_len && (self.min..=self.max).contains(&subnet.network())
    }
}
