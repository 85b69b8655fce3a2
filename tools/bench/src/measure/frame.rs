//! The frames that are sent: their first bytes, the places in them where connections differ, and the MAC addresses in them.
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use overlay_common::checksum;
use overlay_lab::Namespace;
use serde::Serialize;
use serde_json::Value;

/// The headers, which are written anew for each frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Head {
    /// The first bytes of the frame: 60, 88 or 110.
    #[serde(rename = "head")]
    pub(super) bytes: Vec<u8>,
    /// Bytes of the whole frame without its frame check sequence.
    pub(super) length: usize,
    /// Offsets of the UDP source ports; 0 means none.
    pub(super) ports: [u32; 2],
}

/// The offset of an Ethernet frame's IPv4 header.
pub(super) const IPV4: u32 = 14;
const PORT: u32 = IPV4 + 20;
/// Bytes from the outer IPv4 header to the inner one, with VXLAN, and with UDP alone (where the Ethernet header stays
/// in front).
const VXLAN: u32 = 50;
const UDP: u32 = 28;
/// Port of the discard service. Nobody listens there, because the frames are counted and dropped before.
const DISCARD: u16 = 9;

impl Head {
    /// A UDP packet of a container. `length` counts the Ethernet header, but not the frame check sequence, so the
    /// smallest frame is 60 here and 64 on a wire.
    pub(super) fn inner(macs: [[u8; 6]; 2], from: Ipv4Addr, to: Ipv4Addr, length: usize) -> Result<Self> {
        let mut bytes = Vec::with_capacity(60);
        let [destination, source] = macs;
        bytes.extend(destination);
        bytes.extend(source);
        bytes.extend(0x0800_u16.to_be_bytes());
        let total = u16::try_from(length - 14).context("a frame's length")?;
        let mut header = [0; 20];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        // Don't Fragment is set, the TTL is 64, the protocol is UDP.
        header[6] = 0x40;
        header[8] = 64;
        header[9] = 17;
        header[12..16].copy_from_slice(&from.octets());
        header[16..20].copy_from_slice(&to.octets());
        let sum = checksum::finish(checksum::sum_words(&header, 0, header.len()));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(header);
        // There is no UDP checksum. It is optional in IPv4 (RFC 768), and a program would have to compute it for each
        // frame.
        for word in [0, DISCARD, total - 20, 0] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.resize(60, 0);
        Ok(Self { bytes, length, ports: [PORT, 0] })
    }

    /// The headers of a frame that was captured between the hosts of a network here, whose inner frame is `inner` bytes
    /// long. The difference in length tells the encapsulation.
    pub(super) fn seen(bytes: &[u8], length: usize, inner: usize) -> Result<Self> {
        let more = length.checked_sub(inner).context("a frame that became shorter on its path")?;
        let (head, ports) = match u32::try_from(more)? {
            0 => (60, [PORT, 0]),
            UDP => (88, [PORT, UDP + PORT]),
            VXLAN => (110, [PORT, VXLAN + PORT]),
            other => anyhow::bail!("an encapsulation of {other} bytes"),
        };
        let mut bytes = bytes.get(..head).context("a frame that was not seen whole")?.to_vec();
        // The kernel's device computes a checksum for the outer UDP header, and leaves it unfinished on a veth. It is
        // set to zero (RFC 768), which saves the receiver work. That is to the kernel's advantage, because ours has
        // none.
        bytes[40..42].fill(0);
        Ok(Self { bytes, length, ports })
    }
}

/// MAC address of an interface.
pub(super) fn mac(namespace: &Namespace, interface: &str) -> Result<[u8; 6]> {
    let links: Value =
        serde_json::from_str(&namespace.exec(&format!("ip -json link show dev {interface}"))?)?;
    let text = links[0]["address"].as_str().with_context(|| format!("no MAC address of {interface}"))?;
    let octets = text.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect::<Result<Vec<_>, _>>()?;
    octets.try_into().ok().with_context(|| format!("the MAC address {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
    const TO: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 2);

    #[test]
    fn a_container_s_frame_is_one() {
        let head = Head::inner([[2; 6], [4; 6]], FROM, TO, 60).unwrap();
        assert_eq!((head.bytes.len(), head.ports), (60, [34, 0]));
        assert_eq!(head.bytes[16..18], [0, 46]);
        // A header with its checksum sums to zero (RFC 1071).
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
