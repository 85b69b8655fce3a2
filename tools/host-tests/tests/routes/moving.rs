//! Paths that change under traffic. The programs keep a next hop for some packets of a tick, and must not lose for that what the bare
//! route would not lose: each event meets packets of both, which take the same route to the other host.
use std::{thread, time::Duration};

use overlay_common::{Hook::Encap, Reason};
use overlay_lab::{
    Backend, Lab, Namespace, Numbered, NumberedReport, Options, Store, configure, populate_some,
    queue_overflows,
};

use super::policies::sent;
use crate::bed::{Bed, overlay, wait_for};

/// Packets per second of a stream. They are sent in bursts of some, which follow so close upon each other that a next hop is kept
/// from one to the next.
const RATE: u32 = 10_000;
/// Bytes of a packet's UDP payload.
const SMALL: usize = 32;
/// The same of a packet of 1448 bytes, which fits 1500 bytes when it is encapsulated.
const LARGE: usize = 1420;
/// Longer than a next hop is kept: a tick of the kernel's clock, which is 10 ms at most.
const SETTLED: Duration = Duration::from_millis(30);
/// Frames that a CPU's queue holds (`net.core.netdev_max_backlog`), and that a device's queue does. Where a link is cut, what it has in
/// its queues at that moment is lost, and who lost how many of them is chance: so many more than the bare route may be lost.
const QUEUE: u64 = 1000;

/// Two hosts of a network, and two more between them, by either of which the first host reaches the second one.
struct Paths {
    bed: Bed,
}

/// The routes to the second host.
const FIRST: &str = "10.99.0.2/32 via 10.97.1.2 dev eth1";
const SECOND: &str = "10.99.0.2/32 via 10.97.2.2 dev eth2";

/// Packets of both kinds that an event cost: of each stream, what is missing of those that were sent about the time of the event.
#[derive(Debug)]
struct Cost {
    ours: Vec<u64>,
    bare: Vec<u64>,
}

impl Paths {
    fn new() -> Self {
        let lab = Lab::new(Options { hosts: 4, ..Options::default() }).unwrap();
        let store = Store::folder(&lab);
        configure(&lab, overlay(), &store, Backend::Vxlan.config()).unwrap();
        let members = populate_some(&lab.hosts()[..2], overlay(), &store, &["--fast-path", "on"]).unwrap();
        let mut bed = Bed { established: false, members, store, lab };
        bed.wait_for_peers(1);
        bed.learn_all();
        let paths = Self { bed };
        for number in [1, 2] {
            let (here, gateway) = (paths.here(), paths.gateway(number));
            let inside = gateway.name();
            here.ip(&format!("link add eth{number} type veth peer name eth1 netns {inside}")).unwrap();
            for (end, last, device) in [(here, 1, format!("eth{number}")), (gateway, 2, "eth1".to_owned())] {
                end.ip(&format!("address add 10.97.{number}.{last}/24 dev {device}")).unwrap();
                end.ip(&format!("link set {device} up")).unwrap();
            }
        }
        // By addresses and ports: each connection has its own path.
        paths.here().sysctl("ipv4/fib_multipath_hash_policy", "1").unwrap();
        paths
    }

    /// The first host, which sends.
    fn here(&self) -> &Namespace {
        self.bed[0].host.namespace()
    }

    /// The host on the path of this number.
    fn gateway(&self, number: usize) -> &Namespace {
        self.bed.lab.host(number + 1).namespace()
    }

    fn ip(&self, words: &str) {
        self.here().ip(words).unwrap();
    }

    /// Sets the link to the gateway of this number up. Its other end learns of that later (net/core/link_watch.c), and answers nobody
    /// until then.
    #[track_caller]
    fn set_up(&self, number: usize) {
        self.ip(&format!("link set eth{number} up"));
        let ping = format!("ping -n -c 1 -W 1 10.97.{number}.2");
        wait_for("the gateway", || self.here().exec(&ping).is_ok());
    }

    /// Gateways tell of their new MAC addresses, as a machine does that takes another's place. The programs keep such addresses of the
    /// underlay device's neighbours only, one of which is a gateway here, too.
    #[track_caller]
    fn gateways_change_their_addresses(&self) {
        let gateway = self.gateway(1);
        for key in ["all/send_redirects", "eth0/send_redirects"] {
            gateway.sysctl(&format!("ipv4/conf/{key}"), "0").unwrap();
        }
        for (device, next_hop) in [("eth1", "10.97.1.2"), ("eth0", "10.99.0.3")] {
            let route = format!("10.99.0.2/32 via {next_hop} dev {device} metric 5");
            self.ip(&format!("route add {route}"));
            gateway.sysctl(&format!("ipv4/conf/{device}/arp_notify"), "1").unwrap();
            for number in 1..=5 {
                let address = format!("06:00:00:00:07:{number:02x}");
                let cost = self.cost(1, SMALL, |_| {
                    gateway.ip(&format!("link set {device} address {address}")).unwrap();
                    let neighbours =
                        || self.here().exec(&format!("ip neighbour show {next_hop} dev {device}")).unwrap();
                    wait_for("the gateway's new address", || neighbours().contains(&address));
                });
                cost.is_as_bare(&format!("the MAC address of {next_hop} changes"));
            }
            self.ip(&format!("route delete {route}"));
        }
    }

    /// Sends `count` streams of each kind during an event, and counts what is lost for it. Of what was sent long before it or after
    /// it, nothing may be lost.
    #[track_caller]
    fn cost(&self, count: usize, payload: usize, event: impl FnOnce(&[Numbered])) -> Cost {
        let (from, to) = self.bed.pair();
        let other = &self.bed[1].host;
        let ours = || Numbered::between(from, to.namespace(), to.address(), RATE, payload).unwrap();
        // From the same container by the same route, but to the other host itself, which is not the overlay's.
        let bare = || Numbered::between(from, other.namespace(), other.address(), RATE, payload).unwrap();
        let overflows = queue_overflows().unwrap();
        let carried = || self.bed[0].counters().unwrap().packets(Encap, Reason::Carried);
        let before = carried();
        let streams: Vec<_> = (0..count).map(|_| ours()).chain((0..count).map(|_| bare())).collect();
        passing(&streams, 2 * QUEUE);
        let begun: Vec<_> = streams.iter().map(|stream| stream.sent() - QUEUE).collect();
        event(&streams);
        thread::sleep(SETTLED);
        let cuts: Vec<_> =
            begun.into_iter().zip(&streams).map(|(begun, stream)| begun..stream.begun()).collect();
        passing(&streams, QUEUE);
        let ended: Vec<(NumberedReport, Vec<u64>)> = streams
            .into_iter()
            .zip(cuts)
            .map(|(stream, cut)| stream.finish_apart(std::slice::from_ref(&cut)).unwrap())
            .collect();
        let overflows = queue_overflows().unwrap() - overflows;
        println!("the machine's queues overflowed {overflows} times; {ended:?}");
        assert!(carried() - before > QUEUE, "the fast path has not carried them");
        for (report, _) in &ended {
            assert!(report.lost <= overflows, "lost apart from the event: {report:?}");
            assert_eq!(report.duplicated, 0, "{report:?}");
        }
        let mut missing = ended.into_iter().map(|(_, missing)| missing[0].saturating_sub(overflows));
        Cost { ours: missing.by_ref().take(count).collect(), bare: missing.collect() }
    }
}

/// Waits until each stream has sent so many more packets.
fn passing(streams: &[Numbered], packets: u64) {
    let until: Vec<_> = streams.iter().map(|stream| stream.begun() + packets).collect();
    let is_past = |(stream, until): (&Numbered, &u64)| stream.sent() >= *until;
    wait_for("packets", || streams.iter().zip(&until).all(is_past));
}

impl Cost {
    /// The path that was there before still stood when the event was over.
    #[track_caller]
    fn is_none(&self, name: &str) {
        assert!(self.ours.iter().chain(&self.bare).all(|lost| *lost == 0), "{name}: {self:?}");
    }

    /// The event cut a path.
    #[track_caller]
    fn is_as_bare(&self, name: &str) {
        println!("{name}: {self:?}");
        let most = |lost: &[u64]| lost.iter().copied().max().unwrap_or(0);
        assert!(most(&self.ours) <= most(&self.bare) + QUEUE, "{name}: {self:?}");
    }
}

#[test]
fn while_the_old_path_stands_a_new_one_costs_nothing() {
    let paths = Paths::new();
    paths.ip(&format!("route add {FIRST}"));
    let flip = |streams: &[Numbered], routes: [&str; 2]| {
        for route in routes.into_iter().cycle().take(40) {
            paths.ip(&format!("route replace {route}"));
            passing(streams, 50);
        }
    };
    // The next hop moves.
    let cost = paths.cost(1, SMALL, |streams| {
        flip(streams, [SECOND, FIRST]);
        // And with it all packets.
        for (route, old, new) in [(SECOND, "eth1", "eth2"), (FIRST, "eth2", "eth1")] {
            paths.ip(&format!("route replace {route}"));
            thread::sleep(SETTLED);
            let both = || [old, new].map(|device| sent(&paths.bed, device));
            let before = both();
            passing(streams, 500);
            let [by_old, by_new] = both();
            // The link itself sends some, of ARP and IPv6.
            assert!(by_old - before[0] < 50, "{} by {old}", by_old - before[0]);
            assert!(by_new - before[1] >= 2 * 450, "{} by {new}", by_new - before[1]);
        }
    });
    cost.is_none("the next hop moves");
    // A path of several, and of one of them.
    let several = "10.99.0.2/32 nexthop via 10.97.1.2 dev eth1 nexthop via 10.97.2.2 dev eth2";
    paths.cost(3, SMALL, |streams| flip(streams, [several, FIRST])).is_none("one of two next hops goes");
    paths.ip(&format!("route replace {FIRST}"));
    // The path's MTU shrinks, and packets that may be fragmented are from then on. The container's sockets set no DF.
    paths.bed.pair().0.namespace().sysctl("ipv4/ip_no_pmtu_disc", "1").unwrap();
    for _ in 0..3 {
        let cost = paths.cost(1, LARGE, |streams| {
            paths.ip(&format!("route replace {FIRST} mtu lock 1300"));
            passing(streams, 500);
            paths.ip(&format!("route replace {FIRST}"));
        });
        cost.is_none("the path's MTU shrinks");
    }
}

#[test]
fn a_path_that_is_cut_costs_what_it_costs_the_bare_route() {
    let paths = Paths::new();
    let spare = format!("{SECOND} metric 20");
    paths.ip(&format!("route add {FIRST} metric 10"));
    paths.ip(&format!("route add {spare}"));
    for _ in 0..5 {
        paths.cost(1, SMALL, |_| paths.ip("link set eth1 down")).is_as_bare("the link goes down");
        paths.set_up(1);
        // What hung on the link is gone with it.
        paths.ip(&format!("route replace {FIRST} metric 10"));
    }
    paths.gateways_change_their_addresses();
    // Nearly all connections take the second of several next hops, so that its end meets both kinds.
    paths.ip(&format!("route delete {FIRST} metric 10"));
    paths.ip(&format!("route delete {spare}"));
    let several = "nexthop via 10.97.1.2 dev eth1 weight 1 nexthop via 10.97.2.2 dev eth2 weight 100";
    for _ in 0..3 {
        paths.ip(&format!("route replace 10.99.0.2/32 {several}"));
        paths.cost(3, SMALL, |_| paths.ip("link set eth2 down")).is_as_bare("one of two links goes down");
        paths.set_up(2);
    }
    // The interface itself goes, so that its index is nobody's.
    paths.ip(&format!("route replace {SECOND}"));
    paths.ip(&format!("route add {FIRST} metric 20"));
    paths.cost(1, SMALL, |_| paths.ip("link delete eth2")).is_as_bare("the interface goes");
}
