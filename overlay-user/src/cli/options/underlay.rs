//! The options that say which interface and address the other hosts reach this one by.
use std::net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr};

use clap::Args;

use crate::host::underlay::{Choice, is_global};

/// Which interface reaches the other hosts.
#[derive(Clone, Debug, Default, Args)]
pub struct UnderlayOptions {
    /// Name or address of the interface that reaches the other hosts; repeat it for more candidates, in order
    #[arg(long)]
    pub iface: Vec<String>,
    /// The same by regular expression, tried after --iface
    #[arg(long, value_name = "REGEX")]
    pub iface_regex: Vec<String>,
    /// Takes the interface by which this address is reached; without any, the default route's
    #[arg(long, value_name = "ADDRESS", value_parser = ipv4)]
    pub iface_can_reach: Option<IpAddr>,
    /// Address by which the other hosts reach this one, if it is not the interface's
    #[arg(long, value_name = "ADDRESS", value_parser = ipv4)]
    pub public_ip: Option<IpAddr>,
    /// IPv6 address by which the other hosts reach this one, in a network of both families; without it, one of the same
    /// interface that stays is chosen
    #[arg(long, value_name = "ADDRESS", value_parser = ipv6)]
    pub public_ipv6: Option<IpAddr>,
}

impl UnderlayOptions {
    /// As flannel chooses by these.
    pub fn choice(&self) -> Choice {
        Choice {
            names: self.iface.clone(),
            patterns: self.iface_regex.clone(),
            can_reach: self.iface_can_reach,
            public_ip: self.public_ip,
            public_ipv6: self.public_ipv6,
        }
    }
}

/// An IPv6 address by which hosts beyond the link may be reached.
fn ipv6(text: &str) -> Result<IpAddr, String> {
    let address = text.parse::<Ipv6Addr>().map_err(|error| error.to_string())?.into();
    if is_global(address) {
        Ok(address)
    } else {
        Err("no other host can be reached at this address".to_owned())
    }
}

/// An IPv4 address.
pub(super) fn ipv4(text: &str) -> Result<IpAddr, AddrParseError> {
    text.parse::<Ipv4Addr>().map(IpAddr::from)
}
