//! Keys of maps, made of addresses. So far there are maps for IPv4 only.
use std::net::IpAddr;

use overlay_common::Addr4;

use super::error::DatapathError;
use crate::model::addr::ipv4;

/// The key of an address. If it has none, the error says that `action` failed.
pub(super) fn key(address: IpAddr, action: impl FnOnce() -> String) -> Result<Addr4, DatapathError> {
    ipv4(address).map(Addr4::from).map_err(|error| DatapathError::failed(action(), &error))
}
