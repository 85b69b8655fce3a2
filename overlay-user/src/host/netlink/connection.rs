//! A connection to the kernel's rtnetlink.
use std::sync::Arc;

use tokio::task::JoinSet;

use super::{error::NetlinkError, monitor::Monitor, running::running};

/// A connection to the kernel, for the network namespace of the thread that opened it. It ends with the last clone.
#[derive(Clone, Debug)]
pub struct Netlink {
    pub(super) handle: rtnetlink::Handle,
    _connection: Arc<JoinSet<()>>,
}

impl Netlink {
    /// Connects. Must be called inside a tokio runtime. Fails if the kernel has no rtnetlink.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|error| NetlinkError::io("open netlink", &error))?;
        Ok(Self { handle, _connection: Arc::new(running(connection)) })
    }

    /// Subscribes to changes from now on. To miss nothing, subscribe first, then take a [`Netlink::snapshot`], and then read
    /// the events.
    pub fn monitor(&self) -> Result<Monitor, NetlinkError> {
        Monitor::open()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{runtime::Handle, task::yield_now};

    use super::*;

    #[tokio::test]
    async fn a_connection_ends_with_whoever_opened_it() {
        let tasks = || Handle::current().metrics().num_alive_tasks();
        let netlink = Netlink::open().unwrap();
        let monitor = netlink.monitor().unwrap();
        let clone = netlink.clone();
        drop(netlink);
        // The kernel is asked, so that both connections have been at work.
        clone.links().await.unwrap();
        yield_now().await;
        assert_eq!(tasks(), 2);
        drop(monitor);
        yield_now().await;
        assert_eq!(tasks(), 1);
        drop(clone);
        yield_now().await;
        assert_eq!(tasks(), 0);
    }
}
