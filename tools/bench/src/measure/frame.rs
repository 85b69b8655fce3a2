//! The frames that are sent: their first bytes, and where in them connections differ.
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use overlay_common::checksum;
use serde::Serialize;

/// Headers as they are written anew for each frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Head {
    /// The first bytes: 60, 88 or 110.
    #[serde(rename = "head")]
    pub(super) bytes: Vec<u8>,
    /// Bytes of the whole frame, its checksum left out.
    pub(super) length: usize,
    /// Where source ports of UDP stand; 0 for none.
    pub(super) ports: [u32; 2],
}

/// Where the IPv4 header of a frame stands, and its UDP header, and what that is on top of.
pub(super) const IPV4: u32 = 14;
const PORT: u32 = IPV4 + 20;
/// From the outer IPv4 header to the inner: UDP and VXLAN, or UDP alone (Ethernet's stays in front).
const VXLAN: u32 = 50;
const UDP: u32 = 28;
/// The discard service: nobody listens, the frames end before anybody could.
const DISCARD: u16 = 9;

impl Head {
    /// A UDP packet of a container: `length` counts Ethernet's header, not its checksum (which makes the smallest frame 60
    /// here, 64 on a wire).
    pub(super) fn plain(macs: [[u8; 6]; 2], from: Ipv4Addr, to: Ipv4Addr, length: usize) -> Result<Self> {
        let mut bytes = Vec::with_capacity(60);
        let [destination, source] = macs;
        bytes.extend(destination);
        bytes.extend(source);
        bytes.extend(0x0800_u16.to_be_bytes());
        let total = u16::try_from(length - 14).context("a frame's length")?;
        let mut header = [0; 20];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        // Don't fragment, 64 hops, UDP.
        header[6] = 0x40;
        header[8] = 64;
        header[9] = 17;
        header[12..16].copy_from_slice(&from.octets());
        header[16..20].copy_from_slice(&to.octets());
        let sum = checksum::finish(checksum::sum_words(&header, 0, header.len()));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(header);
        // No UDP checksum: it is optional in IPv4 (RFC 768), and a program would have to make each frame's.
        for word in [0, DISCARD, total - 20, 0] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.resize(60, 0);
        Ok(Self { bytes, length, ports: [PORT, 0] })
    }

    /// A frame that was seen between the hosts, of one of the networks here, whose inner frame is `inner` bytes long: so many
    /// bytes longer, so encapsulated.
    pub(super) fn seen(bytes: &[u8], length: usize, inner: usize) -> Result<Self> {
        let more = length.checked_sub(inner).context("a frame that became shorter on its way")?;
        let (head, ports) = match u32::try_from(more)? {
            0 => (60, [PORT, 0]),
            UDP => (88, [PORT, UDP + PORT]),
            VXLAN => (110, [PORT, VXLAN + PORT]),
            other => anyhow::bail!("an encapsulation of {other} bytes"),
        };
        let mut bytes = bytes.get(..head).context("a frame that was not seen whole")?.to_vec();
        // The checksum of the outer UDP header: the kernel's device makes one, and leaves it unfinished on a veth. Without
        // one (RFC 768), the receiver has less to do: to the kernel's advantage, for ours has none.
        bytes[40..42].fill(0);
        Ok(Self { bytes, length, ports })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
    const TO: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 2);

    #[test]
    fn a_container_s_frame_is_one() {
        let head = Head::plain([[2; 6], [4; 6]], FROM, TO, 60).unwrap();
        assert_eq!((head.bytes.len(), head.ports), (60, [34, 0]));
        assert_eq!(head.bytes[16..18], [0, 46]);
        // With its checksum, a header adds up to nothing (RFC 1071).
        assert_eq!(checksum::finish(checksum::sum_words(&head.bytes[14..], 0, 20)), 0);
        assert_eq!(head.bytes[36..42], [0, 9, 0, 26, 0, 0]);
    }

    #[test]
    fn encapsulation_is_told_by_what_it_adds() {
        let bytes = [7; 136];
        let head = |length| Head::seen(&bytes, length, 1396).unwrap();
        assert_eq!((head(1396).bytes.len(), head(1396).ports), (60, [34, 0]));
        assert_eq!((head(1424).bytes.len(), head(1424).ports), (88, [34, 62]));
        assert_eq!((head(1446).bytes.len(), head(1446).ports), (110, [34, 84]));
        assert!(Head::seen(&bytes, 1450, 1396).is_err());
        assert!(Head::seen(&bytes, 1000, 1396).is_err());
    }
}
