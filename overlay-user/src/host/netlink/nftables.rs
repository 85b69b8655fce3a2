//! The kernel's notification that nftables changed, which includes iptables' nftables variant. What changed is not read
//! from it: the receiver looks at the rules themselves.
use futures::FutureExt as _;
use rtnetlink::sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};

use super::error::NetlinkError;

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h, as the bit for bind(2) of a netlink socket.
const GROUP: u32 = 1 << (7 - 1);

/// A subscription to changes of this network namespace's rules. It ends when this is dropped.
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

    /// Waits for a change. All notifications that have arrived by then count as one.
    pub async fn next(&mut self) {
        let mut buffer = Vec::with_capacity(8192);
        // If messages were lost (ENOBUFS), something changed as well.
        let _ = self.socket.recv(&mut buffer).await;
        buffer.clear();
        while matches!(self.socket.recv(&mut buffer).now_or_never(), Some(Ok(_))) {
            buffer.clear();
        }
    }
}
