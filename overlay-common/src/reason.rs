//! What becomes of a packet, and why: one list for the programs' counters, the command line and the tests.

/// Where a packet was decided on: the rows of the counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// `overlay_encap`, and `overlay_bridge` for what no port's program has seen: container to underlay.
    Encap = 0,
    /// `overlay_decap`: underlay to container, at TC. What `overlay_xdp_strip` has decapsulated is counted here too.
    Decap = 1,
    /// `overlay_send`: what the stack sends through overlay0.
    Send = 2,
    /// `overlay_receive`: what the kernel's tunnel decapsulated, before the stack takes it.
    Receive = 3,
    /// `overlay_track`: what the stack delivers to a container. Counts events alone, since other hooks have counted the packets.
    Track = 4,
    /// `overlay_xdp`: underlay to container, before there is a packet buffer. Counts only what it took.
    Xdp = 5,
}

/// Number of rows. There is room for more hooks without a new layout.
pub const HOOKS: u32 = 16;
/// Number of columns. There is room for more reasons without a new layout. Each kind has numbers of its own: 0 to 15 and 32 to
/// 47 are carried and the stack's, 16 to 29 and 48 to 59 drops and answers, 30, 31 and 60 to 63 events. A number is never used
/// again for another reason, because pinned counters outlive agents.
pub const REASONS: u32 = 64;
/// Length of the map `COUNTERS`. Its first half has the rows in which the programs count. The second half has the same rows
/// again, for what an agent with an older layout has left: the programs never write there, so that the agent can.
pub const COUNTERS: u32 = 2 * HOOKS * REASONS;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Encapsulated, delivered, or passed on into the stack where that is the hook's job.
    Carried,
    /// Left to the kernel's own stack: slower, not lost.
    Stack,
    /// Dropped.
    Drop,
    /// Dropped, and the sender told by ICMP (rate-limited).
    Answered,
    /// Not a packet's fate but an event beside one.
    Event,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $value:literal, $text:literal, $verdict:ident;)+) => {
        /// Why a packet took the path it took. Every packet of ours gets exactly one per hook.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name = $value,)+
        }

        impl Reason {
            /// All of them, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The name as the command line shows it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            /// What becomes of the packet.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict),+ }
            }
        }
    };
}

reasons! {
    /// Encapsulated, delivered, or (at overlay0) checked and passed on.
    Carried = 0, "carried", Carried;
    /// The container's address is not learned yet: source when sending, destination when receiving.
    Unlearned = 1, "unlearned-endpoint", Stack;
    /// The connection is a stack flow: the stack has state for it (NAT, or its first packets).
    StackFlow = 2, "stack-flow", Stack;
    /// An inner fragment: without ports, only the stack can tell its connection.
    InnerFragment = 3, "inner-fragment", Stack;
    /// Larger than the path takes. The stack fragments it or, beyond the rate of our own answers, answers it.
    NeedsFragmentation = 4, "needs-fragmentation", Stack;
    /// No next hop that can be used: no route, one that only the stack can follow, a next hop of IPv6, or overlay0 itself.
    NoNextHop = 5, "no-next-hop", Stack;
    /// TTL of 0 or 1: the stack answers time exceeded.
    TtlExpired = 6, "ttl-expired", Stack;
    /// Inner IPv4 options, or extension headers of IPv6, or neighbour discovery: the stack decides on them.
    InnerOptions = 7, "inner-options", Stack;
    /// Not IPv4 inside a tunnel of IPv4 (ARP, IPv6).
    NotIpv4 = 8, "not-ipv4", Stack;
    /// Inner source outside Network, from a known peer: a node's address or a routed LAN, forwarded as flannel does.
    ForeignSource = 9, "foreign-source", Stack;
    /// The endpoint's veth is gone, or smaller than the packet.
    EndpointGone = 10, "endpoint-gone", Stack;
    /// The kernel refused to make headroom for the outer headers, or to take them off.
    HeadroomRefused = 11, "headroom-refused", Stack;
    /// The fast path is switched off.
    StackOnly = 12, "fast-path-off", Stack;
    /// More bytes than the IPv4 header's total length says: the stack takes those off.
    TrailingBytes = 13, "trailing-bytes", Stack;
    /// Under `--fast-path established`: the connection is not known yet, so that the stack, with whatever firewall there is,
    /// decides on it.
    NotEstablished = 14, "not-established", Stack;
    /// Somebody else has a filter or a program at the ingress of the container's port: the fast path would pass it by.
    ForeignFilter = 15, "foreign-filter", Stack;
    /// Handed from one port of a bridge to another, as the bridge itself would have forwarded it: it is for a container of this
    /// host.
    SameHost = 32, "same-host", Carried;
    /// The peer's tunnel wants outer UDP checksums over IPv6, which only the kernel's tunnel device writes for frames of many segments.
    WantsChecksum = 33, "peer-wants-checksum", Stack;
    /// Not IPv6 inside a tunnel of IPv6.
    NotIpv6 = 34, "not-ipv6", Stack;
    /// Larger than the path takes, and not to be fragmented: answered with the MTU that fits.
    TooBig = 16, "too-big", Answered;
    /// No peer holds the destination's subnet: answered with network unreachable.
    NoPeer = 17, "no-peer", Answered;
    /// The source address belongs to a container on another interface.
    SourceAtWrongPort = 18, "source-on-other-interface", Drop;
    /// The source lies inside Network, but not in this host's subnet.
    SourceNotOurs = 19, "source-not-ours", Drop;
    /// The outer source is no known peer.
    UnknownPeer = 20, "unknown-peer", Drop;
    /// The inner source is not in the subnet of the peer that sent it.
    PeerMismatch = 21, "inner-source-not-the-peers", Drop;
    /// The inner destination is not in this host's subnet.
    NotOurSubnet = 22, "destination-not-ours", Drop;
    /// The inner destination MAC is not our VtepMAC.
    WrongVtepMac = 23, "wrong-vtep-mac", Drop;
    /// A header that is cut short or contradicts itself.
    Malformed = 24, "malformed", Drop;
    /// Congestion was experienced by a packet that cannot carry the mark (RFC 6040 section 4.2).
    NotEctMarked = 25, "congestion-mark-not-carried", Drop;
    /// Inner source outside Network under `--peer-check strict`.
    StrictSource = 26, "foreign-source-strict", Drop;
    /// The frame was changed, and then a helper refused: the packet cannot be left to the stack any more.
    Failed = 27, "helper-failed", Drop;
    /// A VNI that is not ours arrived at overlay0 (kernels without vnifilter).
    ForeignVni = 28, "foreign-vni", Drop;
    /// A container sent a tunnel packet of its own making, to a peer or in a peer's name; or a packet of this host's own tunnel
    /// was routed into the tunnel.
    ForgedTunnel = 29, "forged-tunnel", Drop;
    /// A packet with a container's source came to the underlay device without encapsulation, though every packet between
    /// containers is encapsulated.
    NotEncapsulated = 48, "not-encapsulated", Drop;
    /// The table of stack flows is full: a connection through the stack may break.
    FlowTableFull = 30, "flow-table-full", Event;
    /// An ICMP answer was not sent, because of the rate limit, or because the packet must not be answered (RFC 1122 section
    /// 3.2.2).
    AnswerWithheld = 31, "icmp-answer-withheld", Event;
}

impl Reason {
    /// What becomes of the packet at this hook. overlay0 is part of the stack, so a packet cannot be left to the stack there: one
    /// that would enter the stack unchecked, or has nowhere to go, is dropped.
    #[inline(always)]
    pub const fn verdict_at(self, hook: Hook) -> Verdict {
        match (hook, self) {
            (Hook::Receive, Self::NotIpv4 | Self::NotIpv6) | (Hook::Send, Self::NoPeer) => Verdict::Drop,
            _ => self.verdict(),
        }
    }
}

impl Hook {
    /// All of them, in the order of the counters.
    pub const ALL: &'static [Self] =
        &[Self::Encap, Self::Decap, Self::Send, Self::Receive, Self::Track, Self::Xdp];

    /// The name as the command line shows it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Encap => "encap",
            Self::Decap => "decap",
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Track => "track",
            Self::Xdp => "xdp",
        }
    }

    /// Index in `COUNTERS` of the counter that the programs write.
    #[inline(always)]
    pub const fn counter(self, reason: Reason) -> u32 {
        self as u32 * REASONS + reason as u32
    }

    /// Index in `COUNTERS` of what was counted there under an older layout.
    pub const fn inherited_counter(self, reason: Reason) -> u32 {
        HOOKS * REASONS + self.counter(reason)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_counter_has_its_own_index_and_name() {
        let mut seen = HashSet::new();
        for hook in Hook::ALL {
            for reason in Reason::ALL {
                assert!((*reason as u32) < REASONS && (*hook as u32) < HOOKS);
                assert!(seen.insert(hook.counter(*reason)) && seen.insert(hook.inherited_counter(*reason)));
            }
        }
        assert!(seen.iter().all(|index| *index < COUNTERS));
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }

    #[test]
    fn every_reason_has_a_number_of_its_kind() {
        for reason in Reason::ALL {
            let number = *reason as u32;
            let is_right = match reason.verdict() {
                Verdict::Carried | Verdict::Stack => matches!(number, 0..=15 | 32..=47),
                Verdict::Drop | Verdict::Answered => matches!(number, 16..=29 | 48..=59),
                Verdict::Event => matches!(number, 30 | 31 | 60..=63),
            };
            assert!(is_right, "{reason:?} is {number}");
        }
    }
}
