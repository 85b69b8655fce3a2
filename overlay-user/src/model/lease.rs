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
    /// What it says of IPv6, in a lease of both families.
    pub ipv6: Option<Ipv6Half>,
}

/// The IPv6 half of a lease of both families. There is none without all of this: a flanneld of both families ends if the
/// address is missing, and passes the whole lease by if its backend's data are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipv6Half {
    /// The IPv6 subnet that the host owns.
    pub subnet: IpNet,
    /// The host's IPv6 address on the underlay.
    pub public_ip: IpAddr,
    /// How packets of IPv6 travel to it: as those of IPv4, but flannel has a tunnel device, and hence a MAC address, for each
    /// family.
    pub backend: LeaseBackend,
}

/// The subnets that a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySubnets {
    /// That of IPv4.
    pub subnet: IpNet,
    /// That of IPv6, as it is written: it may have bits behind its prefix, with which it is no subnet.
    pub ipv6: Option<IpNet>,
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
/// not matter. An IPv6 half that cannot be used is left out.
pub fn decode(key: &str, value: &[u8]) -> Result<Lease, BadLease> {
    decode_halves(key, value).map(|(lease, _)| lease)
}

/// Does the same, and says why the IPv6 half was left out, if the key has one: it costs the host only that half.
pub fn decode_halves(key: &str, value: &[u8]) -> Result<(Lease, Option<BadLease>), BadLease> {
    let bad = |problem: anyhow::Error| BadLease { key: key.to_owned(), problem: problem.to_string() };
    let subnets = subnets_of(key).map_err(bad)?;
    let fields = Fields::parse(value).map_err(|problem| bad(anyhow!("the value {problem}")))?;
    let lease = Lease { subnet: subnets.subnet, ..parse_value(&fields).map_err(bad)? };
    let half = subnets.ipv6.map(|subnet| parse_half(&fields, &lease.backend, subnet)).transpose();
    match half {
        Ok(ipv6) => Ok((Lease { ipv6, ..lease }, None)),
        Err(problem) => Ok((lease, Some(bad(problem)))),
    }
}

impl Lease {
    /// The key below `<prefix>/subnets/`: `10.244.61.0-24`, or `10.244.50.0-24&fd00:244:0:4b::-64`.
    pub fn key(&self) -> String {
        let ipv4 = key_of(self.subnet);
        match &self.ipv6 {
            None => ipv4,
            Some(half) => format!("{ipv4}&{}", key_of(half.subnet)),
        }
    }

    /// How `other` differs from this lease, whose public IP it has, in words. `value` is its text in the store, which may have
    /// fields or spaces that reading it leaves out.
    pub fn difference(&self, other: &Self, value: &[u8]) -> String {
        match (&self.backend, &other.backend) {
            (LeaseBackend::Vxlan { vtep_mac: ours, .. }, LeaseBackend::Vxlan { vtep_mac: its, .. })
                if ours != its && self.ipv6 == other.ipv6 =>
            {
                format!("VtepMAC {its} instead of {ours}")
            }
            _ => format!("{} instead of {}", shown(value), shown(&self.value())),
        }
    }

    /// The value, exactly as flannel's encoder writes it: the fields in this order, no spaces, and `PublicIPv6` always there.
    /// In Kubernetes, a flanneld looks for its own MAC address by the text `:"`, so the data have one string each and no more.
    pub fn value(&self) -> Bytes {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Value<'a> {
            #[serde(rename = "PublicIP")]
            public_ip: IpAddr,
            #[serde(rename = "PublicIPv6")]
            public_ipv6: Option<IpAddr>,
            #[serde(skip_serializing_if = "str::is_empty")]
            backend_type: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            backend_data: Option<VxlanData>,
            #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
            backend_v6_data: Option<VxlanData>,
        }
        #[derive(Serialize)]
        struct VxlanData {
            #[serde(rename = "VNI")]
            vni: u32,
            #[serde(rename = "VtepMAC")]
            vtep_mac: Mac,
        }
        let data = |backend: &LeaseBackend| match *backend {
            LeaseBackend::Vxlan { vni, vtep_mac } => Some(VxlanData { vni, vtep_mac }),
            LeaseBackend::Other(_) => None,
        };
        let backend_type = match &self.backend {
            LeaseBackend::Vxlan { .. } => "vxlan",
            LeaseBackend::Other(name) => name.as_str(),
        };
        let value = Value {
            public_ip: self.public_ip,
            public_ipv6: self.ipv6.as_ref().map(|half| half.public_ip),
            backend_type,
            backend_data: data(&self.backend),
            backend_v6_data: self.ipv6.as_ref().and_then(|half| data(&half.backend)),
        };
        serde_json::to_vec(&value).expect("strings and numbers alone always have a JSON form").into()
    }
}

/// A value as it may stand in a line of a log: anybody may have written it.
fn shown(value: &[u8]) -> String {
    const LONGEST: usize = 200;
    let text = String::from_utf8_lossy(value);
    let printable = |of: char| if of.is_control() { char::REPLACEMENT_CHARACTER } else { of };
    let mut shown: String = text.chars().take(LONGEST).map(printable).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

/// The key of a subnet, or of either half of a lease of both families: `10.244.61.0-24`, `fd00:244:0:4b::-64`.
pub fn key_of(subnet: IpNet) -> String {
    format!("{}-{}", subnet.network(), subnet.prefix_len())
}

/// The part of a key that names the IPv4 subnet. No two keys may have the same.
pub fn ipv4_part(key: &str) -> &str {
    key.split_once('&').map_or(key, |(ipv4, _)| ipv4)
}

/// The subnets of a key. The key must match flannel's pattern `(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$`, whose
/// lengths have 5 and 7 bits. Unlike flannel's, the pattern must match from the key's beginning on: a key such as
/// `old10.244.1.0-24` must not pass for a second owner of that subnet. A key that does not match is no flannel's, and none of its
/// halves counts.
pub fn subnets_of(key: &str) -> Result<KeySubnets> {
    let form = "the key is not of the form 10.244.61.0-24 or 10.244.61.0-24&fd00::-64";
    let (v4, v6) = match key.split_once('&') {
        Some((v4, v6)) => (v4, Some(v6)),
        None => (key, None),
    };
    let (address, length) = v4.split_once('-').context(form)?;
    let address: Ipv4Addr = address.parse().ok().context(form)?;
    let length = number(length).filter(|&length| length <= 31).context(form)?;
    let subnet = IpNet::new(address.into(), length).ok().context(form)?;
    let ipv6 = v6.map(|v6| {
        let (address, length) = v6.split_once('-').context(form)?;
        let address: Ipv6Addr = address.parse().ok().context(form)?;
        let length = number(length).filter(|&length| length <= 127).context(form)?;
        IpNet::new(address.into(), length).ok().context(form)
    });
    let ipv6 = ipv6.transpose()?;
    check_first(subnet)?;
    Ok(KeySubnets { subnet, ipv6 })
}

/// Refuses a subnet with bits behind its prefix.
fn check_first(subnet: IpNet) -> Result<()> {
    let (address, length, first) = (subnet.addr(), subnet.prefix_len(), subnet.network());
    if first == address {
        Ok(())
    } else {
        bail!("{address} is not the first address of a /{length} (that is {first})")
    }
}

/// A number that is written with digits only, without sign or spaces.
fn number(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Reads a lease's value: everything of IPv4 but the subnet, which stands in the key.
fn parse_value(fields: &Fields) -> Result<Lease> {
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
        "vxlan" => parse_vxlan(fields, "BackendData")?,
        _ => LeaseBackend::Other(backend_type),
    };
    Ok(Lease { subnet: IpNet::default(), public_ip: public_ip.into(), backend, ipv6: None })
}

/// Reads the IPv6 half of the value of a lease whose key has the subnet of one.
fn parse_half(fields: &Fields, backend: &LeaseBackend, subnet: IpNet) -> Result<Ipv6Half> {
    check_first(subnet)?;
    let public_ip: Ipv6Addr = fields
        .get("PublicIPv6")
        .map_err(|value| anyhow!("PublicIPv6 is {value}, not an IPv6 address"))?
        .context("PublicIPv6 is missing")?;
    if public_ip.is_unspecified()
        || public_ip.is_loopback()
        || public_ip.is_multicast()
        || public_ip.is_unicast_link_local()
        || public_ip.to_ipv4_mapped().is_some()
    {
        bail!("PublicIPv6 is {public_ip}, at which no other host can be reached");
    }
    let backend = match backend {
        LeaseBackend::Vxlan { .. } => parse_vxlan(fields, "BackendV6Data")?,
        LeaseBackend::Other(name) => LeaseBackend::Other(name.clone()),
    };
    Ok(Ipv6Half { subnet, public_ip: public_ip.into(), backend })
}

fn parse_vxlan(lease: &Fields, field: &str) -> Result<LeaseBackend> {
    let data = lease.value(field).cloned().with_context(|| format!("{field} is missing"))?;
    let data = Fields::of(data).with_context(|| format!("{field} is not an object"))?;
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
#[path = "lease_ipv6_tests.rs"]
mod ipv6_tests;

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
