//! Where addresses become keys of maps. There are maps for IPv4 alone yet.
use std::net::IpAddr;

use overlay_common::Addr4;

use super::error::DatapathError;
use crate::model::addr::ipv4;

/// The key of an address, for what `action` is to do.
pub(super) fn key(address: IpAddr, action: impl FnOnce() -> String) -> Result<Addr4, DatapathError> {
    ipv4(address).map(Addr4::from).map_err(|error| DatapathError::failed(action(), &error))
}
