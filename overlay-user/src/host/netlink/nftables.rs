//! The kernel's notification that nftables changed, iptables' nftables variant included. It is not read for what changed;
//! whoever receives it looks at the rules.
use futures::FutureExt as _;
use rtnetlink::sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};

use super::error::NetlinkError;

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h, as the bit that bind(2) of a netlink socket takes.
const GROUP: u32 = 1 << (7 - 1);

/// A subscription to changes of this network namespace's rules. Ends with its drop.
pub struct NftablesEvents {
    socket: TokioSocket,
}

impl NftablesEvents {
    /// Subscribes.
    pub fn listen() -> Result<Self, NetlinkError> {
        let failed = |error: &std::io::Error| NetlinkError::io("subscribe to changes of nftables", error);
        let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(|error| failed(&error))?;
        socket.socket_mut().bind(&SocketAddr::new(0, GROUP)).map_err(|error| failed(&error))?;
        Ok(Self { socket })
    }

    /// Waits for a change; takes all that are told by then as one.
    pub async fn next(&mut self) {
        let mut buffer = Vec::with_capacity(8192);
        // Lost messages (ENOBUFS) are changes as well.
        let _ = self.socket.recv(&mut buffer).await;
        buffer.clear();
        while matches!(self.socket.recv(&mut buffer).now_or_never(), Some(Ok(_))) {
            buffer.clear();
        }
    }
}
