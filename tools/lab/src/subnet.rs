//! Subnets as the lab writes them: `10.244.1.0/24`.
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};

/// Address number `last` of `subnet`.
pub(crate) fn address_in(subnet: &str, last: u8) -> Result<Ipv4Addr> {
    let (base, _) =
        subnet.split_once('/').with_context(|| format!("{subnet} is no subnet like 10.244.1.0/24"))?;
    let base: Ipv4Addr = base.parse().with_context(|| format!("the subnet {subnet}"))?;
    Ok(Ipv4Addr::from(u32::from(base) + u32::from(last)))
}

/// Its prefix length.
pub(crate) fn length_of(subnet: &str) -> Result<u8> {
    let (_, length) = subnet.split_once('/').with_context(|| format!("{subnet} has no prefix length"))?;
    length.parse().with_context(|| format!("the subnet {subnet}"))
}
