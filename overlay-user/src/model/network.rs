//! The network's config: what the operator writes once under `<prefix>/config`, with flannel's rules.
mod backend_config;
mod other_fields;
mod plan;
mod values;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use self::values::{bad, switch};
pub use self::{
    backend_config::{BackendConfig, UDP_PORT, VXLAN_PORT},
    plan::AddressPlan,
    values::ConfigError,
};
use crate::model::json::Fields;

/// Whether this agent carries IPv6 between hosts. As long as it does not, it must not tell others that it would: it refuses a
/// config with `EnableIPv6`, and so has no IPv6 subnet to lease. This is the only place that decides it; everything that
/// follows from [`NetworkConfig::ipv6`] is there.
pub const IPV6_CARRIED: bool = false;

/// A checked config with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkConfig {
    /// The addresses of IPv4, which every host has.
    #[serde(flatten)]
    pub plan: AddressPlan,
    /// The addresses of IPv6, in a network of both families (`EnableIPv6`).
    #[serde(flatten, serialize_with = "ipv6_fields")]
    pub ipv6: Option<AddressPlan>,
    /// How packets travel between hosts.
    pub backend: BackendConfig,
}

impl NetworkConfig {
    /// Reads the config's JSON, with field names in any case and unknown ones ignored, and checks it. A config with `EnableIPv6`
    /// is an error unless [`IPV6_CARRIED`].
    pub fn parse(text: &[u8]) -> Result<Self, ConfigError> {
        Self::read(text, IPV6_CARRIED)
    }

    /// Does the same for whoever only wants to know what the config says: IPv6 is read whether or not this agent carries it.
    pub fn parse_both_families(text: &[u8]) -> Result<Self, ConfigError> {
        Self::read(text, true)
    }

    fn read(text: &[u8], is_ipv6_carried: bool) -> Result<Self, ConfigError> {
        let fields = Fields::parse(text).map_err(|problem| {
            ConfigError(format!(
                r#"the text {problem}; write one such as {{"Network":"10.244.0.0/16","Backend":{{"Type":"vxlan"}}}}"#
            ))
        })?;
        if switch(&fields, "EnableIPv4")? == Some(false) {
            let why = "a lease's key begins with an IPv4 subnet, so that a host without one cannot be written down: remove the \
                       field, and have IPv6 beside IPv4";
            return Err(bad("EnableIPv4", false, why));
        }
        let has_ipv6 = switch(&fields, "EnableIPv6")?.unwrap_or_default();
        if has_ipv6 && !is_ipv6_carried {
            return Err(bad("EnableIPv6", true, "only IPv4 overlays are supported: remove the field"));
        }
        // How flannel masquerades makes no difference here. But what flannel cannot read, nobody should take for well
        // written.
        switch(&fields, "EnableNFTables")?;
        other_fields::check(&fields)?;
        let plan = AddressPlan::read_ipv4(&fields)?;
        let ipv6 = has_ipv6.then(|| AddressPlan::read_ipv6(&fields)).transpose()?;
        let backend = BackendConfig::read(&fields)?;
        if ipv6.is_some() && matches!(backend, BackendConfig::Udp { .. }) {
            let why = "flannel's udp backend carries IPv4 alone, and a lease with an IPv6 subnet and no IPv6 address ends every \
                       flanneld of both families: remove the field, or use the backend vxlan or host-gw";
            return Err(bad("EnableIPv6", true, why));
        }
        Ok(Self { plan, ipv6, backend })
    }

    /// The config with every default written out, as one line of JSON that [`NetworkConfig::parse`] reads again.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers alone always have a JSON form")
    }
}

/// The fields of IPv6's plan, or none.
fn ipv6_fields<S: Serializer>(plan: &Option<AddressPlan>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Ipv6Fields {
        #[serde(rename = "EnableIPv6")]
        enable: bool,
        #[serde(rename = "IPv6Network")]
        network: IpNet,
        #[serde(rename = "IPv6SubnetLen")]
        subnet_len: u8,
        #[serde(rename = "IPv6SubnetMin")]
        subnet_min: IpAddr,
        #[serde(rename = "IPv6SubnetMax")]
        subnet_max: IpAddr,
    }
    let fields = plan.map(|AddressPlan { network, subnet_len, subnet_min, subnet_max }| Ipv6Fields {
        enable: true,
        network,
        subnet_len,
        subnet_min,
        subnet_max,
    });
    fields.serialize(serializer)
}

#[cfg(test)]
#[path = "network/ipv6_tests.rs"]
mod ipv6_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn flannels_defaults() {
        let config = parse(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
        assert_eq!(config.plan.network.to_string(), "10.244.0.0/16");
        assert_eq!(config.plan.subnet_len, 24);
        assert_eq!(config.plan.subnet_min.to_string(), "10.244.1.0");
        assert_eq!(config.plan.subnet_max.to_string(), "10.244.255.0");
        let vxlan = BackendConfig::Vxlan { vni: 1, port: 8472, mtu: None, direct_routing: false };
        assert_eq!(config.backend, vxlan);
        assert_eq!(config.plan.candidates().count(), 255);
        assert_eq!(parse(&config.to_json()), config);
    }

    #[test]
    fn absent_backend_is_udp_and_host_bits_go() {
        let config = parse(r#"{"Network":"10.244.3.4/16"}"#);
        assert_eq!(config.plan.network.to_string(), "10.244.0.0/16");
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
        assert_eq!(config.plan.subnet_len, 20);
        assert_eq!(config.plan.candidates().next().unwrap().to_string(), "10.10.0.0/20");
        assert_eq!(config.plan.candidates().last().unwrap().to_string(), "10.99.0.0/20");
        assert_eq!(parse(&config.to_json()), config);
        assert!(config.plan.fits("10.10.16.0/20".parse().unwrap()));
        for elsewhere in ["10.9.240.0/20", "10.99.16.0/20", "10.10.16.0/24", "10.10.16.1/20"] {
            assert!(!config.plan.fits(elsewhere.parse().unwrap()), "{elsewhere}");
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
            assert_eq!(config.plan.subnet_len, len, "{network}");
            assert_eq!(config.plan.subnet_min.to_string(), min);
            assert_eq!(config.plan.subnet_max.to_string(), max);
            assert_eq!(config.plan.candidates().next().unwrap().network(), config.plan.subnet_min);
            assert_eq!(config.plan.candidates().last().unwrap().network(), config.plan.subnet_max);
        }
    }

    #[test]
    fn the_leasable_range_is_what_subnet_min_and_max_leave() {
        let plan = |more: &str| parse(&format!(r#"{{"Network":"10.0.0.0/8"{more}}}"#)).plan;
        let prefixes =
            |more: &str| -> Vec<String> { plan(more).prefixes().iter().map(ToString::to_string).collect() };
        for whole in ["", r#","SubnetMin":"10.0.0.0""#, r#","SubnetMax":"10.255.255.0""#] {
            assert!(plan(whole).is_whole(), "{whole}");
            assert_eq!(prefixes(whole), ["10.0.0.0/8"], "{whole}");
        }
        let part = r#","SubnetMin":"10.10.0.0","SubnetMax":"10.50.0.0""#;
        assert!(!plan(part).is_whole());
        let (first, last) = plan(part).leasable();
        assert_eq!((first.to_string().as_str(), last.to_string().as_str()), ("10.10.0.0", "10.50.0.255"));
        let expected =
            ["10.10.0.0/15", "10.12.0.0/14", "10.16.0.0/12", "10.32.0.0/12", "10.48.0.0/15", "10.50.0.0/24"];
        assert_eq!(prefixes(part), expected);
        assert_eq!(prefixes(r#","SubnetMax":"10.63.255.0""#), ["10.0.0.0/10"]);
        assert_eq!(prefixes(r#","SubnetLen":10,"SubnetMin":"10.128.0.0""#), ["10.128.0.0/9"]);
    }

    /// Fields that flannel's configs may have and that make no difference here. They are no error.
    #[test]
    fn what_makes_no_difference_is_read_all_the_same() {
        let plain = parse(r#"{"Network":"10.0.0.0/16","Backend":{"Type":"vxlan"}}"#);
        for more in [
            r#""EnableIPv4":true,"EnableIPv6":false,"EnableNFTables":true"#,
            r#""IPv6SubnetMin":null,"IPv6SubnetMax":null,"IPv6SubnetLen":null,"Networks":null,"IPv6Networks":["fd00::/48"]"#,
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
            (r#"{"Network":"010.244.0.0/16"}"#, "Network is 010.244.0.0/16, but it must be an IPv4 range"),
            (r#"{"Network":"10.244.0.0/+16"}"#, "Network is 10.244.0.0/+16"),
            (r#"{"Network":null}"#, "Network is missing"),
            (r#"{"Network":"10.0.0.0/16","SubnetMin":null}"#, "SubnetMin is null, but it must be the first"),
            (r#"{"Network":"10.0.0.0/16","SubnetMax":null}"#, "SubnetMax is null"),
            (r#"{"Network":"10.0.0.0/16","SubnetMin":"010.0.1.0"}"#, "SubnetMin is \"010.0.1.0\""),
            (
                r#"{"Network":"10.0.0.0/16","IPv6Network":"x"}"#,
                "IPv6Network is \"x\", but it must be a range",
            ),
            (r#"{"Network":"10.0.0.0/16","IPv6Network":null}"#, "IPv6Network is null"),
            (r#"{"Network":"10.0.0.0/16","IPv6SubnetMin":"fd00::/64"}"#, "IPv6SubnetMin is \"fd00::/64\""),
            (r#"{"Network":"10.0.0.0/16","IPv6SubnetLen":"64"}"#, "IPv6SubnetLen is \"64\""),
            (r#"{"Network":"10.0.0.0/16","Networks":["x"]}"#, "Networks is [\"x\"]"),
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
