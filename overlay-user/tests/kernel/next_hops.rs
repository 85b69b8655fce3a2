//! What is kept of the kernel's answers about next hops: for how long it is believed, and by whom.
//!
//! The tests see from a frame what its program takes for the next hop: under direct routing it leaves as it is if that is the peer
//! itself, and encapsulated if it is a gateway.
use aya::maps::PerCpuValues;
use nix::sched::sched_getcpu;
use overlay_common::{
    Addr4, FlowKey,
    Hook::Encap,
    KeptNextHop, Reason, SETTING_OUTER_DF,
    header::protocol::UDP,
    next_hop_place, next_hop_stamp,
    wire::{self, OVERHEAD},
};

use super::{bed::*, encap::assert_answer};
use crate::support::ip;

/// So many runs in a row have each one of them but the first few find what the ones before have kept. The TTL outlasts them.
const ROW: u32 = 40;

/// What makes an entry one of something else.
type Alter = fn(&mut KeptNextHop);

/// A packet from the container, and what its program asks the kernel.
struct Asked {
    packet: Vec<u8>,
    peer: Addr4,
    source_port: u16,
}

impl Asked {
    /// A packet of 128 bytes to a container of this peer.
    fn new(to: [u8; 4], peer: [u8; 4], port: u16) -> Self {
        let ports = [port, 5000];
        let key = FlowKey::new(Addr4::new(CONTAINER), Addr4::new(to), ports.map(u16::to_be_bytes), UDP);
        Self {
            packet: udp(CONTAINER, to, ports, 100),
            peer: Addr4::new(peer),
            source_port: wire::source_port(key.hash(), 49152, 16384),
        }
    }

    fn stamp(&self) -> u64 {
        next_hop_stamp(self.peer, self.source_port)
    }

    fn place(&self) -> u32 {
        next_hop_place(self.peer, self.source_port)
    }

    /// A packet of another connection with another source port, for which there is the same place.
    fn beside(&self, to: [u8; 4], peer: [u8; 4]) -> Self {
        let others = (4001..).map(|port| Self::new(to, peer, port));
        let mut others =
            others.filter(|other| other.place() == self.place() && other.source_port != self.source_port);
        others.next().unwrap()
    }

    /// Whether the packet leaves encapsulated, so that its program takes a gateway for the next hop.
    #[track_caller]
    fn is_encapsulated(&self, bed: &mut Bed) -> bool {
        let skb = Skb { ifindex: bed.container, ..Skb::default() };
        let frame = from_container(&self.packet);
        let (verdict, left) = bed.run_uncounted("overlay_encap", skb, &frame);
        assert_eq!(verdict, REDIRECT);
        left.len() != frame.len()
    }

    /// Sends the packet many times, so that its next hop is kept, if it is not a gateway.
    fn repeat(&self, bed: &mut Bed) {
        let skb = Skb { ifindex: bed.container, ..Skb::default() };
        bed.run_in_a_row("overlay_encap", skb, &from_container(&self.packet), ROW);
    }

    /// What this CPU keeps in the place for this packet.
    fn kept(&self, bed: &mut Bed) -> KeptNextHop {
        bed.next_hops().get(&self.place(), 0).unwrap()[sched_getcpu().unwrap()]
    }

    /// Has this CPU keep this there.
    fn keep(&self, bed: &mut Bed, kept: KeptNextHop) {
        let mut next_hops = bed.next_hops();
        let mut values = next_hops.get(&self.place(), 0).unwrap().to_vec();
        values[sched_getcpu().unwrap()] = kept;
        next_hops.set(self.place(), PerCpuValues::try_from(values).unwrap(), 0).unwrap();
    }

    /// Whether the program believes it when the peer is on the link, but a gateway is what this CPU keeps as next hop. The first run
    /// leaves the tick. `ahead` are ticks until the kernel is said to have been asked, for a machine on which the program runs in
    /// another tick than the one before.
    #[track_caller]
    fn is_believed(&self, bed: &mut Bed, ahead: u64, alter: impl Fn(&mut KeptNextHop)) -> bool {
        assert!(!self.is_encapsulated(bed));
        let mut kept = KeptNextHop {
            begun: self.stamp(),
            jiffies: self.kept(bed).jiffies + ahead,
            peer: self.peer,
            source_port: self.source_port.into(),
            ifindex: bed.underlay,
            address: Addr4::new(OTHER_PEER),
            fits: 1500,
            uses: 2,
            macs: [0; 6],
            reserved: 0,
            ended: self.stamp(),
        };
        alter(&mut kept);
        self.keep(bed, kept);
        let is_believed = self.is_encapsulated(bed);
        self.keep(bed, KeptNextHop::default());
        is_believed
    }
}

#[test]
fn what_is_kept_is_believed_for_its_question_its_tick_and_its_length_alone() {
    with_direct(0, |bed, _| {
        let asked = Asked::new(REMOTE, PEER, 4000);
        // As it is kept, it is believed by a packet that comes in its tick.
        let ahead = (0..20_000).map(|number| number % 20);
        let believed = ahead.clone().find(|ahead| asked.is_believed(bed, *ahead, |_| {}));
        let ahead = believed.expect("a next hop that is kept is never believed");
        let never: [(&str, Alter); 7] = [
            ("another peer's", |kept| kept.peer = Addr4::new(OTHER_PEER)),
            ("another source port's", |kept| kept.source_port ^= 256),
            ("of another tick", |kept| kept.jiffies -= 1),
            ("used up", |kept| kept.uses = 0),
            ("begun anew", |kept| kept.begun += 1),
            ("half written", |kept| kept.ended += 1),
            ("for shorter packets", |kept| kept.fits = 127),
        ];
        for (name, alter) in never {
            for _ in 0..200 {
                assert!(!asked.is_believed(bed, ahead, alter), "{name}");
            }
        }
    });
}

/// A router on the way may have said "too large" about the packet before.
#[test]
fn nothing_is_kept_where_outer_packets_have_df() {
    with_direct(SETTING_OUTER_DF, |bed, _| {
        let asked = Asked::new(FAR, OTHER_PEER, 4000);
        asked.repeat(bed);
        assert_eq!(asked.kept(bed), KeptNextHop::default());
    });
}

#[test]
fn routes_and_rules_that_change_are_obeyed() {
    with_direct(0, |bed, _| {
        let asked = Asked::new(FAR, OTHER_PEER, 4000);
        let is_kept = (0..100).any(|_| {
            asked.repeat(bed);
            asked.kept(bed).begun == asked.stamp()
        });
        assert!(is_kept, "nothing is kept: {:?}", asked.kept(bed));
        let mut obeys = |words: &str, is_encapsulated: bool| {
            asked.repeat(bed);
            change(words);
            assert_eq!(asked.is_encapsulated(bed), is_encapsulated, "{words}");
        };
        obeys("route add 10.99.0.3/32 via 10.99.0.2 dev eth0", true);
        obeys("route del 10.99.0.3/32", false);
        obeys("route add 10.99.0.3/32 via 10.99.0.2 dev eth0 table 100", false);
        obeys("rule add iif lo to 10.99.0.3 lookup 100", true);
        obeys("rule del iif lo to 10.99.0.3 lookup 100", false);
        // A path that is forbidden, and allowed again.
        asked.repeat(bed);
        change("route add unreachable 10.99.0.3/32");
        let left = bed.run("overlay_encap", bed.container, &from_container(&asked.packet));
        left.assert(NEXT, &[(Encap, Reason::NoNextHop)]);
        // That connection is the stack's now.
        let other = Asked::new(FAR, OTHER_PEER, 4001);
        ip("route del unreachable 10.99.0.3/32");
        assert!(!other.is_encapsulated(bed));
    });
}

#[test]
fn packets_that_share_a_place_have_each_their_own_next_hop() {
    with_direct(0, |bed, _| {
        behind_a_gateway();
        let near = Asked::new(REMOTE, PEER, 4000);
        let far = near.beside(FAR, OTHER_PEER);
        // The same peer by another path, which only the outer source port tells.
        let other = near.beside(REMOTE, PEER);
        ip("route add 10.99.0.2/32 via 10.99.0.3 dev eth0 table 100");
        ip(&format!("rule add iif lo ipproto 17 sport {} lookup 100", other.source_port));
        for _ in 0..100 {
            near.repeat(bed);
            assert!(far.is_encapsulated(bed), "by another peer's next hop");
            near.repeat(bed);
            assert!(other.is_encapsulated(bed), "by another source port's next hop");
            assert!(!near.is_encapsulated(bed));
        }
    });
}

/// Answers are limited to bursts of 50.
#[test]
fn a_longer_packet_asks_again_and_a_refusal_is_not_kept() {
    with_bed(|bed| {
        ip("route add 10.99.0.2/32 dev eth0 mtu lock 1400");
        let fits = udp(CONTAINER, REMOTE, [1, 2], 1400 - OVERHEAD - 28);
        let longer = udp(CONTAINER, REMOTE, [1, 2], 1400 - OVERHEAD - 28 + 1);
        let skb = Skb { ifindex: bed.container, ..Skb::default() };
        for _ in 0..40 {
            // The second and the third find what the first has kept.
            for _ in 0..3 {
                let (verdict, frame) = bed.run_uncounted("overlay_encap", skb, &from_container(&fits));
                assert_eq!((verdict, frame.len()), (REDIRECT, 14 + 1400));
            }
            let (verdict, frame) = bed.run_uncounted("overlay_encap", skb, &from_container(&longer));
            assert_eq!(verdict, REDIRECT);
            assert_answer(&frame, &longer, 40, 4, 1350);
        }
    });
}

/// The packet that asks leaves by the kernel's neighbours, so that they are resolved, and probed as long as there is traffic.
#[test]
fn the_neighbours_mac_addresses_are_kept_with_the_next_hop() {
    with_bed(|bed| {
        let asked = Asked::new(REMOTE, PEER, 4000);
        let skb = Skb { ifindex: bed.container, ..Skb::default() };
        let header = |bed: &mut Bed| {
            let (verdict, frame) = bed.run_uncounted("overlay_encap", skb, &from_container(&asked.packet));
            assert_eq!(verdict, REDIRECT);
            frame[..14].to_vec()
        };
        for last in [2, 5] {
            change(&format!(
                "neigh replace 10.99.0.2 lladdr 06:00:00:00:00:{last:02x} dev eth0 nud permanent"
            ));
            assert_eq!(header(bed), TO_BE_RESOLVED, "the first packet of a tick");
            let resolved = [6, 0, 0, 0, 0, last, 6, 0, 0, 0, 0, 1, 0x08, 0x00];
            // More than the packets that one answer is kept for.
            let headers: Vec<_> = (0..1000).map(|_| header(bed)).collect();
            assert!(headers.iter().all(|header| *header == TO_BE_RESOLVED || *header == resolved), "{last}");
            for wanted in [&TO_BE_RESOLVED, &resolved] {
                assert!(headers.iter().any(|header| header == wanted), "{last}: never {wanted:?}");
            }
            let longest = headers.split(|header| *header == TO_BE_RESOLVED).map(<[_]>::len).max();
            assert!(longest <= Some(7), "{longest:?} packets by one answer");
        }
        // Of a neighbour that is not resolved, nothing is known.
        change("neigh del 10.99.0.2 dev eth0");
        assert!((0..100).all(|_| header(bed) == TO_BE_RESOLVED));
    });
}
