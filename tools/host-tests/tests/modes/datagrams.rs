//! IPv4 packets directly in UDP: what the agent's socket relays is checked like all other packets, and what needs no
//! relay goes on without an agent.
use std::{net::Ipv4Addr, net::UdpSocket, thread, time::Duration};

use etherparse::PacketBuilder;
use overlay_common::{
    Hook::{Decap, Encap, Receive, Send},
    Reason,
};
use overlay_lab::{Backend, Ledger, Member, Namespace, Numbered, Options, Traffic, transfer};
use serde_json::Value;

use crate::bed::{Bed, Kind, assert_reaches, json, ping_df, pings, wait_for};

const PORT: u16 = 8285;
/// A size larger than the underlay's MTU. The kernel sends such a packet in outer fragments.
const LARGE: usize = 3000;

fn bed(kind: Kind) -> Bed {
    Bed::with_config(kind, Options::default(), Backend::Udp.config(), &[])
}

/// A UDP packet from `source` to port 4000 of `destination`.
fn packet(source: Ipv4Addr, destination: Ipv4Addr, payload: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source.octets(), destination.octets(), 60)
        .udp(3000, 4000)
        .write(&mut packet, &vec![0x5a; payload])
        .unwrap();
    // etherparse sets DF, which must not be set here because the container's link is smaller.
    packet[6] = 0;
    packet[10..12].fill(0);
    let sum =
        packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}

/// Sends `inner` in a datagram from `namespace` to the tunnel's port at `host`.
fn send_encapsulated(namespace: &Namespace, host: Ipv4Addr, inner: Vec<u8>) {
    let sent = namespace.enter(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        Ok(socket.send_to(&inner, (host, PORT))?)
    });
    sent.unwrap();
}

fn packets(member: &Member, reason: Reason) -> u64 {
    member.counters().unwrap().packets(Receive, reason)
}

#[test]
fn what_the_socket_takes_is_checked_all_the_same() {
    let bed = bed(Kind::Folder);
    bed.learn_all();
    let (a, b) = bed.pair();
    let (here, there) = (&bed[0].host, &bed[1]);
    let target = there.host.address();
    let listener = b.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:4000")?)).unwrap();
    listener.set_read_timeout(Some(Duration::from_secs(10))).unwrap();

    // Whole datagrams never reach the socket. What comes in outer fragments does, and the stack delivers it.
    let carried = packets(there, Reason::Carried);
    send_encapsulated(here.namespace(), target, packet(a.address(), b.address(), LARGE));
    let mut buffer = [0; 4000];
    let (length, from) = listener.recv_from(&mut buffer).unwrap();
    assert_eq!((length, from.ip()), (LARGE, a.address().into()));
    assert!(buffer[..length].iter().all(|byte| *byte == 0x5a));
    assert_eq!(packets(there, Reason::Carried), carried + 1);

    let foreign = Ipv4Addr::new(10, 244, 0, 9);
    let cut = packet(a.address(), b.address(), LARGE)[..LARGE - 100].to_vec();
    let mut version = packet(a.address(), b.address(), LARGE);
    version[0] = 0x65;
    for (namespace, inner, reason) in [
        // From a peer: the source is another host's container, or one of ours; or the destination is on another host.
        (here.namespace(), packet(foreign, b.address(), LARGE), Reason::PeerMismatch),
        (here.namespace(), packet(there.containers[1].address(), b.address(), LARGE), Reason::PeerMismatch),
        (here.namespace(), packet(a.address(), foreign, LARGE), Reason::NotOurSubnet),
        (here.namespace(), cut, Reason::Malformed),
        (here.namespace(), version, Reason::Malformed),
        // This packet is right but comes from a host that is no peer.
        (bed.lab.switch(), packet(a.address(), b.address(), LARGE), Reason::UnknownPeer),
    ] {
        let before = packets(there, reason);
        send_encapsulated(namespace, target, inner);
        wait_for(reason.as_str(), || packets(there, reason) == before + 1);
    }
    listener.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(listener.recv_from(&mut buffer).is_err(), "one of them arrived");
}

/// The link has become too narrow for packets that overlay0 accepts, and nobody has told the containers.
#[test]
fn what_the_link_does_not_take_whole_is_fragmented_by_the_kernel() {
    let bed = bed(Kind::Folder);
    bed.learn_all();
    let (a, b) = bed.pair();
    bed[0].host.set_mtu(1000).unwrap();
    let sent = || bed[0].counters().unwrap().packets(Send, Reason::NeedsFragmentation);
    let (before, arrived) = (sent(), packets(&bed[1], Reason::Carried));
    // A packet without DF is accepted and arrives as it was: only the outer packet was in fragments.
    a.namespace().sysctl("ipv4/ip_no_pmtu_disc", "1").unwrap();
    let listener = b.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:4000")?)).unwrap();
    listener.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let to = b.address();
    let sending = a.namespace().enter(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        Ok(socket.send_to(&[0x5a; 1400], (to, 4000))?)
    });
    assert_eq!(sending.unwrap(), 1400);
    let mut buffer = [0; 2000];
    let (length, from) = listener.recv_from(&mut buffer).unwrap();
    assert_eq!((length, from.ip()), (1400, a.address().into()));
    assert_eq!((sent(), packets(&bed[1], Reason::Carried)), (before + 1, arrived + 1));
    // A container that sets DF is told what fits.
    a.namespace().sysctl("ipv4/ip_no_pmtu_disc", "0").unwrap();
    let refused = ping_df(a, b.address(), 1400);
    assert!(refused.received == 0 && refused.output.contains("mtu = 972"), "{}", refused.output);
    assert!(ping_df(a, b.address(), 972 - 28).complete());
    transfer(a, b, 4 << 20).unwrap();
}

#[test]
fn a_ttl_that_ends_and_a_subnet_of_nobody_are_answered() {
    let bed = bed(Kind::Folder);
    bed.learn_all();
    let (a, b) = bed.pair();
    // The path has two routers, of which the receiving one does not decrement the TTL of what it delivers. flannel's
    // relays decrement the TTL four times in all, and send no ICMP message when it ends.
    let ping = |ttl| a.exec(&format!("ping -n -c 1 -W 2 -t {ttl} {}", b.address()));
    for (ttl, router) in [(1, &bed[0]), (2, &bed[1])] {
        let gone = ping(ttl).unwrap_err().to_string();
        let base = router.subnet.trim_end_matches("0/24");
        assert!(gone.contains("Time to live exceeded") && gone.contains(&format!("From {base}")), "{gone}");
    }
    let pinged = ping(3).unwrap();
    assert!(pinged.contains("ttl=63"), "{pinged}");
    let nobody = a.exec("ping -n -c 1 -W 2 10.244.0.9").unwrap_err().to_string();
    assert!(nobody.contains("Net Unreachable"), "{nobody}");
    let refused = ping_df(a, b.address(), 1472 - 28 + 1);
    assert!(refused.received == 0 && refused.output.contains("mtu=1472"), "{}", refused.output);
    assert!(ping_df(a, b.address(), 1472 - 28).complete());
}

#[test]
fn no_packet_is_lost_when_the_agent_ends_and_starts_and_the_stack_needs_none() {
    let mut bed = bed(Kind::Etcd);
    bed.learn_all();
    let (a, b) = bed.pair();
    let (a, b) = (a.clone(), b.clone());
    let ledger = Ledger::open(&bed.members).unwrap();
    let streams = [(&a, &b), (&b, &a)].map(|(from, to)| Numbered::start(from, to, 20_000).unwrap());
    thread::sleep(Duration::from_millis(300));
    bed[0].kill_agent().unwrap();
    thread::sleep(Duration::from_millis(300));
    bed[0].restart_agent().unwrap();
    assert!(bed[0].end_agent().unwrap().success());
    bed[0].restart_agent().unwrap();
    thread::sleep(Duration::from_millis(300));
    let reports = streams.map(|stream| stream.finish().unwrap());
    ledger.close(&bed.members).unwrap().balance(Traffic::from(&reports[..])).unwrap();
    for report in &reports {
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }

    // The TUN stays and nobody reads it. Hosts, and containers that are not learned, still reach each other in both
    // directions.
    for member in &mut bed.members {
        member.kill_agent().unwrap();
    }
    let (subnet, mtu) = (bed[0].subnet.clone(), bed[0].mtu);
    let unlearned = bed[0].host.add_container("late", &subnet, 77, mtu).unwrap();
    let stack = |bed: &Bed| {
        let [here, there] = [0, 1].map(|host| bed[host].counters().unwrap().carried());
        [here.stack_in, here.stack_out, there.fast_in, there.fast_out]
    };
    let before = stack(&bed);
    assert_reaches(&unlearned, b.address());
    assert_reaches(&b, unlearned.address());
    transfer(&unlearned, &b, 8 << 20).unwrap();
    transfer(&b, &unlearned, 8 << 20).unwrap();
    bed[0].host.exec(&format!("ping -n -c 2 -i 0.1 -W 5 {}", b.address())).unwrap();
    assert!(a.ping(b.address(), pings(5)).unwrap().complete());
    assert!(stack(&bed).iter().zip(before).all(|(now, then)| *now > then));
    for member in &bed.members {
        let counters = member.counters().unwrap();
        assert_eq!(counters.carried().dropped, 0, "{counters:?}");
    }
}

#[test]
fn the_tun_is_what_it_must_be_and_goes_with_down() {
    let mut bed = bed(Kind::Folder);
    bed.learn_all();
    let shown = |member: &Member| -> Value {
        serde_json::from_str(&member.host.exec("ip -d -j link show dev overlay0").unwrap()).unwrap()
    };
    let link = &shown(&bed[0])[0];
    assert_eq!(link["linkinfo"]["info_kind"], "tun");
    assert_eq!(link["linkinfo"]["info_data"]["persist"], true);
    // Another user who could open the TUN would be taken for the agent.
    assert_eq!(link["linkinfo"]["info_data"]["user"], "root", "{link}");
    assert_eq!((&link["mtu"], &link["inet6_addr_gen_mode"]), (&1472.into(), &"none".into()));
    assert_eq!(json(&bed[0], &["status"])["mode"], "udp");
    assert_eq!(json(&bed[0], &["peers"])[0]["vtep_mac"], Value::Null);
    let counters = bed[0].counters().unwrap();
    assert!(counters.packets(Encap, Reason::Carried) > 0 && counters.packets(Decap, Reason::Carried) > 0);

    assert!(bed[0].end_agent().unwrap().success());
    bed[0].overlay(&["down"]).unwrap();
    assert!(bed[0].host.exec("ip link show dev overlay0").is_err());
    bed[0].restart_agent().unwrap();
    bed.wait_for_peers(1);
    bed.assert_all_reached();
}

/// The TUN is deleted under an agent that reads it. The agent makes it anew with its programs, and reads it again.
#[test]
fn d3_a_tun_that_is_deleted_comes_back_and_is_relayed_to_again() {
    let bed = bed(Kind::Folder);
    bed.learn_all();
    let (a, b) = bed.pair();
    let (here, there) = (&bed[0].host, &bed[1]);
    let listener = b.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:4000")?)).unwrap();
    listener.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut buffer = [0; 4000];
    for _ in 0..2 {
        there.host.namespace().ip("link delete overlay0").unwrap();
        wait_for("overlay0 to be back, and fragments to be relayed", || {
            send_encapsulated(
                here.namespace(),
                there.host.address(),
                packet(a.address(), b.address(), LARGE),
            );
            listener.recv_from(&mut buffer).is_ok()
        });
        // Datagrams are relayed as soon as the device is up, and its route comes a moment later.
        wait_for("its route", || !there.host.exec("ip route show dev overlay0").unwrap().is_empty());
        // The packets take the stack in both directions, because a host has no endpoint.
        for (member, to) in [(&bed[0], b), (&bed[1], a)] {
            member.host.exec(&format!("ping -n -c 2 -i 0.1 -W 5 {}", to.address())).unwrap();
        }
    }
}

/// A container is an end of a tunnel of its own, so its frames are marked as encapsulated before our program sees them.
#[test]
fn a_tunnel_between_containers_goes_through_ours() {
    let bed = bed(Kind::Folder);
    bed.learn_all();
    let (a, b) = bed.pair();
    for (container, peer, inner) in [(a, b, "192.0.2.1/24"), (b, a, "192.0.2.2/24")] {
        let namespace = container.namespace();
        let (local, remote) = (container.address(), peer.address());
        let link =
            format!("link add vx0 mtu 1422 type vxlan id 7 dstport 4789 local {local} remote {remote}");
        for command in [link.as_str(), &format!("address add {inner} dev vx0"), "link set vx0 up"] {
            namespace.ip(command).unwrap();
        }
    }
    a.exec("ping -n -c 3 -i 0.1 -W 5 192.0.2.2").unwrap();
    let server = b.namespace().enter(|| Ok(std::net::TcpListener::bind("192.0.2.2:0")?)).unwrap();
    let to = server.local_addr().unwrap();
    let sender = a.namespace().thread(move || {
        let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
        Ok(std::io::Write::write_all(&mut stream, &vec![0x5a; 2 << 20])?)
    });
    let (mut stream, _) = server.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut received = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut received).unwrap();
    sender.join().unwrap().unwrap();
    assert!(received.len() == 2 << 20 && received.iter().all(|byte| *byte == 0x5a));
}

/// One send makes many datagrams (UDP_SEGMENT). No device finishes checksums behind a TUN, so the kernel hands them to
/// the agent one by one.
#[test]
fn datagrams_sent_at_once_by_a_host_arrive() {
    use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
    const EACH: i32 = 1000;
    let bed = bed(Kind::Folder);
    bed.learn_all();
    let b = &bed[1].containers[0];
    let listener = b.namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:4000")?)).unwrap();
    listener.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let to = b.address();
    let sent = bed[0].host.namespace().enter(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        setsockopt(&socket, UdpGsoSegment, &EACH)?;
        Ok(socket.send_to(&[0x5a; 3 * EACH as usize], (to, 4000))?)
    });
    assert_eq!(sent.unwrap(), 3 * EACH as usize);
    let mut buffer = [0; 4000];
    for _ in 0..3 {
        assert_eq!(listener.recv_from(&mut buffer).unwrap().0, EACH as usize);
    }
}
