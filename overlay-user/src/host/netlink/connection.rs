//! A connection to the kernel's rtnetlink.
use super::{error::NetlinkError, monitor::Monitor};

/// A connection to the kernel, for the network namespace of the thread that opened it.
#[derive(Clone, Debug)]
pub struct Netlink {
    pub(super) handle: rtnetlink::Handle,
}

impl Netlink {
    /// Connects. Must be called inside a tokio runtime. Fails if the kernel has no rtnetlink.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|error| NetlinkError::io("open netlink", &error))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Subscribes to changes from now on. To miss nothing, subscribe first, then take a [`Netlink::snapshot`], and then read
    /// the events.
    pub fn monitor(&self) -> Result<Monitor, NetlinkError> {
        Monitor::open()
    }
}
