//! What two hosts delivered, side by side. The one place that says in what they may differ:
//!
//! - **one hop less**: the kernel of a receiving host is a router between its tunnel and its bridge, and takes one from the
//!   TTL. The fast path is one hop from container to container, the sender's; so its packets have one more. What
//!   has less than two is left to the stack, so that no packet arrives that would have expired.
//! - **the outer UDP checksum is not verified**: "the decapsulating end point MAY choose to perform this verification"
//!   (RFC 7348 section 5), and the programs do not: they have no helper that sums a whole packet. The inner checksum is
//!   never trusted for it. The kernel gets such a frame with the checksum zero, so that the rest is compared all the same. Under
//!   `--fast-path established` our host's own kernel verifies it, and both hosts get the same frame.
//!
//! What ours drops and the kernel delivers is not here but in `rules`: each frame has its reason there.
use std::collections::HashMap;

use crate::{headers::checksum, mutations::Case, options::FastPath, rules::Fate};

/// Frames that one host delivered and the other did not.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    pub(crate) ours_only: Vec<Vec<u8>>,
    pub(crate) kernel_only: Vec<Vec<u8>>,
    /// How many frames both delivered.
    pub(crate) same: u64,
}

pub(crate) fn compare(ours: &[Vec<u8>], kernel: &[Vec<u8>]) -> Difference {
    let mut left: HashMap<&[u8], u64> = HashMap::new();
    for frame in kernel {
        *left.entry(frame).or_default() += 1;
    }
    let mut difference = Difference::default();
    let mut take = |frame: &[u8]| match left.get_mut(frame) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    };
    for frame in ours {
        if take(frame) || one_hop_less(frame).is_some_and(|frame| take(&frame)) {
            difference.same += 1;
        } else {
            difference.ours_only.push(frame.clone());
        }
    }
    for (frame, count) in left {
        difference.kernel_only.extend((0..count).map(|_| frame.to_vec()));
    }
    // The frames come from a map, which has no order, but a report must have one.
    difference.kernel_only.sort();
    difference
}

/// The frame as a router would forward it.
fn one_hop_less(frame: &[u8]) -> Option<Vec<u8>> {
    let mut frame = frame.to_vec();
    let header = usize::from(frame.get(14)? & 15) * 4;
    let ip =
        frame.get_mut(14..14 + header).filter(|ip| ip.len() >= 20 && checksum(ip, 0) == 0 && ip[8] > 1)?;
    ip[8] -= 1;
    ip[10..12].fill(0);
    let sum = checksum(ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    Some(frame)
}

/// The frames of `case` as the kernel's host gets them.
pub(crate) fn for_the_kernel(case: &Case, fate: &Fate, fast_path: FastPath) -> Vec<Vec<u8>> {
    let mut frames = case.frames.clone();
    if fast_path == FastPath::On && fate.broken_outer_sum && fate.decap == [overlay_common::Reason::Carried] {
        for frame in frames.iter_mut().filter(|frame| frame.len() >= 42) {
            frame[40..42].fill(0);
        }
    }
    frames
}

/// Whether `delivered` can come from `case`, because its addresses, its identification and its payload are in there.
pub(crate) fn comes_from(delivered: &[u8], case: &Case) -> bool {
    let Some(packet) = delivered.get(14..).filter(|packet| packet.len() >= 20) else {
        return false;
    };
    let payload = &packet[(usize::from(packet[0] & 15) * 4).min(packet.len())..];
    let has_all =
        |bytes: &[u8]| [&packet[4..6], &packet[12..20], payload].iter().all(|needle| contains(bytes, needle));
    // One that was not encapsulated has its addresses in its only IPv4 header.
    if case.frames.iter().any(|frame| has_all(frame)) {
        return true;
    }
    // The payloads of fragments of the outer datagram are put into the order of their offsets.
    let mut parts: Vec<(u16, &[u8])> = Vec::new();
    for frame in &case.frames {
        let at = if frame.get(12..14) == Some(&[0x81, 0x00]) { 18 } else { 14 };
        let Some(ip) = frame.get(at..at + 20) else { continue };
        // What is behind the packet does not belong to the datagram.
        let length = usize::from(u16::from_be_bytes([ip[2], ip[3]])).clamp(20, frame.len() - at);
        parts.push((u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff, &frame[at + 20..at + length]));
    }
    parts.sort_by_key(|(offset, _)| *offset);
    parts.dedup();
    let whole: Vec<u8> = parts.iter().flat_map(|(_, part)| part.iter().copied()).collect();
    has_all(&whole)
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || bytes.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{Frame, Transport};

    fn delivered(ttl: u8) -> Vec<u8> {
        let mut frame = Frame::valid(1, Transport::Udp, 20);
        frame.inner.ttl = ttl;
        frame.frames()[0][50..].to_vec()
    }

    #[test]
    fn one_hop_and_nothing_else_may_differ() {
        let same = |ours: &[u8], kernel: &[u8]| compare(&[ours.to_vec()], &[kernel.to_vec()]).same == 1;
        assert!(same(&delivered(64), &delivered(64)));
        assert!(same(&delivered(64), &delivered(63)));
        assert!(!same(&delivered(63), &delivered(64)));
        assert!(!same(&delivered(64), &delivered(62)));
        let mut other = delivered(63);
        *other.last_mut().unwrap() ^= 1;
        assert!(!same(&delivered(64), &other));
        let once = compare(&[delivered(64)], &[delivered(64), delivered(64)]);
        assert_eq!((once.same, once.kernel_only.len()), (1, 1));
    }
}
