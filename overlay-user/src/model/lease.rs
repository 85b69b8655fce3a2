//! A host's lease of a subnet, as flannel writes it: the key's and the value's text, byte for byte (docs/etcd.md).
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use ipnet::IpNet;
use serde::Serialize;

use crate::model::{json::Fields, mac::Mac};

/// The largest VXLAN network identifier: 24 bits (RFC 7348 section 5).
pub const MAX_VNI: u32 = 0xff_ffff;

/// Which host owns a subnet, and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The subnet of the overlay that the host owns.
    pub subnet: IpNet,
    /// The host's address on the underlay, which is also its identity.
    pub public_ip: IpAddr,
    /// How packets travel to it.
    pub backend: LeaseBackend,
}

/// How packets travel to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseBackend {
    /// VXLAN (RFC 7348).
    Vxlan {
        /// VXLAN network identifier; 0 when the lease does not say.
        vni: u32,
        /// MAC address of the host's tunnel device. Every frame that is sent to the host has it as inner destination.
        vtep_mac: Mac,
    },
    /// Another `BackendType`, as it stands in the lease. It is empty if the lease has none, as the leases of flannel's udp
    /// and alloc backends.
    Other(String),
}

/// A key or a value that is no lease. Such a key is skipped, and the other leases are used all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lease {key}: {problem}")]
pub struct BadLease {
    /// The key as it stands in the store.
    pub key: String,
    /// What is wrong.
    pub problem: String,
}

/// Reads one key (without `<prefix>/subnets/`) and its value. Unknown fields are ignored, and the case of field names does
/// not matter. The IPv6 part of a dual-stack key is checked for its form, and left out.
pub fn decode(key: &str, value: &[u8]) -> Result<Lease, BadLease> {
    let bad = |problem: anyhow::Error| BadLease { key: key.to_owned(), problem: problem.to_string() };
    Ok(Lease { subnet: subnet_of(key).map_err(bad)?, ..parse_value(value).map_err(bad)? })
}

impl Lease {
    /// The key below `<prefix>/subnets/`: `10.244.61.0-24`.
    pub fn key(&self) -> String {
        key_of(self.subnet)
    }

    /// The value, exactly as flannel's encoder writes it: the fields in this order, no spaces, and `PublicIPv6` always there.
    pub fn value(&self) -> Bytes {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Value<'a> {
            #[serde(rename = "PublicIP")]
            public_ip: IpAddr,
            #[serde(rename = "PublicIPv6")]
            public_ipv6: Option<Ipv6Addr>,
            #[serde(skip_serializing_if = "str::is_empty")]
            backend_type: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            backend_data: Option<VxlanData>,
        }
        #[derive(Serialize)]
        struct VxlanData {
            #[serde(rename = "VNI")]
            vni: u32,
            #[serde(rename = "VtepMAC")]
            vtep_mac: Mac,
        }
        let (backend_type, backend_data) = match &self.backend {
            &LeaseBackend::Vxlan { vni, vtep_mac } => ("vxlan", Some(VxlanData { vni, vtep_mac })),
            LeaseBackend::Other(name) => (name.as_str(), None),
        };
        let value = Value { public_ip: self.public_ip, public_ipv6: None, backend_type, backend_data };
        serde_json::to_vec(&value).expect("strings and numbers alone always have a JSON form").into()
    }
}

/// The key of a subnet: `10.244.61.0-24`.
pub fn key_of(subnet: IpNet) -> String {
    format!("{}-{}", subnet.network(), subnet.prefix_len())
}

/// The subnet of a key. The key must match flannel's pattern `(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$`, whose
/// lengths have 5 and 7 bits. Unlike flannel's, the pattern must match from the key's beginning on: a key such as
/// `old10.244.1.0-24` must not pass for a second owner of that subnet.
pub(crate) fn subnet_of(key: &str) -> Result<IpNet> {
    let form = "the key is not of the form 10.244.61.0-24 or 10.244.61.0-24&fd00::-64";
    let (v4, v6) = match key.split_once('&') {
        Some((v4, v6)) => (v4, Some(v6)),
        None => (key, None),
    };
    let (address, length) = v4.split_once('-').context(form)?;
    let address: Ipv4Addr = address.parse().ok().context(form)?;
    let length = number(length).filter(|&length| length <= 31).context(form)?;
    if let Some(v6) = v6 {
        let (address, length) = v6.split_once('-').context(form)?;
        address.parse::<Ipv6Addr>().ok().context(form)?;
        number(length).filter(|&length| length <= 127).context(form)?;
    }
    let subnet = IpNet::new(address.into(), length).ok().context(form)?;
    if subnet.network() == address {
        Ok(subnet)
    } else {
        bail!("{address} is not the first address of a /{length} (that is {})", subnet.network())
    }
}

/// A number that is written with digits only, without sign or spaces.
fn number(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Reads a lease's value: everything but the subnet, which stands in the key.
fn parse_value(value: &[u8]) -> Result<Lease> {
    let fields = Fields::parse(value).map_err(|problem| anyhow!("the value {problem}"))?;
    let public_ip: Ipv4Addr = fields
        .get("PublicIP")
        .map_err(|value| anyhow!("PublicIP is {value}, not an IPv4 address"))?
        .context("PublicIP is missing")?;
    if public_ip.is_unspecified() || public_ip.is_multicast() || public_ip.is_broadcast() {
        bail!("PublicIP is {public_ip}, which is no host's address");
    }
    let backend_type: String = fields
        .get("BackendType")
        .map_err(|value| anyhow!("BackendType is {value}, not a string"))?
        .unwrap_or_default();
    let backend = match backend_type.as_str() {
        "vxlan" => parse_vxlan(&fields)?,
        _ => LeaseBackend::Other(backend_type),
    };
    Ok(Lease { subnet: IpNet::default(), public_ip: public_ip.into(), backend })
}

fn parse_vxlan(lease: &Fields) -> Result<LeaseBackend> {
    let data = lease.value("BackendData").cloned().context("BackendData is missing")?;
    let data = Fields::of(data).context("BackendData is not an object")?;
    let vni: u32 =
        data.get("VNI").map_err(|value| anyhow!("VNI is {value}, not a number"))?.unwrap_or_default();
    if vni > MAX_VNI {
        bail!("VNI is {vni}, more than 24 bits hold");
    }
    let vtep_mac: Mac = data
        .get("VtepMAC")
        .map_err(|value| anyhow!("VtepMAC is {value}, not a MAC address"))?
        .context("VtepMAC is missing")?;
    if !vtep_mac.is_unicast() {
        bail!("VtepMAC is {vtep_mac}, which is no device's address");
    }
    Ok(LeaseBackend::Vxlan { vni, vtep_mac })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VXLAN: &str = r#"{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:76:03:0f:23:cb"}}"#;
    const DUAL: &str = r#"{"PublicIP":"10.99.0.1","PublicIPv6":"fd99::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"7a:75:0d:2d:88:95"},"BackendV6Data":{"VNI":1,"VtepMAC":"e6:26:4c:97:8d:05"}}"#;

    fn vxlan(mac: &str) -> LeaseBackend {
        LeaseBackend::Vxlan { vni: 1, vtep_mac: mac.parse().unwrap() }
    }

    fn lease(subnet: &str, backend: LeaseBackend) -> Lease {
        Lease { subnet: subnet.parse().unwrap(), public_ip: "10.99.0.1".parse().unwrap(), backend }
    }

    /// Values that a real flanneld wrote (docs/etcd.md): read, and written again byte for byte.
    #[test]
    fn flannels_own_values_round_trip() {
        let plain = r#"{"PublicIP":"10.99.0.1","PublicIPv6":null}"#;
        let ipip = r#"{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"ipip"}"#;
        for (value, backend) in [
            (VXLAN, vxlan("02:76:03:0f:23:cb")),
            (plain, LeaseBackend::Other(String::new())),
            (ipip, LeaseBackend::Other("ipip".to_owned())),
        ] {
            let read = decode("10.244.61.0-24", value.as_bytes()).unwrap();
            assert_eq!(read, lease("10.244.61.0/24", backend));
            assert_eq!(read.key(), "10.244.61.0-24");
            assert_eq!(read.value(), value.as_bytes());
        }
    }

    #[test]
    fn what_flannel_accepts_is_accepted() {
        let dual = decode("10.244.50.0-24&fd00:244:0:4b::-64", DUAL.as_bytes()).unwrap();
        assert_eq!(dual, lease("10.244.50.0/24", vxlan("7a:75:0d:2d:88:95")));
        let bare = decode("10.244.61.0-24", br#"{"PublicIP":"10.99.0.1"}"#).unwrap();
        assert_eq!(bare.backend, LeaseBackend::Other(String::new()));
        let other_case = r#"{"publicip":"10.99.0.1","backendtype":"vxlan","new":[1],"backenddata":{"vni":1,"vtepmac":"02:76:03:0f:23:cb"}}"#;
        let read = decode("10.244.61.0-24", other_case.as_bytes()).unwrap();
        assert_eq!(read, lease("10.244.61.0/24", vxlan("02:76:03:0f:23:cb")));
        let extension =
            br#"{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"extension","BackendData":"hello"}"#;
        let read = decode("10.244.61.0-24", extension).unwrap();
        assert_eq!(read.backend, LeaseBackend::Other("extension".to_owned()));
    }

    #[test]
    fn bad_keys_are_named() {
        for key in [
            "",
            "10.244.61.0",
            "10.244.61.0-",
            "10.244.61.0-32",
            "10.244.61.0-+24",
            "10.244.61-24",
            "10.244.61.0-24&",
            "10.244.61.0-24&fd00::",
            "10.244.61.0-24&fd00::-128",
            "10.244.61.0-24&zz-64",
            "old10.244.61.0-24",
            "10.244.61.0-24/x",
            "10.244.61.7-24",
        ] {
            let error = decode(key, VXLAN.as_bytes()).unwrap_err();
            assert_eq!(error.key, key);
            assert!(error.to_string().starts_with(&format!("lease {key}: ")));
        }
    }

    #[test]
    fn bad_values_say_what_is_wrong() {
        let with = |from: &str, to: &str| VXLAN.replace(from, to);
        for (value, says) in [
            (String::new(), "not JSON"),
            ("{".to_owned(), "not JSON"),
            ("[]".to_owned(), "not an object"),
            ("{}".to_owned(), "PublicIP is missing"),
            (with("10.99.0.1", "10.99.0"), "PublicIP is \"10.99.0\""),
            (with("10.99.0.1", "0.0.0.0"), "no host's address"),
            (with("\"vxlan\"", "7"), "BackendType is 7"),
            (with("\"VNI\":1", "\"VNI\":-1"), "VNI is -1"),
            (with("\"VNI\":1", "\"VNI\":16777216"), "24 bits"),
            (with("VtepMAC", "Mac"), "VtepMAC is missing"),
            (with(":cb", ""), "VtepMAC is \"02:76:03:0f:23\""),
            (with("\"02:", "\"03:"), "no device's address"),
            (with("BackendData", "Data"), "BackendData is missing"),
        ] {
            let error = decode("10.244.61.0-24", value.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(says), "{value}: {error}");
        }
    }
}
