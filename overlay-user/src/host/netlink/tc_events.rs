//! The kernel's notifications about queueing disciplines and filters. Only the interface is read from them: the crate
//! rtnetlink would read every option of every kind of filter, and lose a notification with an option that it does not know.
use std::{collections::BTreeSet, io};

use futures::FutureExt as _;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, TokioSocket, protocols::NETLINK_ROUTE};

use super::{error::NetlinkError, raw::messages};

/// `RTNLGRP_TC` of linux/rtnetlink.h.
const GROUP: u32 = 4;

/// A subscription in this thread's network namespace. It ends when this is dropped. The kernel does not tell of programs that
/// are attached by TCX.
pub struct TcEvents {
    socket: TokioSocket,
}

impl TcEvents {
    /// Subscribes.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_mut().bind_auto()?;
            socket.socket_mut().add_membership(GROUP)?;
            Ok(Self { socket })
        };
        open().map_err(|error| NetlinkError::io("subscribe to changes of tc", &error))
    }

    /// Waits for changes, and returns the indexes of their interfaces, of all notifications that have arrived by then. `None` if
    /// some were lost, or if any interface may be meant.
    pub async fn next(&mut self) -> io::Result<Option<BTreeSet<u32>>> {
        let mut changed = self.piece().await?;
        while let Some(piece) = self.piece().now_or_never() {
            changed = changed.zip(piece?).map(|(all, more)| &all | &more);
        }
        Ok(changed)
    }

    async fn piece(&mut self) -> io::Result<Option<BTreeSet<u32>>> {
        const ENOBUFS: i32 = 105;
        match self.socket.recv_from_full().await {
            Ok((piece, _)) => Ok(interfaces(&piece)),
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The interface is the second word of `struct tcmsg`. Filters of a block that several interfaces share name none, so that any
/// may be meant.
fn interfaces(piece: &[u8]) -> Option<BTreeSet<u32>> {
    /// `TCM_IFINDEX_MAGIC_BLOCK` of linux/rtnetlink.h.
    const BLOCK: u32 = u32::MAX;
    let index = |body: &[u8]| Some(u32::from_ne_bytes(*body.get(4..)?.first_chunk()?));
    let found: BTreeSet<u32> = messages(piece).filter_map(index).collect();
    (!found.contains(&BLOCK)).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notification(ifindex: u32) -> Vec<u8> {
        let words: [u32; 9] = [36, 36, 0, 0, 0, ifindex, 0x8001_0000, u32::MAX, 2];
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn every_notification_of_a_piece_is_read() {
        let piece = [notification(7), notification(9), notification(7)].concat();
        assert_eq!(interfaces(&piece), Some([7, 9].into()));
        assert_eq!(interfaces(&piece[..50]), Some([7].into()), "cut short");
        assert_eq!(interfaces(&[notification(7), notification(u32::MAX)].concat()), None);
    }
}
