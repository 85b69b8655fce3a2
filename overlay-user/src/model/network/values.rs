//! Values of the network's config, and what is said of wrong ones.
use std::fmt;

use ipnet::{IpNet, Ipv4Net};
use serde::de::DeserializeOwned;

use crate::model::json::Fields;

/// A config that flannel's rules, or ours, refuse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("network config: {0}")]
pub struct ConfigError(pub(super) String);

/// The value of a field, if it is there. `wants` says what it must be.
pub(super) fn read<T: DeserializeOwned>(
    fields: &Fields,
    field: &str,
    wants: &str,
) -> Result<Option<T>, ConfigError> {
    fields.get(field).map_err(|value| bad(field, value, wants))
}

/// The value of a field that is true or false.
pub(super) fn switch(fields: &Fields, field: &str) -> Result<Option<bool>, ConfigError> {
    read(fields, field, "it must be true or false")
}

/// A range as Go's net.ParseCIDR reads it, which takes no number with a zero in front: to some programs those are octal.
pub(super) fn ipv4_range(text: &str) -> Option<Ipv4Net> {
    let (address, length) = text.split_once('/')?;
    Ipv4Net::new(address.parse().ok()?, digits(length)?).ok()
}

/// The same for a range of either family.
pub(super) fn range(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    IpNet::new(address.parse().ok()?, digits(length)?).ok()
}

fn digits(text: &str) -> Option<u8> {
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok())?
}

/// What is said of a wrong value.
pub(super) fn bad(field: &str, value: impl fmt::Display, wants: &str) -> ConfigError {
    ConfigError(format!("{field} is {value}, but {wants}"))
}
