//! The kernel's notification that nftables changed, which includes iptables' nftables variant. What changed is not read
//! from it: the receiver looks at the rules themselves.
use futures::FutureExt as _;
use nix::errno::Errno;
use rtnetlink::sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};

use super::{
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
