//! The TUN: made to stay when nobody has it open, so that traffic needs no agent.
use tokio_tun::Tun;

use super::DeviceError;
use crate::netlink::LinkKind;

/// Makes it, down. The programs at it see every packet, whether or not anybody reads.
pub(super) fn make(name: &str) -> Result<(), DeviceError> {
    let failed = |error: tokio_tun::Error| DeviceError::NoTun {
        name: name.to_owned(),
        detail: format!("{error}; /dev/net/tun must be there (`modprobe tun`), and free to use"),
    };
    Tun::builder().name(name).persist().build().map(drop).map_err(failed)
}

/// A TUN or TAP.
pub(super) fn is_tun(kind: &LinkKind) -> bool {
    matches!(kind, LinkKind::Other(name) if name == "tun")
}
