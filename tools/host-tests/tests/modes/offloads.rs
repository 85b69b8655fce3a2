//! What a frame's metadata says about its segments and checksums, beyond what one TCP stream between two containers
//! shows: several datagrams of one send, containers that forward what they receive, and checksums of every kind.
use std::{net::UdpSocket, os::fd::AsFd as _, time::Duration};

use etherparse::PacketBuilder;
use nix::sys::socket::{setsockopt, sockopt};
use overlay_common::{Hook::Decap, Reason};
use overlay_lab::{self as lab, Backend, Container, Lab, Namespace, Options, Store, transfer, transfer_by};

use super::count::{Count, be_patient, set_wire_like, without_timeouts};
use crate::bed::{Bed, Kind, overlay};

const BYTES: u64 = 8 << 20;
const PORT: u16 = 4000;

/// Sends twenty datagrams at once, each of which must arrive as it was.
fn datagrams(what: &str, from: &Container, to: &Container, each: usize) {
    const COUNT: usize = 20;
    let open = |container: &Container| container.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?));
    let [sender, receiver] = [from, to].map(|container| open(container).unwrap());
    sender.connect((to.address(), receiver.local_addr().unwrap().port())).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    setsockopt(&sender.as_fd(), sockopt::UdpGsoSegment, &(each as i32)).unwrap();
    // The last datagram is shorter.
    let sent: Vec<u8> = (0..COUNT * each - 7).map(|at| (at * 7 + at / 256) as u8).collect();
    assert_eq!(sender.send(&sent).unwrap(), sent.len());
    let mut buffer = vec![0; 65536];
    for (number, expected) in sent.chunks(each).enumerate() {
        let length = receiver
            .recv(&mut buffer)
            .unwrap_or_else(|error| panic!("{what}: datagram {number} of {each} bytes: {error}"));
        assert!(buffer[..length] == *expected, "{what}: datagram {number}, {length} of {each} bytes");
    }
}

/// Does the same for two containers, and checks which tiers carried the datagrams.
fn datagrams_at_once(bed: &Bed, backend: Backend, wire_like: bool) {
    let (a, b) = bed.pair();
    for each in [500, bed[0].mtu as usize - 28] {
        let what = format!("{}, wire-like {wire_like}, {each}", backend.name());
        let count = Count::of(bed, || datagrams(&what, a, b, each));
        let [here, there] = [0, 1].map(|host| count.carried(host));
        assert_eq!((here.fast_out, here.stack_out, here.dropped), (20, 0, 0), "{what}");
        // A frame that holds several encapsulated datagrams is left to the receiving stack, which takes it apart.
        let is_one_frame = !wire_like && backend != Backend::HostGw;
        let (fast, stack) = if is_one_frame { (0, 20) } else { (20, 0) };
        assert_eq!((there.fast_in, there.stack_in, there.dropped), (fast, stack, 0), "{what}");
        assert_eq!(count.packets(1, Decap, Reason::HeadroomRefused), stack, "{what}");
    }
}

/// A container of the second host that forwards what it receives, and a machine behind it.
struct Forwarder {
    inside: Namespace,
}

impl Forwarder {
    const INNER: &str = "192.0.2.2";
    const TUNNELLED: &str = "198.51.100.2";

    /// The machine is behind a link without offloads, so each frame is cut and each checksum finished as the frame's
    /// metadata says.
    fn new(bed: &Bed) -> Self {
        let (host, b) = (&bed[1].host, bed[1].containers[0].namespace());
        let inside = host.add_container("inside", &bed[1].subnet, 200, bed[1].mtu).unwrap();
        let inside = inside.namespace().clone();
        inside.ip("link delete eth0").unwrap();
        let (mtu, name) = (bed[1].mtu, inside.name());
        let outer = mtu + 50;
        b.ip(&format!("link add inner mtu {outer} type veth peer name eth0 mtu {outer} netns {name}"))
            .unwrap();
        for (end, device, number) in [(b, "inner", 1), (&inside, "eth0", 2)] {
            let other = 3 - number;
            end.ip(&format!("address add 192.0.2.{number}/24 dev {device}")).unwrap();
            end.ip(&format!("link set {device} up")).unwrap();
            end.ip(&format!(
                "link add vx9 mtu {mtu} type vxlan id 9 dstport 4789 local 192.0.2.{number} remote 192.0.2.{other}"
            ))
            .unwrap();
            end.ip(&format!("address add 198.51.100.{number}/24 dev vx9")).unwrap();
            end.ip("link set vx9 up").unwrap();
        }
        inside.ip("route add default via 192.0.2.1").unwrap();
        for (key, value) in [("ipv4/ip_forward", "1"), ("ipv4/conf/all/send_redirects", "0")] {
            b.sysctl(key, value).unwrap();
        }
        b.sysctl("ipv4/conf/eth0/send_redirects", "0").unwrap();
        b.exec("ethtool -K inner tso off gso off tx off").unwrap();
        Self { inside }
    }

    /// Has the container forward what it receives to this address from now on.
    fn point_to(bed: &Bed, address: &str) {
        Self::point_nowhere(bed);
        let b = &bed[1].containers[0];
        for protocol in ["tcp", "udp"] {
            let rule = format!("PREROUTING -i eth0 -p {protocol} -j DNAT --to-destination {address}");
            b.exec(&format!("iptables -t nat -A {rule}")).unwrap();
        }
        b.exec("iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE").unwrap();
    }

    /// Has the container keep what it receives.
    fn point_nowhere(bed: &Bed) {
        bed[1].containers[0].exec("iptables -t nat -F").unwrap();
    }
}

/// A container sends segments at once and another forwards them. There a decapsulated GSO frame still says that it
/// belongs to a tunnel (SKB_GSO_UDP_TUNNEL, skb->encapsulation).
#[test]
fn segments_are_right_whoever_cuts_them() {
    for backend in Backend::ALL {
        let bed = Bed::with_config(Kind::Folder, Options::default(), backend.config(), &[]);
        bed.learn_all();
        be_patient(bed.pair().0);
        let forwarder = Forwarder::new(&bed);
        for wire_like in [false, true] {
            set_wire_like(&bed.lab, wire_like);
            datagrams_at_once(&bed, backend, wire_like);
            // A packet that was never encapsulated has no such marks.
            if backend != Backend::HostGw {
                passed_on(&bed, &forwarder, &format!("{}, wire-like {wire_like}", backend.name()));
            }
            Forwarder::point_nowhere(&bed);
        }
    }
}

fn passed_on(bed: &Bed, forwarder: &Forwarder, name: &str) {
    let (a, b) = bed.pair();
    for (forwarding, address, gateway) in
        [("veth", Forwarder::INNER, "192.0.2.1"), ("tunnel", Forwarder::TUNNELLED, "198.51.100.1")]
    {
        let what = format!("{name}, on by a {forwarding}");
        Forwarder::point_to(bed, address);
        forwarder.inside.ip(&format!("route replace default via {gateway}")).unwrap();
        let count = Count::of(bed, || {
            without_timeouts(&what, a, || transfer_by(a, b.address(), &forwarder.inside, BYTES));
        });
        count.is_fast(&what, BYTES, 1460);
    }
    // The frame goes back to where it came from, through our tunnel once more. A frame that is marked already is left
    // to the stack.
    let what = format!("{name}, back");
    let c = &bed[0].containers[1];
    Forwarder::point_to(bed, &c.address().to_string());
    let count = Count::of(bed, || {
        without_timeouts(&what, a, || transfer_by(a, b.address(), c.namespace(), BYTES));
    });
    let [here, there] = [0, 1].map(|host| count.carried(host));
    assert_eq!(
        (here.stack_out, here.stack_in, here.dropped, there.dropped),
        (0, 0, 0, 0),
        "{what}: {here:?}"
    );
    let segments = BYTES / 1460;
    assert!(here.fast_out >= segments && here.fast_in >= segments, "{what}: {here:?}");
    assert!(there.fast_in + there.stack_in >= segments, "{what}: {there:?}");
    assert!(there.fast_out + there.stack_out >= segments, "{what}: {there:?}");
}

/// Hosts whose underlay is itself a tunnel with checksums. The kernel has then summed each frame that arrives
/// (CHECKSUM_COMPLETE) rather than verified it, as many NICs do.
fn summed(backend: Backend) -> Bed {
    let lab = Lab::new(Options { mtu: 1600, wire_like: true, ..Options::default() }).unwrap();
    for (host, other) in [(0, 1), (1, 0)] {
        let [here, there] = [host, other].map(|index| format!("10.98.0.{}", index + 1));
        let (namespace, address) = (lab.host(host).namespace(), lab.host(host).address());
        for command in [
            "link set eth0 down",
            "link set eth0 name nic0",
            &format!("address delete {address}/24 dev nic0"),
            &format!("address add {here}/24 dev nic0"),
            "link set nic0 up",
            &format!(
                "link add eth0 mtu 1500 type vxlan id 77 dstport 4790 local {here} remote {there} udpcsum"
            ),
            &format!("address add {address}/24 dev eth0"),
            "link set eth0 up",
        ] {
            namespace.ip(command).unwrap();
        }
        // GRO would verify the frames that it merges, and mark them so.
        lab.host(host).exec("ethtool -K nic0 gro off").unwrap();
        lab.host(host).exec("ethtool -K eth0 gro off").unwrap();
    }
    let store = Store::folder(&lab);
    let members = lab::populate_with(&lab, overlay(), &store, backend.config(), &[]).unwrap();
    let mut bed = Bed { established: false, members, store, lab };
    bed.wait_for_peers(1);
    bed
}

#[test]
fn a_sum_over_the_whole_frame_holds_for_what_was_inside() {
    for backend in Backend::ALL {
        let mut bed = summed(backend);
        bed.learn_all();
        let name = backend.name();
        {
            let (a, b) = bed.pair();
            be_patient(a);
            let count = Count::of(&bed, || without_timeouts(name, a, || transfer(a, b, BYTES)));
            count.is_fast(name, BYTES, 1460);
            let count = Count::of(&bed, || datagrams(name, a, b, 1000));
            count.is_fast(name, 20, 1);
        }
        // No agent is left to learn this container, so its packets take the stack.
        bed[1].kill_agent().unwrap();
        let late = bed[1].host.add_container("late", &bed[1].subnet, 77, bed[1].mtu).unwrap();
        let a = &bed[0].containers[0];
        let count = Count::of(&bed, || without_timeouts(name, a, || transfer(a, &late, BYTES)));
        let there = count.carried(1);
        assert!(
            there.stack_in >= BYTES / 1460 && there.fast_in == 0 && there.dropped == 0,
            "{name}: {there:?}"
        );
    }
}

/// What a process sends in datagrams of its own, as flannel's relay does, has an outer checksum that a virtual device
/// leaves unfinished (CHECKSUM_PARTIAL).
#[test]
fn an_unfinished_outer_checksum_is_forgotten_with_the_outer_headers() {
    const EACH: usize = 900;
    let bed = Bed::with_config(Kind::Folder, Options::default(), Backend::Udp.config(), &[]);
    bed.learn_all();
    let (a, b) = bed.pair();
    let forwarder = Forwarder::new(&bed);
    Forwarder::point_to(&bed, Forwarder::INNER);
    let listener = forwarder.inside.enter(|| Ok(UdpSocket::bind(("0.0.0.0", PORT))?)).unwrap();
    listener.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut inner = Vec::new();
    PacketBuilder::ipv4(a.address().octets(), b.address().octets(), 60)
        .udp(3000, PORT)
        .write(&mut inner, &[0x5a; EACH])
        .unwrap();
    let to = bed[1].host.address();
    let count = Count::of(&bed, || {
        let sent = bed[0].host.namespace().enter(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            Ok(socket.send_to(&inner, (to, 8285))?)
        });
        assert_eq!(sent.unwrap(), EACH + 28);
        let mut buffer = [0; 2000];
        assert_eq!(listener.recv(&mut buffer).unwrap(), EACH);
        assert!(buffer[..EACH].iter().all(|byte| *byte == 0x5a));
    });
    let there = count.carried(1);
    assert_eq!((there.fast_in, there.stack_in, there.dropped), (1, 0, 0), "{there:?}");
}
