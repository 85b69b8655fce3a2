//! How the addresses of one family are dealt out to hosts, with the rules of flannel's pkg/subnet/config.go.
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};
use serde::Serialize;
use serde_json::Value;

use super::values::{ConfigError, bad, ipv4_range, read};
use crate::model::{
    addr::{after, number, size},
    json::Fields,
};

/// Which addresses the overlay has in one family, and which parts of them hosts may lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AddressPlan {
    /// The whole overlay.
    pub network: IpNet,
    /// Prefix length of every host's subnet.
    pub subnet_len: u8,
    /// First address of the first subnet to lease.
    pub subnet_min: IpAddr,
    /// First address of the last subnet to lease.
    pub subnet_max: IpAddr,
}

/// Prefix lengths that a family's plan may have.
struct Lengths {
    /// The longest prefix that Network may have, so that four subnets of four addresses fit into it.
    network: u8,
    /// The longest prefix that a subnet may have.
    subnet: u8,
    /// A subnet's length unless the config says otherwise.
    usual: u8,
}

const IPV4: Lengths = Lengths { network: 28, subnet: 30, usual: 24 };

impl AddressPlan {
    /// Reads the fields of IPv4, with every default filled in.
    pub(super) fn read_ipv4(fields: &Fields) -> Result<Self, ConfigError> {
        let network = network(fields)?;
        let subnet_len = subnet_len(fields, network, &IPV4)?;
        let size = size(network.addr(), subnet_len);
        // flannel leases no host the first subnet, because its first address is that of the network itself.
        let first = after(network.network(), size);
        let last = after(network.broadcast(), (size - 1).wrapping_neg());
        let subnet_min = bound(fields, "SubnetMin", network, subnet_len)?.unwrap_or(first);
        let subnet_max = bound(fields, "SubnetMax", network, subnet_len)?.unwrap_or(last);
        if subnet_min > subnet_max {
            let wants = format!("SubnetMax is {subnet_max}: swap them");
            return Err(bad("SubnetMin", subnet_min, &wants));
        }
        Ok(Self { network, subnet_len, subnet_min, subnet_max })
    }

    /// Every subnet a host may lease, in order.
    pub fn candidates(&self) -> impl Iterator<Item = IpNet> + use<> {
        let (first, len) = (self.subnet_min, self.subnet_len);
        let size = size(first, len);
        let count = (number(self.subnet_max) - number(first)) / size;
        (0..=count).map(move |n| IpNet::new_assert(after(first, n * size), len))
    }

    /// The first and the last address of the leasable range: the part of Network that is the overlay's. The first subnet of
    /// Network belongs to it, although no host leases that one, unless SubnetMin leaves out more than it.
    pub fn leasable(&self) -> (IpAddr, IpAddr) {
        let size = size(self.subnet_min, self.subnet_len);
        let base = self.network.network();
        let first = if self.subnet_min <= after(base, size) { base } else { self.subnet_min };
        (first, after(self.subnet_max, size - 1))
    }

    /// The leasable range as prefixes, as few as possible. It is Network alone where all of that is leasable.
    pub fn prefixes(&self) -> Vec<IpNet> {
        match self.leasable() {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                IpSubnets::V4(Ipv4Subnets::new(first, last, 0)).collect()
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                IpSubnets::V6(Ipv6Subnets::new(first, last, 0)).collect()
            }
            _ => unreachable!("both ends are of Network's family"),
        }
    }

    /// Whether all of Network is leasable.
    pub fn is_whole(&self) -> bool {
        self.leasable() == (self.network.network(), self.network.broadcast())
    }

    /// Whether a host may lease this subnet.
    pub fn fits(&self, subnet: IpNet) -> bool {
        subnet.prefix_len() == self.subnet_len
            && subnet.addr() == subnet.network()
            && (self.subnet_min..=self.subnet_max).contains(&subnet.network())
    }
}

fn network(fields: &Fields) -> Result<IpNet, ConfigError> {
    let wants = "it must be an IPv4 range such as \"10.244.0.0/16\"";
    let text: String = read(fields, "Network", wants)?.ok_or_else(|| bad("Network", "missing", wants))?;
    let network = ipv4_range(&text).ok_or_else(|| bad("Network", &text, wants))?;
    let longest = IPV4.network;
    if (1..=longest).contains(&network.prefix_len()) {
        Ok(network.trunc().into())
    } else {
        let wants = format!("it must be a /1 to a /{longest}, so that four subnets of four addresses fit");
        Err(bad("Network", text, &wants))
    }
}

fn subnet_len(fields: &Fields, network: IpNet, lengths: &Lengths) -> Result<u8, ConfigError> {
    let (least, most) = (network.prefix_len() + 2, lengths.subnet);
    let wants = format!("it must be {least} to {most}, so that {network} holds at least four subnets");
    match read(fields, "SubnetLen", &wants)? {
        // In Go's structs zero means that the field is absent.
        None | Some(0) => Ok(lengths.usual.max(least)),
        Some(len) if (least..=most).contains(&len) => Ok(len),
        Some(len) => Err(bad("SubnetLen", len, &wants)),
    }
}

fn bound(
    fields: &Fields,
    field: &str,
    network: IpNet,
    subnet_len: u8,
) -> Result<Option<IpAddr>, ConfigError> {
    let wants = format!("it must be the first address of a /{subnet_len} inside {network}, or left out");
    // Go's fields of this type take null for a text that is no address.
    if fields.written(field).is_some_and(Value::is_null) {
        return Err(bad(field, "null", &wants));
    }
    let given = read(fields, field, &wants)?.filter(|address: &Ipv4Addr| !address.is_unspecified());
    let Some(address) = given.map(IpAddr::from) else { return Ok(None) };
    let is_first = number(address).is_multiple_of(size(address, subnet_len));
    if is_first && network.contains(&address) { Ok(Some(address)) } else { Err(bad(field, address, &wants)) }
}
