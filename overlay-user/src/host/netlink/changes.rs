//! Notifications of the kernel that say that something changed. What changed is not read from them: the receiver looks at the
//! thing itself.
use std::io;

use futures::FutureExt as _;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

/// A subscription in this thread's network namespace. It ends when this is dropped.
pub(super) struct Changes {
    socket: TokioSocket,
}

impl Changes {
    /// Subscribes to these groups of a netlink protocol, given as bits for bind(2): bit 0 is group 1.
    pub(super) fn listen(protocol: isize, groups: u32) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket })
    }

    /// Waits for a change. All notifications that have arrived by then count as one.
    pub(super) async fn next(&mut self) {
        let mut buffer = Vec::with_capacity(8192);
        // If messages were lost (ENOBUFS), something changed as well.
        let _ = self.socket.recv(&mut buffer).await;
        buffer.clear();
        while matches!(self.socket.recv(&mut buffer).now_or_never(), Some(Ok(_))) {
            buffer.clear();
        }
    }
}

/// Waits for the next change of a subscription, or for ever where there is none.
pub async fn told(next: Option<impl Future<Output = ()>>) {
    match next {
        Some(next) => next.await,
        None => std::future::pending().await,
    }
}
