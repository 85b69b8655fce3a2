//! How the addresses of one family are dealt out to hosts, with the rules of flannel's pkg/subnet/config.go.
use std::net::IpAddr;

use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};
use serde::Serialize;
use serde_json::Value;

use super::values::{ConfigError, bad, ipv4_range, range, read};
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

/// What tells the fields and limits of one family from the other's.
struct Rules {
    network: &'static str,
    subnet_len: &'static str,
    subnet_min: &'static str,
    subnet_max: &'static str,
    /// What the field of the network must hold, in words.
    wants: &'static str,
    /// The longest prefix that the network may have, so that four subnets of four addresses fit into it.
    longest_network: u8,
    /// The longest prefix that a subnet may have.
    longest_subnet: u8,
    /// A subnet's length unless the config says otherwise.
    usual: u8,
    /// Whether flannel's fields for the first and the last subnet may be null: they are pointers in Go's struct.
    may_be_null: bool,
}

const IPV4: Rules = Rules {
    network: "Network",
    subnet_len: "SubnetLen",
    subnet_min: "SubnetMin",
    subnet_max: "SubnetMax",
    wants: "it must be an IPv4 range such as \"10.244.0.0/16\"",
    longest_network: 28,
    longest_subnet: 30,
    usual: 24,
    may_be_null: false,
};

const IPV6: Rules = Rules {
    network: "IPv6Network",
    subnet_len: "IPv6SubnetLen",
    subnet_min: "IPv6SubnetMin",
    subnet_max: "IPv6SubnetMax",
    wants: "it must be an IPv6 range such as \"fd00:244::/48\", because EnableIPv6 is true",
    longest_network: 124,
    longest_subnet: 126,
    usual: 64,
    may_be_null: true,
};

/// Ranges that no container may have addresses of (RFC 4291 sections 2.4 and 2.5), and what they are for.
const NEVER_CONTAINERS: [(&str, &str); 3] = [
    ("::/8", "the loopback address and addresses that stand for IPv4's"),
    ("fe80::/10", "addresses of a single link"),
    ("ff00::/8", "multicast addresses"),
];

impl AddressPlan {
    /// Reads the fields of IPv4, with every default filled in.
    pub(super) fn read_ipv4(fields: &Fields) -> Result<Self, ConfigError> {
        Self::read(fields, &IPV4, |text| ipv4_range(text).map(IpNet::V4))
    }

    /// Reads the fields of IPv6, with every default filled in.
    pub(super) fn read_ipv6(fields: &Fields) -> Result<Self, ConfigError> {
        let plan = Self::read(fields, &IPV6, |text| range(text).filter(|range| range.addr().is_ipv6()))?;
        for (range, what) in NEVER_CONTAINERS {
            let range: IpNet = range.parse().expect("the table's ranges are well formed");
            if range.contains(&plan.network) || plan.network.contains(&range) {
                let wants = format!(
                    "it must not overlap {range}, {what}: choose a part of fd00::/8 (RFC 4193), or of a range that is yours"
                );
                return Err(bad(IPV6.network, plan.network, &wants));
            }
        }
        Ok(plan)
    }

    fn read(
        fields: &Fields,
        rules: &Rules,
        range: impl Fn(&str) -> Option<IpNet>,
    ) -> Result<Self, ConfigError> {
        let network = network(fields, rules, range)?;
        let subnet_len = subnet_len(fields, network, rules)?;
        let size = size(network.addr(), subnet_len);
        // flannel leases no host the first subnet, because its first address is that of the network itself.
        let first = after(network.network(), size);
        let last = after(network.broadcast(), (size - 1).wrapping_neg());
        let read = |field| bound(fields, rules, field, network, subnet_len);
        let subnet_min = read(rules.subnet_min)?.unwrap_or(first);
        let subnet_max = read(rules.subnet_max)?.unwrap_or(last);
        if subnet_min > subnet_max {
            let wants = format!("{} is {subnet_max}: swap them", rules.subnet_max);
            return Err(bad(rules.subnet_min, subnet_min, &wants));
        }
        Ok(Self { network, subnet_len, subnet_min, subnet_max })
    }

    /// How many subnets there are to lease.
    pub fn count(&self) -> u128 {
        (number(self.subnet_max) - number(self.subnet_min)) / size(self.subnet_min, self.subnet_len) + 1
    }

    /// The subnet to lease with this place in their order, if there are so many.
    pub fn candidate(&self, place: u128) -> Option<IpNet> {
        let first = after(self.subnet_min, place.checked_mul(size(self.subnet_min, self.subnet_len))?);
        (place < self.count()).then(|| IpNet::new_assert(first, self.subnet_len))
    }

    /// The place of the first subnet to lease whose addresses all come after this one.
    pub fn place_behind(&self, address: IpAddr) -> u128 {
        let size = size(self.subnet_min, self.subnet_len);
        number(address).checked_sub(number(self.subnet_min)).map_or(0, |steps| steps / size + 1)
    }

    /// Every subnet a host may lease, in order.
    pub fn candidates(&self) -> impl Iterator<Item = IpNet> + use<> {
        let plan = *self;
        (0..self.count()).map_while(move |place| plan.candidate(place))
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

fn network(
    fields: &Fields,
    rules: &Rules,
    range: impl Fn(&str) -> Option<IpNet>,
) -> Result<IpNet, ConfigError> {
    let Rules { network: field, wants, longest_network: longest, .. } = *rules;
    let text: String = read(fields, field, wants)?.ok_or_else(|| bad(field, "missing", wants))?;
    let network = range(&text).ok_or_else(|| bad(field, &text, wants))?;
    if (1..=longest).contains(&network.prefix_len()) {
        Ok(network.trunc())
    } else {
        let wants = format!("it must be a /1 to a /{longest}, so that four subnets of four addresses fit");
        Err(bad(field, text, &wants))
    }
}

fn subnet_len(fields: &Fields, network: IpNet, rules: &Rules) -> Result<u8, ConfigError> {
    let (least, most) = (network.prefix_len() + 2, rules.longest_subnet);
    let wants = format!("it must be {least} to {most}, so that {network} holds at least four subnets");
    match read(fields, rules.subnet_len, &wants)? {
        // In Go's structs zero means that the field is absent.
        None | Some(0) => Ok(rules.usual.max(least)),
        Some(len) if (least..=most).contains(&len) => Ok(len),
        Some(len) => Err(bad(rules.subnet_len, len, &wants)),
    }
}

fn bound(
    fields: &Fields,
    rules: &Rules,
    field: &str,
    network: IpNet,
    subnet_len: u8,
) -> Result<Option<IpAddr>, ConfigError> {
    let wants = format!("it must be the first address of a /{subnet_len} inside {network}, or left out");
    // Go's fields of IPv4's type take null for a text that is no address.
    if !rules.may_be_null && fields.written(field).is_some_and(Value::is_null) {
        return Err(bad(field, "null", &wants));
    }
    let given = read(fields, field, &wants)?.filter(|address: &IpAddr| !address.is_unspecified());
    let Some(address) = given else { return Ok(None) };
    let is_first = number(address).is_multiple_of(size(address, subnet_len));
    if is_first && network.contains(&address) { Ok(Some(address)) } else { Err(bad(field, address, &wants)) }
}
