//! Ports come and go: veths, bridges, and the kernel's tables about them.
use std::{
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use overlay_common::{Hook, Reason};
use overlay_lab::{Accounts, Container, Ledger, Member, Numbered, Traffic, wait_until};

use super::bed::{Bed, Kind, assert_reaches, endpoint, pings, wait_for};

/// The kernel asks once more after a second; this is longer, to be generous on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Sends one packet, which is not repeated, and returns how long it took to arrive.
fn one_packet(from: &Container, to: &Container) -> Duration {
    let inbox = to.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?)).unwrap();
    inbox.set_read_timeout(Some(SOON)).unwrap();
    let target = (to.address(), inbox.local_addr().unwrap().port());
    let started = Instant::now();
    let send = from.namespace().enter(move || Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(b"hello", target)?));
    assert_eq!(send.unwrap(), 5);
    let mut bytes = [0; 8];
    let (length, source) = inbox.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..length], source.ip()), (&b"hello"[..], from.address().into()));
    started.elapsed()
}

/// Makes another container on the bridge of a host, whose port forwards already.
fn arrive(member: &Member, name: &str, last: u8) -> Container {
    let container = member.host.add_container(name, &member.subnet, last, member.mtu).unwrap();
    wait_for("a bridge that forwards", || {
        member
            .host
            .exec(&format!("bridge link show dev {}", container.port()))
            .unwrap()
            .contains("forwarding")
    });
    container
}

#[test]
fn the_first_packet_of_a_container_arrives_either_way_and_teaches() {
    let bed = Bed::new(Kind::Folder, 2);
    let ledger = Ledger::open(&bed.members).unwrap();
    // None of these containers has been heard of yet. The very first packet goes from one new container to another.
    for (number, (from, to)) in [(0, 1), (1, 0)].into_iter().enumerate() {
        let (from, to) = (&bed[from], &bed[to]);
        let speaker = arrive(from, &format!("s{number}"), 100 + number as u8);
        let listener = arrive(to, &format!("l{number}"), 110 + number as u8);
        let took = one_packet(&speaker, &listener);
        println!("the first packet took {took:?}");
        assert!(took < Duration::from_millis(900), "as long as an ARP request that is sent again: {took:?}");
        for (member, container) in [(from, &speaker), (to, &listener)] {
            wait_for("it to be learned", || endpoint(member, container.address()).is_some());
        }
        // New connections take the fast path from now on.
        let before = bed[0].counters().unwrap().carried().fast_out;
        one_packet(&speaker, &listener);
        one_packet(&listener, &speaker);
        assert_eq!(bed[0].counters().unwrap().carried().fast_out, before + 1);
    }
    let accounts = ledger.close(&bed.members).unwrap();
    let traffic = Traffic { sent: 6, received: 6 };
    accounts.balance(traffic).unwrap();
    assert_eq!((accounts.gaps(traffic), accounts.dropped()), ([0; 3], 0), "{accounts}");
}

#[test]
fn learning_follows_the_arp_exchange_within_milliseconds() {
    let bed = Bed::new(Kind::Folder, 2);
    let listener = bed[1].containers[0].clone();
    let mut learned = Vec::new();
    for number in 0..5 {
        let container = arrive(&bed[0], &format!("n{number}"), 50 + number);
        // A port gets its programs as soon as it exists, not only when an address behind it is known.
        thread::sleep(Duration::from_millis(200));
        let before = bed[0].counters().unwrap();
        let target = listener.address();
        let sent = container.namespace().enter(move || {
            // Every packet goes to another port, so that each is a connection of its own.
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let started = Instant::now();
            let mut sent = Vec::new();
            for port in 20_000..40_000 {
                socket.send_to(&[0; 8], (target, port))?;
                sent.push(started.elapsed());
            }
            Ok(sent)
        });
        let sent = sent.unwrap();
        let after = bed[0].counters().unwrap();
        let of = |reason| after.packets(Hook::Encap, reason) - before.packets(Hook::Encap, reason);
        let (unlearned, carried) = (of(Reason::Unlearned), of(Reason::Carried));
        assert!(unlearned > 0 && carried > 0, "{unlearned} {carried}");
        // The programs see the packets in the order in which they were sent.
        learned.push(sent[(unlearned as usize).min(sent.len() - 1)]);
    }
    learned.sort_unstable();
    println!("from the first packet, ARP exchange included, to the endpoint in force: {learned:?}");
    assert!(learned[2] < Duration::from_millis(500), "{learned:?}");
}

/// Deletes a container's veth under a stream to it, while other containers of the host must lose nothing. Returns how
/// many packets `overlay_decap` counted as delivered that nobody received, and the whole account.
fn delete_under_a_stream(bed: &Bed) -> (i64, Accounts) {
    let (victim, sender) = bed.pair();
    let (bystander, other) = (&bed[0].containers[1], &bed[1].containers[1]);
    let ledger = Ledger::open(&bed.members).unwrap();
    let others = Numbered::start(other, bystander, 2000).unwrap();
    let stream = Numbered::start(sender, victim, 20_000).unwrap();
    thread::sleep(Duration::from_millis(500));
    bed[0].host.exec(&format!("ip link delete {}", victim.port())).unwrap();
    thread::sleep(Duration::from_millis(500));
    let (report, others) = (stream.finish().unwrap(), others.finish().unwrap());
    let accounts = ledger.close(&bed.members).unwrap();
    println!("{report:?}\n{accounts}");
    assert_eq!((others.lost, others.duplicated), (0, 0), "{others:?}");
    // Every packet is accounted for up to the last hook.
    let traffic = Traffic::from(&[report, others][..]);
    assert_eq!(accounts.gaps(traffic)[..2], [0; 2], "{accounts}");
    let carried = accounts.packets(Hook::Decap, Reason::Carried);
    (carried as i64 - traffic.received as i64, accounts)
}

/// The most packets that may be lost without account. While a veth is being closed, which takes the kernel some grace
/// periods, redirects to it still succeed but it accepts nothing.
const CLOSING: i64 = 20_000 / 4;

#[test]
fn a_veth_deleted_under_a_stream_leaves_no_packet_uncounted() {
    let bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (lost, accounts) = delete_under_a_stream(&bed);
    println!("{lost} counted as delivered and not received");
    assert!((0..CLOSING).contains(&lost), "{lost} {accounts}");
    assert!(accounts.packets(Hook::Decap, Reason::Unlearned) > 0, "not forgotten: {accounts}");
}

#[test]
fn a_veth_that_is_gone_is_seen_to_be_without_an_agent() {
    let mut bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    bed[0].kill_agent().unwrap();
    let (lost, accounts) = delete_under_a_stream(&bed);
    println!("{lost} counted as delivered and not received");
    assert!((0..CLOSING).contains(&lost), "{lost} {accounts}");
    // The bridge floods the first packet to the stack, past the programs of other veths. From then on the connection is
    // a stack flow.
    let [gone, stack] =
        [Reason::EndpointGone, Reason::StackFlow].map(|reason| accounts.packets(Hook::Decap, reason));
    assert!(gone > 0 && gone + stack > 5000, "{accounts}");
}

#[test]
fn entries_that_age_under_traffic_are_no_end() {
    let bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (a, b) = bed.pair();
    let host = &bed[0].host;
    let held = endpoint(&bed[0], a.address()).unwrap();
    let mac = held["mac"].as_str().unwrap();
    let known = || host.exec("bridge fdb show br br0").unwrap().lines().any(|line| line.starts_with(mac));
    assert!(known());
    let ledger = Ledger::open(&bed.members).unwrap();
    let streams = [(a, b), (b, a)].map(|(from, to)| Numbered::start(from, to, 2000).unwrap());
    // The unit is centiseconds. The bridge does not see the frames of the fast path, so it forgets who is talking again
    // and again.
    host.exec("ip link set br0 type bridge ageing_time 50").unwrap();
    wait_until("the bridge to forget", Duration::from_secs(30), || Ok(!known())).unwrap();
    host.exec("ip neigh flush dev br0").unwrap();
    let entries = host.exec(&format!("ip neigh show {} dev br0", a.address())).unwrap();
    assert!(entries.trim().is_empty() || entries.contains("FAILED"), "{entries}");
    thread::sleep(Duration::from_millis(500));
    let reports = streams.map(|stream| stream.finish().unwrap());
    assert_eq!(endpoint(&bed[0], a.address()), Some(held));
    for report in &reports {
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }
    let accounts = ledger.close(&bed.members).unwrap();
    let traffic = Traffic::from(&reports[..]);
    assert_eq!((accounts.gaps(traffic), accounts.dropped()), ([0; 3], 0), "{accounts}");
    assert_eq!(accounts.packets(Hook::Decap, Reason::Carried), traffic.sent, "{accounts}");
}

#[test]
fn a_container_without_a_bridge_is_served() {
    let bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let b = &bed[1].containers[0];
    let routed = bed[0].host.add_routed_container("p", &bed[0].subnet, 60, bed[0].mtu).unwrap();
    assert_reaches(&routed, b.address());
    wait_for("the endpoint", || endpoint(&bed[0], routed.address()).is_some());
    assert_reaches(b, routed.address());
    let ledger = Ledger::open(&bed.members).unwrap();
    let reports = [(&routed, b), (b, &routed)].map(|(from, to)| {
        let stream = Numbered::start(from, to, 2000).unwrap();
        thread::sleep(Duration::from_millis(300));
        stream.finish().unwrap()
    });
    let (traffic, accounts) = (Traffic::from(&reports[..]), ledger.close(&bed.members).unwrap());
    assert_eq!((accounts.gaps(traffic), accounts.dropped()), ([0; 3], 0), "{accounts}");
    // A container whose port was learned by a route is reached by the fast path in both directions.
    assert_eq!(accounts.packets(Hook::Encap, Reason::Carried), traffic.sent, "{accounts}");
    assert_eq!(accounts.packets(Hook::Decap, Reason::Carried), traffic.sent, "{accounts}");
    let address = routed.address();
    routed.remove().unwrap();
    wait_for("no endpoint", || endpoint(&bed[0], address).is_none());
}

#[test]
fn a_bridge_removed_and_made_anew_takes_its_containers_back() {
    let bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (a, b) = bed.pair();
    let host = &bed[0].host;
    host.exec("ip link delete br0").unwrap();
    wait_for("no endpoints", || {
        bed[0].containers.iter().all(|one| endpoint(&bed[0], one.address()).is_none())
    });
    assert!(!b.ping(a.address(), pings(1)).unwrap().complete());
    host.add_bridge(&bed[0].subnet, bed[0].mtu).unwrap();
    for container in &bed[0].containers {
        host.exec(&format!("ip link set {} master br0 up", container.port())).unwrap();
    }
    wait_until("the first answer", SOON, || Ok(b.ping(a.address(), pings(1))?.complete())).unwrap();
    bed.learn_all();
    let before = bed[0].counters().unwrap().carried();
    bed.assert_all_reached();
    let after = bed[0].counters().unwrap().carried();
    assert!(after.fast_in > before.fast_in && after.fast_out > before.fast_out, "{before:?} {after:?}");
    assert_eq!(after.dropped, before.dropped, "{after:?}");
}

#[test]
fn a_container_that_moves_to_another_port_is_followed_at_once() {
    let bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (a, b) = bed.pair();
    let host = &bed[0].host;
    let old = endpoint(&bed[0], a.address()).unwrap();
    // The container gets a second link, to which its address and MAC address move; the first link goes down but stays.
    let inside = a.namespace().name();
    host.exec(&format!("ip link add vz mtu 1450 type veth peer name eth1 mtu 1450 netns {inside}")).unwrap();
    host.exec("ip link set vz master br0 up").unwrap();
    let mac = old["mac"].as_str().unwrap();
    a.exec("ip link set eth0 down").unwrap();
    a.exec(&format!("ip address delete {}/24 dev eth0", a.address())).unwrap();
    a.exec("ip link set eth0 address 02:00:00:00:00:99").unwrap();
    a.exec(&format!("ip link set eth1 address {mac} up")).unwrap();
    a.exec(&format!("ip address add {}/24 dev eth1", a.address())).unwrap();
    a.exec(&format!("ip route add default via {}", bed[0].subnet.replace(".0/24", ".1"))).unwrap();
    wait_for("a bridge that forwards", || {
        host.exec("bridge link show dev vz").unwrap().contains("forwarding")
    });
    let stream = Numbered::start(b, a, 1000).unwrap();
    let moved = Instant::now();
    // This is the container's first packet from its new place.
    assert_reaches(a, bed[0].subnet.replace(".0/24", ".1").parse().unwrap());
    wait_for("the new port", || endpoint(&bed[0], a.address()).is_some_and(|row| row["port"] == "vz"));
    println!("moved after {:?}", moved.elapsed());
    thread::sleep(Duration::from_millis(300));
    let report = stream.finish().unwrap();
    println!("{report:?}");
    // The packets of a second may be lost, because the old port is asked before the new one is believed. That is at
    // most 600.
    assert!(report.lost < 300, "{report:?}");
    assert_reaches(b, a.address());
    assert_reaches(a, b.address());
}
