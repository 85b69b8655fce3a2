//! Underlay to container before there is a packet buffer: the judgement of `decap.rs`, carried out on the driver's own.
//!
//! What these programs do not take passes untouched and uncounted: TC judges it again, and counts it.
use aya_ebpf::{
    EbpfContext as _,
    bindings::{xdp_action::XDP_PASS, xdp_md},
    helpers::generated::{
        bpf_check_mtu, bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_meta, bpf_xdp_get_buff_len,
    },
    programs::XdpContext,
};
use overlay_common::{
    Reason, Stripped, checksum,
    wire::{ETHERNET, ETHERTYPE_IPV4, IPV4},
};

use crate::{
    count::{self, Size},
    decap::{self, Delivery},
    frame::Frame,
    ipv4::{IPPROTO_TCP as TCP, IPPROTO_UDP as UDP, Ipv4},
    maps, packet, settings,
    verdict::{Answer, Exit},
};

const ICMP: u8 = 1;

/// A frame at an XDP hook; its Ethernet header is at offset 0.
pub(crate) struct XdpFrame<'a> {
    ctx: &'a XdpContext,
    length: u32,
    is_plain: bool,
}

impl<'a> XdpFrame<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext) -> Self {
        // SAFETY: the context pointer the kernel gave. Counts the fragments that a large frame has behind its first buffer.
        let length = unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) } as u32;
        let frame = Self { ctx, length, is_plain: false };
        // Asked now: later the frame may begin elsewhere.
        Self { is_plain: decap::is_plain(&frame), ..frame }
    }

    #[inline(always)]
    fn context(&self) -> *mut xdp_md {
        self.ctx.as_ptr().cast()
    }

    /// Moves the frame's beginning so that the packet lies behind an Ethernet header. On refusal the frame is as it was.
    #[inline(always)]
    fn take_room(&self, length: usize) -> Option<()> {
        if length == 0 {
            return Some(());
        }
        // SAFETY: no pointer into the frame is held across the call.
        let result = unsafe { bpf_xdp_adjust_head(self.context(), length as i32) };
        (result == 0).then_some(())
    }

    /// Makes `length` bytes of room in front of the frame that GRO compares and TC can read, or takes it away.
    /// Refused by drivers that keep none.
    #[inline(always)]
    fn make_note(&self, length: i32) -> Option<()> {
        // SAFETY: no pointer into the frame is held across the call.
        let result = unsafe { bpf_xdp_adjust_meta(self.context(), -length) };
        (result == 0).then_some(())
    }

    /// Writes into the room in front of the frame.
    #[inline(always)]
    fn write_note(&self, note: Stripped) -> Result<(), Reason> {
        let start = self.ctx.metadata();
        if start + size_of::<Stripped>() > self.ctx.metadata_end() {
            return Err(Reason::Failed);
        }
        // SAFETY: between data_meta and data (checked above, which is what the verifier needs to see).
        unsafe { (start as *mut Stripped).write_unaligned(note) };
        Ok(())
    }

    /// Writes bytes that exist already, in the first buffer.
    #[inline(always)]
    fn store<const N: usize>(&self, offset: usize, bytes: [u8; N]) -> Result<(), Reason> {
        let start = self.ctx.data() + offset;
        if start + N > self.ctx.data_end() {
            return Err(Reason::Failed);
        }
        // SAFETY: N bytes between data and data_end (checked above).
        unsafe { (start as *mut [u8; N]).write_unaligned(bytes) };
        Ok(())
    }

    /// What is delivered has the container's addresses, and the congestion mark of its way.
    #[inline(always)]
    fn finish(&self, delivery: &Delivery) -> Result<(), Reason> {
        self.store(0, decap::macs(&delivery.endpoint))?;
        // Where the packet had no Ethernet header, outer bytes stand in its place.
        self.store(12, ETHERTYPE_IPV4)?;
        if delivery.tos != delivery.inner.tos {
            self.store(ETHERNET + 1, [delivery.tos])?;
            self.store(ETHERNET + 10, decap::marked(&delivery.inner, delivery.tos))?;
        }
        Ok(())
    }

    /// Adds `N` bytes of the first buffer, divisible by 4, to a sum of words as the machine reads them.
    #[inline(always)]
    fn add<const N: usize>(&self, offset: usize, sum: u32) -> Option<u32> {
        let start = self.ctx.data() + offset;
        if start + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: N bytes between data and data_end (checked above), read by the helper only.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, start as *mut u32, N as u32, sum) };
        // The helper's errors are negative numbers; sums may have the upper bit of 32 set.
        (sum >= 0).then_some(sum as u32)
    }

    /// Sum of `length` bytes of the first buffer as big-endian 16-bit words, folded (RFC 1071), padded by a zero byte.
    #[inline(always)]
    fn sum(&self, offset: usize, length: u16) -> Option<u32> {
        // The helper takes 512 bytes at a time before Linux 6.13; a buffer has no more than a page.
        const BLOCKS: usize = 8;
        let mut left = usize::from(length);
        let (mut at, mut sum) = (offset, 0);
        for _ in 0..BLOCKS {
            if left < 512 {
                break;
            }
            sum = self.add::<512>(at, sum)?;
            at += 512;
            left -= 512;
        }
        if left >= 512 {
            return None;
        }
        macro_rules! add {
            ($($n:literal)+) => {$(
                if left & $n != 0 {
                    sum = self.add::<$n>(at, sum)?;
                    at += $n;
                }
            )+};
        }
        add!(256 128 64 32 16 8 4);
        let mut words = u64::from(sum);
        if left & 2 != 0 {
            words += u64::from(u16::from_ne_bytes(self.read(at)?));
            at += 2;
        }
        if left & 1 != 0 {
            let [byte] = self.read(at)?;
            words += u64::from(u16::from_ne_bytes([byte, 0]));
        }
        let once = (words & 0xffff) + (words >> 16 & 0xffff) + (words >> 32);
        let twice = (once & 0xffff) + (once >> 16);
        let thrice = (twice & 0xffff) + (twice >> 16);
        // Swapping the folded sum's bytes gives the other order (RFC 1071 section 2 (B)).
        Some(u32::from(u16::from_be(thrice as u16)))
    }

    /// The packet and its inner bytes.
    #[inline(always)]
    pub(crate) fn size(&self) -> Size {
        let headers = ETHERNET + if self.is_plain { 0 } else { settings::overhead() };
        Size { packets: 1, bytes: u64::from(self.length).saturating_sub(headers as u64) }
    }
}

impl Frame for XdpFrame<'_> {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.length
    }

    // GRO and GSO come later.
    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn is_for_us(&self) -> bool {
        self.read(0) == Some(settings::underlay_mac())
    }

    #[inline(always)]
    fn is_ipv4(&self) -> bool {
        self.read(12) == Some(ETHERTYPE_IPV4)
    }

    #[inline(always)]
    fn pull(&self, length: usize) -> bool {
        self.ctx.data() + length <= self.ctx.data_end()
    }

    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        packet::read(self.ctx.data(), self.ctx.data_end(), offset)
    }

    // The first buffer alone: what has its headers elsewhere is left to TC.
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.read(offset)
    }

    #[inline(always)]
    fn fits(&self, ifindex: u32, inner: &Ipv4, _: usize) -> bool {
        let mut length = u32::from(inner.length);
        // SAFETY: the output is a u32 of our own; as an input it is the length behind the Ethernet header (5.12).
        let result = unsafe { bpf_check_mtu(self.context().cast(), ifindex, &raw mut length, 0, 0) };
        result == 0
    }
}

/// Hands the packet to the container's veth. What is not ours is TC's.
#[inline(always)]
pub(crate) fn redirect(frame: &XdpFrame<'_>) -> Answer<u32> {
    let delivery = classify(frame)?;
    if !is_finished(frame, &delivery) {
        return Err(Exit::NotOurs);
    }
    // Asked before the frame is changed: what no interface takes must still be whole for TC.
    let action = maps::redirect(delivery.endpoint.ifindex).ok_or(Exit::NotOurs)?;
    frame.take_room(delivery.taken).ok_or(Exit::NotOurs)?;
    frame.finish(&delivery)?;
    count::add_received(delivery.slot, frame.size());
    Ok(action)
}

/// Unwraps the packet and passes it on, so that GRO merges what was inside before TC delivers it. The container's address
/// stands in it already: should nobody be at TC, the stack drops it as another host's (PACKET_OTHERHOST).
#[inline(always)]
pub(crate) fn strip(frame: &XdpFrame<'_>) -> Answer<u32> {
    const NOTE: i32 = size_of::<Stripped>() as i32;
    let delivery = classify(frame)?;
    if delivery.taken == 0 {
        return Err(Exit::NotOurs);
    }
    // An outer checksum may be one that a device is still to finish, at a place that will be gone. And whoever has vouched
    // for the outer one, zero or not (CHECKSUM_UNNECESSARY, which travels through veths and bridges), would be believed of
    // the inner one, by GRO and by the container: so the inner one must be right.
    if !delivery.is_unchecked || !is_finished(frame, &delivery) || !is_right(frame, &delivery) {
        return Err(Exit::NotOurs);
    }
    frame.make_note(NOTE).ok_or(Exit::NotOurs)?;
    if frame.take_room(delivery.taken).is_none() {
        // The room was there a moment ago, so it can be given back.
        let _ = frame.make_note(-NOTE);
        return Err(Exit::NotOurs);
    }
    frame.write_note(settings::stripped(delivery.slot))?;
    frame.finish(&delivery)?;
    Ok(XDP_PASS)
}

/// A packet that is to be delivered, and of a kind that XDP understands. Whatever else there is to say of a packet, TC says.
#[inline(always)]
fn classify(frame: &XdpFrame<'_>) -> Answer<Delivery> {
    let delivery = decap::classify(frame).map_err(|_| Exit::NotOurs)?;
    is_known(frame, &delivery).then_some(delivery).ok_or(Exit::NotOurs)
}

/// Where the transport header begins.
#[inline(always)]
fn transport(delivery: &Delivery) -> usize {
    ETHERNET + delivery.taken + IPV4
}

/// Protocols of which it is known what an unfinished checksum looks like, with enough of them in the first buffer to tell
/// the connection. Of ICMP that is the echoes alone: an error's connection is told by what it quotes.
#[inline(always)]
fn is_known(frame: &XdpFrame<'_>, delivery: &Delivery) -> bool {
    let transport = transport(delivery);
    match delivery.inner.protocol {
        TCP => frame.pull(transport + 20),
        UDP => frame.pull(transport + 8),
        ICMP => matches!(frame.read::<[u8; 8]>(transport), Some([0 | 8, ..])),
        _ => false,
    }
}

/// Whether the inner transport checksum fits the data, all of which must lie in the first buffer.
#[inline(always)]
fn is_right(frame: &XdpFrame<'_>, delivery: &Delivery) -> bool {
    let (inner, transport) = (&delivery.inner, transport(delivery));
    let length = inner.length - IPV4 as u16;
    if inner.protocol == UDP && frame.read(transport + 6) == Some([0u8; 2]) {
        return true;
    }
    let pseudo = match inner.protocol {
        ICMP => 0,
        protocol => checksum::pseudo_header(inner.source.octets, inner.destination.octets, protocol, length),
    };
    frame.sum(transport, length).is_some_and(|sum| checksum::finish(pseudo + sum) == 0)
}

/// Whether the inner checksum is the packet's last word. A frame from a virtual device may be one that a device was still
/// to finish (CHECKSUM_PARTIAL): a redirected frame loses what says so, and the container would see a wrong sum.
#[inline(always)]
fn is_finished(frame: &XdpFrame<'_>, delivery: &Delivery) -> bool {
    let (inner, transport) = (&delivery.inner, transport(delivery));
    let field = match inner.protocol {
        TCP => frame.read::<[u8; 2]>(transport + 16),
        UDP => frame.read::<[u8; 2]>(transport + 6),
        _ => return true,
    };
    let Some(field) = field else { return false };
    // "All zero [...] means that the transmitter generated no checksum" (RFC 768).
    if inner.protocol == UDP && field == [0; 2] {
        return true;
    }
    let (source, destination) = (inner.source.octets, inner.destination.octets);
    let pseudo = checksum::pseudo_header(source, destination, inner.protocol, inner.length - IPV4 as u16);
    !checksum::is_unfinished(u16::from_be_bytes(field), pseudo)
}
