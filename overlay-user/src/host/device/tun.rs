//! The TUN: made to stay when nobody has it open, so that traffic needs no agent, and to be opened by root alone.
use std::fs::File;

use anyhow::{Result, anyhow};
use tokio_tun::Tun;

use crate::host::netlink::LinkKind;

/// Who may open it. Without an owner anybody may (tun_not_capable in drivers/net/tun.c), and would be taken for the agent,
/// whose word for who sent a packet counts.
const ROOT: u32 = 0;

/// Makes it, down. The programs at it see every packet, whether or not anybody reads.
pub(super) fn make(name: &str) -> Result<()> {
    let made = Tun::builder().name(name).owner(ROOT as i32).persist().build();
    made.map(drop).map_err(|error| failed(name, &error))
}

/// Fails where there are no TUNs, before anything is removed for the sake of one.
pub(super) fn can_be_made(name: &str) -> Result<()> {
    let opened = File::options().read(true).write(true).open("/dev/net/tun");
    opened.map(drop).map_err(|error| failed(name, &error))
}

/// One that [`make`] made: not a VPN's of the same name.
pub(super) fn is_ours(kind: &LinkKind) -> bool {
    matches!(kind, LinkKind::Tun(tun)
        if tun.is_persistent && tun.owner == Some(ROOT) && !tun.is_tap && !tun.is_multi_queue)
}

fn failed(name: &str, error: &dyn std::error::Error) -> anyhow::Error {
    anyhow!(
        "make tun device {name}: {error}; /dev/net/tun must be there (`modprobe tun`), and root's to open"
    )
}
