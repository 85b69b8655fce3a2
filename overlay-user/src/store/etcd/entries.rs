//! etcd's keys and values in the words of the store.
use bytes::Bytes;
use etcd_client::KeyValue;

use crate::store::{LeaseEntry, Lifetime, Revision};

/// One key and its value. `subnets` is the prefix of all leases.
pub(super) fn entry(kv: &KeyValue, subnets: &str) -> LeaseEntry {
    let key = String::from_utf8_lossy(kv.key());
    LeaseEntry {
        key: key.strip_prefix(subnets).unwrap_or(&key).to_owned(),
        value: Bytes::copy_from_slice(kv.value()),
        modified: Revision(kv.mod_revision()),
        // A key that is on no etcd lease has no end.
        lifetime: if kv.lease() == 0 { Lifetime::Reserved } else { Lifetime::Limited },
    }
}

/// The first key, in etcd's order, that does not start with `prefix` any more. `prefix` ends with a slash.
pub(super) fn end_of(prefix: &str) -> String {
    // In ASCII `0` comes right after `/`.
    format!("{}0", prefix.trim_end_matches('/'))
}
