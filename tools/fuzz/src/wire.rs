//! Raw frames sent into one interface and received from another, by packet sockets.
use std::{
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind, recv, send,
        setsockopt, socket, sockopt::RcvBufForce,
    },
};

use overlay_lab::Namespace;

/// The socket's buffer in bytes, which is far more than the frames between two marks.
const BUFFER: usize = 32 << 20;

/// A packet socket on one interface.
#[derive(Debug)]
pub(crate) struct Wire(OwnedFd);

impl Wire {
    /// A socket that only sends; what arrives is not copied to it.
    pub(crate) fn out_of(namespace: &Namespace, interface: &'static str) -> Result<Self> {
        Self::open(namespace, interface, None)
    }

    /// A socket that sees everything that `interface` receives and sends.
    pub(crate) fn into(namespace: &Namespace, interface: &'static str) -> Result<Self> {
        let wire = Self::open(namespace, interface, Some(SockProtocol::EthAll))?;
        // Until it was bound, the socket received from every interface.
        while wire.next(Duration::ZERO)?.is_some() {}
        Ok(wire)
    }

    fn open(namespace: &Namespace, interface: &'static str, protocol: Option<SockProtocol>) -> Result<Self> {
        // A socket stays in the namespace in which it was made.
        namespace.enter(move || {
            let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
            if protocol.is_some() {
                setsockopt(&fd, RcvBufForce, &BUFFER)?;
            }
            let address = getifaddrs()?
                .filter(|entry| entry.interface_name == interface)
                .filter_map(|entry| entry.address)
                .find(|address| address.family() == Some(AddressFamily::Packet))
                .with_context(|| format!("no interface {interface}"))?;
            bind(fd.as_raw_fd(), &address).with_context(|| format!("bind to {interface}"))?;
            Ok(Self(fd))
        })
    }

    /// Sends one frame, of at least 14 bytes and at most the interface's MTU and its header.
    pub(crate) fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.0.as_raw_fd(), frame, MsgFlags::empty());
        sent.map(drop).with_context(|| format!("send a frame of {} bytes", frame.len()))
    }

    /// Receives the next frame, waiting at most `limit`.
    pub(crate) fn next(&self, limit: Duration) -> Result<Option<Vec<u8>>> {
        let mut buffer = [0; 65_536];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => return Ok(Some(buffer[..length].to_vec())),
                Err(Errno::EAGAIN) if limit.is_zero() => return Ok(None),
                Err(Errno::EAGAIN) => {
                    let mut wanted = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
                    if poll(&mut wanted, PollTimeout::try_from(limit)?)? == 0 {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error).context("receive a frame"),
            }
        }
    }
}
