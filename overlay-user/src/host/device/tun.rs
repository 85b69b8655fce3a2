//! The TUN: made to stay when nobody has it open, so that traffic needs no agent, and to be opened by root alone.
use std::fs::File;

use anyhow::{Result, anyhow};
use tokio_tun::Tun;

use crate::host::netlink::LinkKind;

/// The owner: who may open the device. Without an owner anybody may (tun_not_capable in drivers/net/tun.c). The
/// programs trust whoever opens it as they trust the agent, which names the sender of each packet that it writes.
const ROOT: u32 = 0;

/// Makes the device, and leaves it down. The programs that are attached to it see every packet, even if nobody reads
/// from the device.
pub(super) fn make(name: &str) -> Result<()> {
    let made = Tun::builder().name(name).owner(ROOT as i32).persist().build();
    made.map(drop).map_err(|error| failed(name, &error))
}

/// Fails if this kernel has no TUNs. It is called before another device is removed in order to make one.
pub(super) fn can_be_made(name: &str) -> Result<()> {
    let opened = File::options().read(true).write(true).open("/dev/net/tun");
    opened.map(drop).map_err(|error| failed(name, &error))
}

/// Whether a TUN is one that [`make`] made, and not a VPN's of the same name.
pub(super) fn is_ours(kind: &LinkKind) -> bool {
    matches!(kind, LinkKind::Tun(tun)
        if tun.is_persistent && tun.owner == Some(ROOT) && !tun.is_tap && !tun.is_multi_queue)
}

fn failed(name: &str, error: &dyn std::error::Error) -> anyhow::Error {
    anyhow!(
        "make tun device {name}: {error}; /dev/net/tun must be there (`modprobe tun`), and root's to open"
    )
}
