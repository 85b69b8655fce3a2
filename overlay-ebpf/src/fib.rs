//! The path to a peer: the next hop on the underlay, whether encapsulation is needed, and whether a packet fits the path.
use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
    },
    helpers::generated::bpf_fib_lookup as lookup,
};
use overlay_common::{
    KeptNextHop, PeerEntry, SETTING_DIRECT, SETTING_OUTER_DF, header::protocol, next_hop_stamp,
};

use crate::{
    frame::InWords,
    helpers::jiffies,
    ip::Family,
    kernel::KernelAddress,
    maps::Lookups,
    packet::Packet,
    settings::{self, Prefixes},
    tunnel,
};

/// The interface index of the loopback device (`LOOPBACK_IFINDEX` of include/net/flow.h), in every network namespace. A look-up
/// that comes from there is that of a packet which the host itself sends.
const LOOPBACK: u32 = 1;

/// For how many more packets of the same tick an answer of the kernel's is kept. It is enough for the packets that follow close upon
/// each other, which are those that a look-up each costs most: one in 8 asks. And it is little beside what lies between a packet's
/// look-up and the wire anyway. A device's queue, or a CPU's (`net.core.netdev_max_backlog`), holds 1,000 frames. So whoever takes a path
/// away under traffic has to let it stand for longer than that after the route has changed. (A limit in microseconds would cost a
/// reading of the clock for each packet, and would let more packets by where many come.)
const KEPT_USES: u32 = 7;

/// Where a frame leaves.
pub(crate) struct NextHop<A> {
    pub(crate) ifindex: u32,
    /// The peer, or the gateway towards it.
    pub(crate) address: A,
    /// Bytes of the longest IP packet that the path takes, as far as the kernel knows.
    fits: u32,
    /// Destination and source of the Ethernet header, in network order; zeros if the kernel is to write them.
    pub(crate) macs: [u16; 6],
}

impl<A> NextHop<A> {
    /// The same, whose Ethernet header the kernel is to write.
    #[inline(always)]
    pub(crate) fn resolved_by_kernel(self) -> Self {
        Self { macs: [0; 6], ..self }
    }
}

/// How a packet reaches its peer.
pub(crate) enum Path<A> {
    /// As it is: the peer is on the same link, and direct routing is asked for.
    Unencapsulated(NextHop<A>),
    /// Encapsulated.
    Encapsulated(NextHop<A>),
}

/// Why there is no path.
pub(crate) enum NoPath {
    /// The path takes inner packets of this many bytes only.
    TooBig(u32),
    /// There is no route, or one of a kind that only the stack can follow (blackhole, a policy, forwarding switched off).
    Stack,
}

/// The path of a packet whose IP packets (one segment's, of a GSO frame) are `length` bytes long. Whether the peer is on
/// the same link is what the kernel's routes say at this moment: it is if no gateway is on the path.
#[inline(always)]
pub(crate) fn path<F: Family>(
    packet: &Packet<'_>,
    peer: &PeerEntry<F::Address>,
    source_port: u16,
    length: u32,
) -> Result<Path<F::Address>, NoPath> {
    path_by::<F, false>(packet, peer, source_port, length)
}

/// The same by what the kernel's routes say at this moment, or said in the same tick, [`KEPT_USES`] packets ago at most. It is for the
/// fast path of what containers send alone: its packets are many, and come at the ingress of devices, where one run is not interrupted by another.
#[inline(always)]
pub(crate) fn path_of_many<F: Family>(
    packet: &Packet<'_>,
    peer: &PeerEntry<F::Address>,
    source_port: u16,
    length: u32,
) -> Result<Path<F::Address>, NoPath> {
    path_by::<F, true>(packet, peer, source_port, length)
}

/// `OF_MANY` says which of the two. (A function as a parameter would not be inlined, and the verifier does not let a function return
/// what does not fit a register.)
#[inline(always)]
fn path_by<F: Family, const OF_MANY: bool>(
    packet: &Packet<'_>,
    peer: &PeerEntry<F::Address>,
    source_port: u16,
    length: u32,
) -> Result<Path<F::Address>, NoPath> {
    if settings::has(SETTING_DIRECT) {
        match next_hop_by::<F, OF_MANY>(packet, peer.outer, source_port, length) {
            Ok(next_hop) if next_hop.address == peer.outer => return Ok(Path::Unencapsulated(next_hop)),
            Ok(_) => {}
            Err(NoPath::TooBig(mtu)) => {
                // This answer does not name the next hop.
                if on_link(packet, peer, source_port).is_some() {
                    return Err(NoPath::TooBig(mtu));
                }
            }
            Err(NoPath::Stack) => return Err(NoPath::Stack),
        }
    }
    let overhead = tunnel::length::<F>() as u32;
    match next_hop_by::<F, OF_MANY>(packet, peer.outer, source_port, length + overhead) {
        Ok(next_hop) => Ok(Path::Encapsulated(next_hop)),
        Err(NoPath::TooBig(mtu)) => Err(NoPath::TooBig(mtu.saturating_sub(overhead))),
        Err(NoPath::Stack) => Err(NoPath::Stack),
    }
}

#[inline(always)]
fn next_hop_by<F: Family, const OF_MANY: bool>(
    packet: &Packet<'_>,
    peer: F::Address,
    source_port: u16,
    wire_length: u32,
) -> Result<NextHop<F::Address>, NoPath> {
    if OF_MANY {
        let is_told =
            if F::ROUTERS_FRAGMENT { settings::has(SETTING_OUTER_DF) } else { wire_length > F::SMALLEST_MTU };
        kept_next_hop(packet, peer, source_port, wire_length, is_told)
    } else {
        next_hop(packet, peer, source_port, wire_length)
    }
}

/// The peer itself as next hop, if it is on the same link and direct routing is asked for, whatever the packet's length.
#[inline(always)]
pub(crate) fn on_link<A: KernelAddress + Prefixes>(
    packet: &Packet<'_>,
    peer: &PeerEntry<A>,
    source_port: u16,
) -> Option<NextHop<A>> {
    let next_hop =
        settings::has(SETTING_DIRECT).then(|| next_hop_of_any_length(packet, peer, source_port))??;
    (next_hop.address == peer.outer).then_some(next_hop)
}

/// The next hop towards a peer, whatever the packet's length.
#[inline(always)]
pub(crate) fn next_hop_of_any_length<A: KernelAddress + Prefixes>(
    packet: &Packet<'_>,
    peer: &PeerEntry<A>,
    source_port: u16,
) -> Option<NextHop<A>> {
    // With a length of zero the kernel would take the length of the frame at hand.
    next_hop(packet, peer.outer, source_port, 1).ok()
}

/// Whether the host has a route to this address that does not lead into overlay0.
#[inline(always)]
pub(crate) fn is_beside_overlay<A: KernelAddress + Prefixes>(packet: &Packet<'_>, address: A) -> bool {
    next_hop(packet, address, 0, 1).is_ok()
}

/// The next hop to `peer` that the kernel has named for the same question in the same tick, [`KEPT_USES`] packets ago at most, or names
/// now. Only next hops are kept, and no refusals, so a path that opens is taken at once.
///
/// **The same question.** All that the kernel's answer depends on (`bpf_ipv4_fib_lookup`) is in the key (peer, source port, and the
/// CPU), or the same in each question of this program. The source is this host's address, the destination port the tunnel's, the
/// protocol UDP, the interface the loopback device, which is in no VRF. TOS, mark, tunnel key and user are zeros or the
/// namespace's, whatever the packet has, and so no rule can tell two packets apart. Among several next hops the kernel chooses by a hash of
/// these addresses and ports, not by the packet's own hash, which it is not shown. The packet's length (one segment's, of a GSO
/// frame) is compared with the path's MTU, which the answer names. Direct routing asks the same question. What else changes an answer
/// changes with time: routes, rules, what is known of path MTUs, interfaces, sysctls and, where a sysctl says so, neighbours.
///
/// **Path MTUs.** Nothing is kept for a packet of which a router would say that it is too large (`is_told`): where the outer packets have
/// DF, and over IPv6 if the packet is longer than what every link takes. The sender must hear of it by its next packet, since a sender
/// of TCP may have no more than those 7 in flight, and would wait for its timer with all of them lost. Where there is no DF, routers
/// fragment and say nothing.
///
/// **The neighbour.** The packet that asks leaves by the kernel's neighbours, which resolve the next hop, and probe it while it is in use.
/// The others have the MAC addresses that the answer named. (They would be used for ever if each packet had them.)
///
/// **Two runs at once.** A program at the ingress of a device runs with softirqs off, so that no other packet of this CPU comes in
/// between, and XDP does not come here. Where softirqs are threads (PREEMPT_RT), from Linux 6.18 on a run may be interrupted by another.
/// Whichever writes in between leaves stamps that differ, or those of another question than was asked, and neither is believed.
#[inline(always)]
fn kept_next_hop<A: KernelAddress + Lookups>(
    packet: &Packet<'_>,
    peer: A,
    source_port: u16,
    wire_length: u32,
    is_told: bool,
) -> Result<NextHop<A>, NoPath> {
    let Some(place) = peer.next_hop_place(source_port) else {
        return next_hop(packet, peer, source_port, wire_length);
    };
    let stamp = next_hop_stamp(peer, source_port);
    let jiffies = jiffies();
    let kept = place.read();
    if kept.begun == stamp
        && kept.jiffies == jiffies
        && kept.peer == peer
        && kept.source_port == u32::from(source_port)
        && kept.uses != 0
        && wire_length <= kept.fits
        && !is_told
        && kept.ended == stamp
    {
        place.spend(kept.uses - 1);
        return Ok(NextHop {
            ifindex: kept.ifindex,
            address: kept.address,
            fits: kept.fits,
            macs: kept.macs,
        });
    }
    let answer = next_hop(packet, peer, source_port, wire_length);
    match &answer {
        Ok(_) if is_told => {}
        &Ok(NextHop { ifindex, address, fits, macs }) => place.write(&KeptNextHop {
            begun: stamp,
            jiffies,
            peer,
            source_port: source_port.into(),
            ifindex,
            address,
            fits,
            uses: KEPT_USES,
            macs,
            reserved: 0,
            ended: stamp,
        }),
        Err(_) => place.spend(0),
    }
    // The kernel resolves the neighbour of a packet that asks, and keeps probing it.
    answer.map(NextHop::resolved_by_kernel)
}

/// Asks the kernel for the route to `peer`, with the length of one segment on the wire, so that a path MTU which the kernel learned
/// from ICMP counts too. The question is that of a packet which the host itself sends, as overlay0's are: policies for such packets
/// (`ip rule add iif lo`) hold for ours, and the route may lead to any device.
#[inline(always)]
fn next_hop<A: KernelAddress + Prefixes>(
    packet: &Packet<'_>,
    peer: A,
    source_port: u16,
    wire_length: u32,
) -> Result<NextHop<A>, NoPath> {
    if wire_length > u32::from(u16::MAX) {
        return Err(NoPath::Stack);
    }
    let mut question = InWords(blank());
    let query = &mut question.0;
    query.family = A::FAMILY;
    query.l4_protocol = protocol::UDP;
    query.sport = source_port.to_be();
    query.dport = u16::from_ne_bytes(settings::port());
    query.__bindgen_anon_1.tot_len = wire_length as u16;
    query.ifindex = LOOPBACK;
    A::ask(query, A::local(), peer);
    let result = ask(packet, query);
    // An unresolved neighbour is no obstacle: redirect_neighbour resolves it. Leaving that one packet to the stack would
    // move its whole connection there.
    if is_found(result) {
        // The address of a next hop of another family (RFC 9229) is not read here. And a route to the peer that leads into overlay0 would
        // send encapsulated packets into the tunnel again.
        if query.family != A::FAMILY || query.ifindex == settings::device() {
            return Err(NoPath::Stack);
        }
        // SAFETY: the kernel writes the path's MTU here. If it finds no neighbour, it does not, and leaves the length that was asked
        // for. An MTU that 16 bits do not hold loses its upper bits, which makes it smaller.
        let fits = u32::from(unsafe { query.__bindgen_anon_1.mtu_result });
        // The underlay device has Ethernet headers, which no other device need have.
        let macs = if result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) && query.ifindex == settings::underlay() {
            let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (query.dmac, query.smac);
            [[a, b], [c, d], [e, f], [g, h], [i, j], [k, l]].map(u16::from_ne_bytes)
        } else {
            [0; 6]
        };
        return Ok(NextHop { ifindex: query.ifindex, address: A::answered(query), fits, macs });
    }
    if result == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED) {
        // SAFETY: this answer fills in mtu_result.
        return Err(NoPath::TooBig(u32::from(unsafe { query.__bindgen_anon_1.mtu_result })));
    }
    Err(NoPath::Stack)
}

/// Whether the host's routes lead a container's packet to this address into overlay0. They do not where the host has that
/// address itself, or a more specific route, or has forbidden it.
#[inline(always)]
pub(crate) fn leads_into_overlay<A: KernelAddress>(packet: &Packet<'_>, source: A, destination: A) -> bool {
    let mut question = InWords(blank());
    let query = &mut question.0;
    query.family = A::FAMILY;
    // With a length of zero the kernel would take the length of the frame at hand.
    query.__bindgen_anon_1.tot_len = 1;
    query.ifindex = packet.ifindex();
    A::ask(query, source, destination);
    let result = ask(packet, query);
    is_found(result) && query.ifindex == settings::device()
}

/// A question without any words yet.
#[inline(always)]
fn blank() -> bpf_fib_lookup {
    // SAFETY: integers only, zero is valid for all of them.
    unsafe { core::mem::zeroed() }
}

#[inline(always)]
fn ask(packet: &Packet<'_>, query: &mut bpf_fib_lookup) -> i64 {
    let context = aya_ebpf::EbpfContext::as_ptr(packet.context());
    // SAFETY: the query is as long as said.
    unsafe { lookup(context, &raw mut *query, size_of::<bpf_fib_lookup>() as i32, 0) }
}

/// Whether the kernel named a next hop. It need not have resolved it.
#[inline(always)]
fn is_found(result: i64) -> bool {
    result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) || result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH)
}
