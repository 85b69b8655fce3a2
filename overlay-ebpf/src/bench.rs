//! The benchmark's programs: one sends frames, one counts them where they arrive and ends them there, one is the wire between
//! the hosts.
//!
//! | program  | hook                                        | what it does                                      |
//! |----------|---------------------------------------------|---------------------------------------------------|
//! | `send`   | XDP, by test runs with live frames          | writes the next frame's header and number         |
//! | `wire`   | TC ingress of both hosts' ports             | passes frames on to the other port                |
//! | `finish` | TC ingress where the measured way ends      | counts numbered frames, drops them; passes others |
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        EbpfContext as _,
        bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action::XDP_ABORTED},
        btf_maps::{Array, PerCpuArray},
        helpers::{bpf_ktime_get_ns, bpf_skb_load_bytes, generated::bpf_redirect},
        macros::{btf_map, classifier, xdp},
        programs::{TcContext, XdpContext},
    };
    use overlay_common::bench::{Arrived, First, HEAD, Shape, TRAILER, TRAILER_MAGIC};

    #[btf_map]
    static SHAPE: Array<Shape, 1> = Array::new();

    /// Frames sent so far: the next one's number.
    #[btf_map]
    static SENT: Array<u64, 1> = Array::new();

    /// When the first frame of this go was made: CLOCK_MONOTONIC nanoseconds.
    #[btf_map]
    static BEGUN: Array<u64, 1> = Array::new();

    #[btf_map]
    static ARRIVED: PerCpuArray<Arrived, 1> = PerCpuArray::new();

    #[btf_map]
    static FIRST: Array<First, 1> = Array::new();

    #[xdp]
    fn send(context: XdpContext) -> u32 {
        next_frame(&context).unwrap_or(XDP_ABORTED)
    }

    fn next_frame(context: &XdpContext) -> Option<u32> {
        // SAFETY: one CPU runs this program, and user space writes the shape before the first run.
        let (shape, sent) = unsafe { (&mut *SHAPE.get_ptr_mut(0)?, &mut *SENT.get_ptr_mut(0)?) };
        let number = *sent;
        *sent += 1;
        if number & shape.window_mask == 0 {
            // SAFETY: as above; the program that counts reads it.
            unsafe { *BEGUN.get_ptr_mut(0)? = bpf_ktime_get_ns() };
        }
        let flow = (number % u64::from(shape.flows.max(1))) as u32;
        for offset in shape.ports {
            if offset != 0 {
                store(shape, offset, (shape.first_port.wrapping_add(flow) as u16).to_be_bytes());
            }
        }
        let peer = (number % u64::from(shape.peers.max(1))) as u32;
        for index in 0..shape.varied.len() {
            let varied = shape.varied[index];
            if varied.header != 0 {
                let address = varied.base.wrapping_add(peer.wrapping_mul(varied.step));
                let sum = varied.sum + (address >> 16) + (address & 0xffff);
                let sum = (sum >> 16) + (sum & 0xffff);
                let sum = (sum >> 16) + (sum & 0xffff);
                store(shape, varied.header + 10, (!(sum as u16)).to_be_bytes());
                store(shape, varied.header + varied.field, address.to_be_bytes());
            }
        }
        // Frames are recycled: what routing or decapsulation made of this one's last trip is written over.
        match shape.head {
            60 => write::<60>(context, shape)?,
            88 => write::<88>(context, shape)?,
            110 => write::<110>(context, shape)?,
            _ => return None,
        }
        let trailer = context.data() + (shape.trailer & 0x7ff) as usize;
        if trailer + TRAILER > context.data_end() {
            return None;
        }
        // SAFETY: within the frame, as just asked.
        unsafe {
            (trailer as *mut u32).write_unaligned(TRAILER_MAGIC);
            ((trailer + 4) as *mut u64).write_unaligned(number);
        }
        Some(shape.verdict)
    }

    fn store<const N: usize>(shape: &mut Shape, offset: u32, bytes: [u8; N]) {
        let offset = (offset & 127) as usize;
        // SAFETY: the mask keeps it inside: HEAD is 127 + 4 at least.
        unsafe { shape.template.as_mut_ptr().add(offset).cast::<[u8; N]>().write(bytes) }
    }

    #[inline(always)]
    fn write<const N: usize>(context: &XdpContext, shape: &Shape) -> Option<()> {
        const { assert!(N <= HEAD && N.is_multiple_of(2)) };
        if context.data() + N > context.data_end() {
            return None;
        }
        let (to, from) = (context.data(), shape.template.as_ptr() as usize);
        // SAFETY: within the frame, as just asked, and within the template. The kernel puts a test run's frames on a page's
        // start plus 8-byte structures and 256 bytes of headroom, and `Shape` begins with its template.
        unsafe {
            for word in 0..N / 8 {
                copy::<u64>(to + word * 8, from + word * 8);
            }
            if N % 8 >= 4 {
                copy::<u32>(to + N / 8 * 8, from + N / 8 * 8);
            }
            if N % 4 >= 2 {
                copy::<u16>(to + N / 4 * 4, from + N / 4 * 4);
            }
        }
        Some(())
    }

    /// Both aligned.
    #[inline(always)]
    unsafe fn copy<T: Copy>(to: usize, from: usize) {
        // SAFETY: as the caller says.
        unsafe { (to as *mut T).write((from as *const T).read()) };
    }

    /// Both ends' interface indexes, combined by exclusive or: with the one the other comes out.
    #[unsafe(no_mangle)]
    static WIRE: u32 = 0;

    #[classifier]
    fn wire(context: TcContext) -> i32 {
        // SAFETY: a static that the loader writes before the kernel freezes it; hence volatile.
        let ends = unsafe { (&raw const WIRE).read_volatile() };
        // SAFETY: a field of the context that the verifier allows; the helper takes numbers only.
        unsafe { bpf_redirect((*context.skb.skb).ifindex ^ ends, 0) as i32 }
    }

    #[classifier]
    fn finish(context: TcContext) -> i32 {
        if count(&context).is_some() { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
    }

    fn count(context: &TcContext) -> Option<()> {
        let length = context.len();
        if length < 60 {
            return None;
        }
        // Where it stands at the end, encapsulation does not move it.
        let mut trailer = [0u8; TRAILER];
        load(context, length - TRAILER as u32, &mut trailer)?;
        let [a, b, c, d, number @ ..] = trailer;
        if u32::from_ne_bytes([a, b, c, d]) != TRAILER_MAGIC {
            return None;
        }
        // SAFETY: this CPU's own slot.
        let arrived = unsafe { &mut *ARRIVED.get_ptr_mut(0)? };
        let number = u64::from_ne_bytes(number);
        arrived.frames += 1;
        arrived.numbers = arrived.numbers.wrapping_add(number);
        // SAFETY: written before the first run.
        let window_mask = unsafe { (*SHAPE.get_ptr(0)?).window_mask };
        if number & window_mask == window_mask {
            // SAFETY: written by the first frame of this go, long before.
            arrived.nanoseconds += unsafe { bpf_ktime_get_ns() - *BEGUN.get_ptr(0)? };
        }
        // SAFETY: written by the first frame alone, read by user space after the run.
        let first = unsafe { &mut *FIRST.get_ptr_mut(0)? };
        if first.length == 0 {
            first.length = length;
            if length >= 110 {
                load(context, 0, first.bytes.first_chunk_mut::<110>()?)?;
            } else if length >= 88 {
                load(context, 0, first.bytes.first_chunk_mut::<88>()?)?;
            } else {
                load(context, 0, first.bytes.first_chunk_mut::<60>()?)?;
            }
        }
        Some(())
    }

    #[inline(always)]
    fn load<const N: usize>(context: &TcContext, offset: u32, into: &mut [u8; N]) -> Option<()> {
        // SAFETY: N bytes that are ours to write.
        let done =
            unsafe { bpf_skb_load_bytes(context.as_ptr(), offset, into.as_mut_ptr().cast(), N as u32) };
        (done == 0).then_some(())
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
