//! Fields of flannel's config that mean nothing here: those of IPv6 in a network of IPv4 alone, and those that only Kubernetes has. What flanneld cannot read, nobody should take for well written, since it
//! ends over such a config on every host that runs it.
use std::net::IpAddr;

use serde_json::Value;

use super::values::{ConfigError, bad, range, read};
use crate::model::json::Fields;

/// Refuses what flanneld refuses to read, whether or not it would use it.
pub(super) fn check(fields: &Fields) -> Result<(), ConfigError> {
    let is_range = |value: &Value| value.as_str().is_some_and(|text| range(text).is_some());
    let wants = "it must be a range such as \"fd00::/48\", or left out";
    // Go's type for this field takes null for a text that is no range. The other fields take it for absence.
    if let Some(value) = fields.written("IPv6Network").filter(|value| !is_range(value)) {
        return Err(bad("IPv6Network", value, wants));
    }
    for field in ["Networks", "IPv6Networks"] {
        let is_list = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(is_range));
        if let Some(value) = fields.value(field).filter(|value| !is_list(value)) {
            return Err(bad(field, value, "it must be a list of ranges, or left out"));
        }
    }
    for field in ["IPv6SubnetMin", "IPv6SubnetMax"] {
        read::<IpAddr>(fields, field, "it must be an address such as \"fd00:0:0:1::\", or left out")?;
    }
    read::<u64>(fields, "IPv6SubnetLen", "it must be a prefix length, or left out")?;
    Ok(())
}
