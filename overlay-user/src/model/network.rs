//! The network's config: what the operator writes once under `<prefix>/config`, with flannel's rules (its pkg/subnet/config.go and Documentation/backends.md).
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Serialize, Serializer, de::DeserializeOwned};
use serde_json::json;

use crate::model::{json::Fields, lease::MAX_VNI};

/// What flannel's VXLAN devices use: the kernel's own default, not IANA's 4789.
pub const VXLAN_PORT: u16 = 8472;
/// flannel's port for bare IP in UDP.
pub const UDP_PORT: u16 = 8285;

/// A checked config with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkConfig {
    /// The whole overlay.
    pub network: Ipv4Net,
    /// Prefix length of every host's subnet.
    pub subnet_len: u8,
    /// First address of the first subnet to lease.
    pub subnet_min: Ipv4Addr,
    /// First address of the last subnet to lease.
    pub subnet_max: Ipv4Addr,
    /// How packets travel between hosts.
    pub backend: BackendConfig,
}

/// How packets travel between hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendConfig {
    /// VXLAN (RFC 7348).
    Vxlan {
        /// VXLAN network identifier, 1 to 2^24 - 1.
        vni: u32,
        /// UDP port, the same on all hosts: leases do not carry it.
        port: u16,
        /// MTU of the underlay in bytes; `None` takes that of the interface.
        mtu: Option<u32>,
        /// Plain routes, without encapsulation, to hosts on the same link.
        direct_routing: bool,
    },
    /// Bare IPv4 in UDP.
    Udp {
        /// UDP port, the same on all hosts.
        port: u16,
    },
    /// Plain routes.
    HostGw,
    /// One that flannel may know and we do not, as written.
    Unsupported(String),
}

/// A config that flannel's rules, or ours, refuse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("network config: {0}")]
pub struct ConfigError(String);

impl NetworkConfig {
    /// Reads the config's JSON, with field names in any case and unknown ones ignored, and checks it.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigError> {
        let fields = Fields::parse(text).map_err(|problem| {
            ConfigError(format!(
                r#"the text {problem}; write one such as {{"Network":"10.244.0.0/16","Backend":{{"Type":"vxlan"}}}}"#
            ))
        })?;
        for (field, default, only) in [("EnableIPv4", true, true), ("EnableIPv6", false, false)] {
            let enabled = switch(&fields, field)?.unwrap_or(default);
            if enabled != only {
                return Err(bad(field, enabled, "only IPv4 overlays are supported: remove the field"));
            }
        }
        // How flannel masquerades, no matter here; but what flannel cannot read, nobody should take for well written.
        switch(&fields, "EnableNFTables")?;
        let network = network(&fields)?;
        let subnet_len = subnet_len(&fields, network)?;
        // flannel leaves out the first subnet: its first address is the network's own.
        let first = u32::from(network.network()) + size(subnet_len);
        let last = u32::from(network.broadcast()) - (size(subnet_len) - 1);
        let subnet_min = bound(&fields, "SubnetMin", network, subnet_len)?.unwrap_or(first.into());
        let subnet_max = bound(&fields, "SubnetMax", network, subnet_len)?.unwrap_or(last.into());
        if subnet_min > subnet_max {
            let wants = format!("SubnetMax is {subnet_max}: swap them");
            return Err(bad("SubnetMin", subnet_min, &wants));
        }
        let backend = backend(&fields)?;
        Ok(Self { network, subnet_len, subnet_min, subnet_max, backend })
    }

    /// The config with every default written out, as one line of JSON that [`NetworkConfig::parse`] reads again.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers alone always have a JSON form")
    }

    /// Every subnet a host may lease, in order.
    pub fn candidates(&self) -> impl Iterator<Item = Ipv4Net> + use<> {
        let len = self.subnet_len;
        let (first, last) = (u32::from(self.subnet_min), u32::from(self.subnet_max));
        let first = (0..=(last - first) / size(len)).map(move |n| first + n * size(len));
        first.map(move |first| Ipv4Net::new_assert(first.into(), len))
    }

    /// Whether a host may lease this subnet.
    pub fn fits(&self, subnet: Ipv4Net) -> bool {
        subnet.prefix_len() == self.subnet_len
            && subnet.addr() == subnet.network()
            && (self.subnet_min..=self.subnet_max).contains(&subnet.network())
    }
}

fn network(fields: &Fields) -> Result<Ipv4Net, ConfigError> {
    let wants = "it must be an IPv4 range such as \"10.244.0.0/16\"";
    let text: String = read(fields, "Network", wants)?.ok_or_else(|| bad("Network", "missing", wants))?;
    let network: Ipv4Net = text.parse().map_err(|_| bad("Network", &text, wants))?;
    if (1..=28).contains(&network.prefix_len()) {
        Ok(network.trunc())
    } else {
        let wants = "it must be a /1 to a /28, so that four subnets of four addresses fit";
        Err(bad("Network", text, wants))
    }
}

fn subnet_len(fields: &Fields, network: Ipv4Net) -> Result<u8, ConfigError> {
    let least = network.prefix_len() + 2;
    let wants = format!("it must be {least} to 30, so that {network} holds at least four subnets");
    match read(fields, "SubnetLen", &wants)? {
        // Zero is Go's way to say absent.
        None | Some(0) if network.prefix_len() <= 22 => Ok(24),
        None | Some(0) => Ok(least),
        Some(len) if (least..=30).contains(&len) => Ok(len),
        Some(len) => Err(bad("SubnetLen", len, &wants)),
    }
}

fn bound(
    fields: &Fields,
    field: &str,
    network: Ipv4Net,
    subnet_len: u8,
) -> Result<Option<Ipv4Addr>, ConfigError> {
    let wants = format!("it must be the first address of a /{subnet_len} inside {network}, or left out");
    let Some(address) = read(fields, field, &wants)?.filter(|address: &Ipv4Addr| !address.is_unspecified())
    else {
        return Ok(None);
    };
    let aligned = u32::from(address).is_multiple_of(size(subnet_len));
    if aligned && network.contains(&address) { Ok(Some(address)) } else { Err(bad(field, address, &wants)) }
}

fn backend(fields: &Fields) -> Result<BackendConfig, ConfigError> {
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

/// `Learning` makes no difference: peers are known from their leases, never learned from traffic.
fn vxlan(options: &Fields) -> Result<BackendConfig, ConfigError> {
    let wants = format!("it must be 1 to {MAX_VNI}");
    let vni = read(options, "VNI", &wants)?.unwrap_or(1);
    if !(1..=MAX_VNI).contains(&vni) {
        return Err(bad("VNI", vni, &wants));
    }
    // 68 bytes are the least that IPv4 asks of a link (RFC 791), 50 go to the outer headers.
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

fn switch(fields: &Fields, field: &str) -> Result<Option<bool>, ConfigError> {
    read(fields, field, "it must be true or false")
}

fn read<T: DeserializeOwned>(fields: &Fields, field: &str, wants: &str) -> Result<Option<T>, ConfigError> {
    fields.get(field).map_err(|value| bad(field, value, wants))
}

fn bad(field: &str, value: impl std::fmt::Display, wants: &str) -> ConfigError {
    ConfigError(format!("{field} is {value}, but {wants}"))
}

/// Addresses in a subnet.
fn size(subnet_len: u8) -> u32 {
    1 << (32 - subnet_len)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn flannels_defaults() {
        let config = parse(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
        assert_eq!(config.network.to_string(), "10.244.0.0/16");
        assert_eq!(config.subnet_len, 24);
        assert_eq!(config.subnet_min.to_string(), "10.244.1.0");
        assert_eq!(config.subnet_max.to_string(), "10.244.255.0");
        let vxlan = BackendConfig::Vxlan { vni: 1, port: 8472, mtu: None, direct_routing: false };
        assert_eq!(config.backend, vxlan);
        assert_eq!(config.candidates().count(), 255);
        assert_eq!(parse(&config.to_json()), config);
    }

    #[test]
    fn absent_backend_is_udp_and_host_bits_go() {
        let config = parse(r#"{"Network":"10.244.3.4/16"}"#);
        assert_eq!(config.network.to_string(), "10.244.0.0/16");
        assert_eq!(config.backend, BackendConfig::Udp { port: 8285 });
    }

    #[test]
    fn any_case_and_every_option() {
        let config = parse(
            r#"{"network":"10.0.0.0/8","subnetlen":20,"SUBNETMIN":"10.10.0.0","subnetMax":"10.99.0.0","unknown":{},
                "backend":{"type":"VXLAN","vni":70000,"port":4789,"mtu":9000,"directrouting":true,"learning":true}}"#,
        );
        let vxlan = BackendConfig::Vxlan { vni: 70000, port: 4789, mtu: Some(9000), direct_routing: true };
        assert_eq!(config.backend, vxlan);
        assert_eq!(config.subnet_len, 20);
        assert_eq!(config.candidates().next().unwrap().to_string(), "10.10.0.0/20");
        assert_eq!(config.candidates().last().unwrap().to_string(), "10.99.0.0/20");
        assert_eq!(parse(&config.to_json()), config);
        assert!(config.fits("10.10.16.0/20".parse().unwrap()));
        for elsewhere in ["10.9.240.0/20", "10.99.16.0/20", "10.10.16.0/24", "10.10.16.1/20"] {
            assert!(!config.fits(elsewhere.parse().unwrap()), "{elsewhere}");
        }
    }

    #[test]
    fn small_and_large_networks() {
        for (network, len, min, max) in [
            ("10.0.0.0/22", 24, "10.0.1.0", "10.0.3.0"),
            ("10.0.0.0/23", 25, "10.0.0.128", "10.0.1.128"),
            ("10.0.0.0/28", 30, "10.0.0.4", "10.0.0.12"),
            ("252.0.0.0/6", 24, "252.0.1.0", "255.255.255.0"),
        ] {
            let config = parse(&format!(r#"{{"Network":"{network}"}}"#));
            assert_eq!(config.subnet_len, len, "{network}");
            assert_eq!(config.subnet_min.to_string(), min);
            assert_eq!(config.subnet_max.to_string(), max);
            assert_eq!(config.candidates().next().unwrap().network(), config.subnet_min);
            assert_eq!(config.candidates().last().unwrap().network(), config.subnet_max);
        }
    }

    /// What flannel's configs may hold beside: no field of ours, no error of ours.
    #[test]
    fn what_makes_no_difference_is_read_all_the_same() {
        let plain = parse(r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan"}}"#);
        for more in [
            r#""EnableIPv4":true,"EnableIPv6":false,"EnableNFTables":true"#,
            r#""IPv6Network":"fd00::/48","IPv6SubnetLen":64,"IPv6SubnetMin":"fd00::","IPv6SubnetMax":"fd00::""#,
            r#""SubnetLen":0,"SubnetMin":"0.0.0.0","SubnetMax":"0.0.0.0","EnableIPv4":null,"SubnetLen":null"#,
        ] {
            assert_eq!(
                parse(&format!(r#"{{"Network":"10.0.0.0/16",{more},"Backend":{{"Type":"vxlan"}}}}"#)),
                plain
            );
        }
        for options in [
            r#""Learning":true,"GBP":false,"DirectRouting":false"#,
            r#""Port":0,"MTU":0,"MacPrefix":"0E-2A","Name":"x""#,
        ] {
            let text = format!(r#"{{"Network":"10.0.0.0/16","Backend":{{"Type":"VxLAN",{options}}}}}"#);
            assert_eq!(parse(&text), plain);
        }
        let udp = parse(r#"{"Network":"10.0.0.0/16","Backend":{"Type":"UDP","port":9000}}"#);
        assert_eq!(udp.backend, BackendConfig::Udp { port: 9000 });
    }

    #[test]
    fn foreign_backends_are_read_not_guessed() {
        let backend = |name: &str| {
            parse(&format!(r#"{{"Network":"10.0.0.0/16","Backend":{{"Type":"{name}"}}}}"#)).backend
        };
        assert_eq!(backend("host-gw"), BackendConfig::HostGw);
        assert_eq!(backend("wireguard"), BackendConfig::Unsupported("wireguard".to_owned()));
    }

    #[test]
    fn errors_name_field_value_and_remedy() {
        for (text, says) in [
            ("", "not JSON"),
            ("[]", "not an object"),
            ("{}", "Network is missing"),
            (r#"{"Network":"10.0.0.0"}"#, "Network is 10.0.0.0, but it must be an IPv4 range"),
            (r#"{"Network":7}"#, "Network is 7"),
            (r#"{"Network":"10.0.0.0/29"}"#, "Network is 10.0.0.0/29"),
            (r#"{"Network":"0.0.0.0/0"}"#, "Network is 0.0.0.0/0"),
            (r#"{"Network":"10.0.0.0/16","SubnetLen":17}"#, "SubnetLen is 17, but it must be 18 to 30"),
            (r#"{"Network":"10.0.0.0/16","SubnetLen":31}"#, "SubnetLen is 31"),
            (r#"{"Network":"10.0.0.0/16","SubnetLen":"24"}"#, "SubnetLen is \"24\""),
            (r#"{"Network":"10.0.0.0/16","SubnetMin":"10.1.0.0"}"#, "SubnetMin is 10.1.0.0"),
            (r#"{"Network":"10.0.0.0/16","SubnetMax":"10.0.1.1"}"#, "SubnetMax is 10.0.1.1"),
            (
                r#"{"Network":"10.0.0.0/16","SubnetMin":"10.0.9.0","SubnetMax":"10.0.8.0"}"#,
                "SubnetMin is 10.0.9.0",
            ),
            (r#"{"Network":"10.0.0.0/16","EnableIPv4":false}"#, "EnableIPv4 is false"),
            (r#"{"Network":"10.0.0.0/16","EnableIPv6":true}"#, "EnableIPv6 is true"),
            (
                r#"{"Network":"10.0.0.0/16","EnableIPv4":"no"}"#,
                "EnableIPv4 is \"no\", but it must be true or false",
            ),
            (r#"{"Network":"10.0.0.0/16","EnableIPv6":1}"#, "EnableIPv6 is 1"),
            (r#"{"Network":"10.0.0.0/16","EnableNFTables":"x"}"#, "EnableNFTables is \"x\""),
            (r#"{"Network":"10.0.0.0/16","Backend":null}"#, "Backend is null, but it must be an object"),
            (r#"{"Network":"10.0.0.0/16","Backend":{"Type":""}}"#, "Type is empty"),
            (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","Learning":2}}"#, "Learning is 2"),
            (
                r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","DirectRouting":"y"}}"#,
                "DirectRouting is \"y\"",
            ),
            (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","Port":-1}}"#, "Port is -1"),
            (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"udp","Port":70000}}"#, "Port is 70000"),
            (r#"{"Network":"10.0.0.0/16","Backend":{}}"#, "Type is missing"),
            (r#"{"Network":"10.0.0.0/16","Backend":"vxlan"}"#, "Backend is \"vxlan\""),
            (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","VNI":0}}"#, "VNI is 0"),
            (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#, "VNI is 16777216"),
            (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","Port":65536}}"#, "Port is 65536"),
            (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","MTU":100}}"#, "MTU is 100"),
            (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan","GBP":true}}"#, "GBP is true"),
        ] {
            let error = NetworkConfig::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
