//! The kernel's notification that nftables changed, which includes iptables' nftables variant, and its count of such changes.
use nix::errno::Errno;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::{
    changes::Changes,
    error::NetlinkError,
    raw::{find, request, word},
};

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h, as the bit for bind(2) of a netlink socket.
const GROUP: u32 = 1 << (7 - 1);

// From linux/netfilter/nfnetlink.h and nf_tables.h.
const GET_GENERATION: u16 = 10 << 8 | 16;
const NFTA_GEN_ID: u16 = 1;
/// `struct nfgenmsg`: all families, version 0, resource 0.
const ALL: [u8; 4] = [0; 4];

/// How often the rules of this thread's network namespace have changed, by the kernel's count of committed transactions. A
/// kernel without nftables has had no change.
///
/// # Errors
/// When the kernel does not answer.
pub fn generation() -> Result<u32, NetlinkError> {
    match request(NETLINK_NETFILTER, GET_GENERATION, 0, &ALL) {
        Ok(answers) => {
            let id = answers.first().and_then(|answer| find(answer.get(4..)?, NFTA_GEN_ID));
            Ok(id.and_then(word).map_or(0, u32::from_be))
        }
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EINVAL | Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP) => Ok(0),
            _ => Err(NetlinkError::io("ask for the generation of nftables", &error)),
        },
    }
}

/// A subscription to changes of this network namespace's rules. It ends when this is dropped.
pub struct NftablesEvents(Changes);

impl NftablesEvents {
    /// Subscribes.
    pub fn listen() -> Result<Self, NetlinkError> {
        let failed = |error| NetlinkError::io("subscribe to changes of nftables", &error);
        Changes::listen("nftables", NETLINK_NETFILTER, GROUP).map(Self).map_err(failed)
    }

    /// Waits for a change. All notifications that have arrived by then count as one.
    pub async fn next(&mut self) {
        self.0.next().await;
    }
}
