//! A number that changes with the rules of the host's packet filter, so that what was accepted under other rules can be told.
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use anyhow::Result;

use super::{ebtables, iptables};
use crate::host::netlink::generation;

/// A number for the present rules: of nftables, which iptables' newer variant and ebtables' are part of, by the kernel's count of
/// changes, and of the older variants of iptables and ebtables by their text. Equal rules have equal numbers in every agent of
/// one build, so that a restart is no change. The number is never zero.
///
/// # Errors
/// When the kernel or iptables does not tell.
pub async fn fingerprint() -> Result<u32> {
    let mut hasher = DefaultHasher::new();
    generation()?.hash(&mut hasher);
    for line in iptables::lines(&iptables::save(iptables::LEGACY).await?) {
        // Comments tell the time, and a chain's line ends with its counters: `:FORWARD DROP [7:420]`.
        if line.starts_with(':') {
            line.split(" [").next().hash(&mut hasher);
        } else if !line.starts_with('#') {
            line.hash(&mut hasher);
        }
    }
    ebtables::legacy().await.hash(&mut hasher);
    Ok(hasher.finish() as u32 | 1)
}
