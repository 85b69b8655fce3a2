//! `--fast-path established`: whatever firewall the host has decides on each connection, and the fast path carries what it has
//! accepted.
use std::{net::UdpSocket, thread, time::Duration};

use overlay_common::{Hook, Reason};
use overlay_lab::{
    Backend, Numbered, Options,
    project::{Next, build_next},
};
use overlay_user::datapath::tables::Tables;

use crate::{
    bed::{Bed, Kind, json, pins, wait_for},
    traffic::{
        BOTH, Protocol, Server, Talk, Tier, assert_nothing_invalid, nft, settle, strict_bed_of, tiers,
    },
};

const ESTABLISHED: [&str; 2] = ["--fast-path", "established"];

/// The chain that firewalls of servers have: what belongs to something accepted, and new connections to one port.
const ONE_PORT: &str = "table ip firewall {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        meta l4proto { tcp, udp } th dport 8080 ct state new accept
        meta l4proto icmp accept
    }
}";

pub(super) fn asks(talk: &mut Talk) {
    talk.ask().unwrap();
}

/// Asks until the connection has left the stack on both hosts, which is after the first answer.
#[track_caller]
pub(super) fn asserts_fast(bed: &Bed, talk: &mut Talk) {
    talk.ask().unwrap();
    let carried = tiers(bed, || (0..5).for_each(|_| asks(talk)));
    assert_eq!(carried, [Tier::Fast, Tier::Fast]);
}

/// Conversations by both protocols with the server of the second host's first container, which have left the stack.
#[track_caller]
pub(super) fn promoted(bed: &Bed) -> [Talk; 2] {
    settle(bed);
    let (a, b) = bed.pair();
    BOTH.map(|protocol| {
        let mut talk = Talk::open(a.namespace(), protocol, b.address(), 8080).unwrap();
        asserts_fast(bed, &mut talk);
        talk
    })
}

#[test]
fn a_connection_is_fast_from_its_first_answer_on() {
    for backend in Backend::ALL {
        let bed = strict_bed_of(backend, 1, &ESTABLISHED);
        for member in &bed.members {
            nft(&member.host, ONE_PORT);
        }
        settle(&bed);
        let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
        let _server = Server::of(&b);
        for protocol in BOTH {
            let began = bed[0].counters().unwrap().packets(Hook::Send, Reason::Carried);
            let mut talk = Talk::open(a.namespace(), protocol, b.address(), 8080).unwrap();
            asserts_fast(&bed, &mut talk);
            let stack = bed[0].counters().unwrap().packets(Hook::Send, Reason::Carried) - began;
            assert!((1..=2).contains(&stack), "{protocol:?}: the client's stack has sent {stack} packets");
        }
        assert_nothing_invalid(&bed);
    }
}

#[test]
fn what_the_firewall_refuses_stays_refused() {
    let bed = strict_bed_of(Backend::Vxlan, 1, &ESTABLISHED);
    nft(&bed[1].host, ONE_PORT);
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let _servers = [Server::of(&b), Server::start(b.namespace(), b.address(), 8081), Server::of(&a)];
    for (from, to, port) in [(&a, &b, 8081), (&b, &a, 8081)] {
        for protocol in BOTH {
            let asked = Talk::open(from.namespace(), protocol, to.address(), port);
            assert!(asked.and_then(|mut talk| talk.ask()).is_err(), "{protocol:?} {port}");
        }
    }
    // With the fast path on, that firewall is not asked, and so says the status.
    let tiers = json(&bed[1], &["status"])["tiers"].to_string();
    assert!(tiers.contains("once the stack has accepted both its directions"), "{tiers}");
}

#[test]
fn a_change_of_the_rules_takes_promotions_back() {
    let bed = strict_bed_of(Backend::Vxlan, 1, &ESTABLISHED);
    let _server = Server::of(&bed[1].containers[0]);
    let mut talks = promoted(&bed);
    // Rules that go on accepting them: they go through the stack, are accepted there, and leave it again.
    let by_stack = |host: usize| bed[host].counters().unwrap().packets(Hook::Decap, Reason::StackFlow);
    let before = by_stack(1);
    nft(&bed[1].host, ONE_PORT);
    wait_for("the connections to return to the stack", || {
        talks.iter_mut().for_each(asks);
        by_stack(1) > before + 1
    });
    settle(&bed);
    for talk in &mut talks {
        asserts_fast(&bed, talk);
    }
    // The older variant of iptables tells nobody of its changes, so it is looked at.
    let before = by_stack(1);
    bed[1].host.exec("iptables-legacy -I FORWARD -p tcp --dport 9 -j DROP").unwrap();
    wait_for("the connections to return to the stack", || {
        talks.iter_mut().for_each(asks);
        by_stack(1) > before + 1
    });
    // Rules that refuse them.
    nft(
        &bed[1].host,
        "table ip refuse {
            chain forward { type filter hook forward priority -1; meta l4proto { tcp, udp } th dport 8080 drop; }
        }",
    );
    wait_for("the connections to be refused", || {
        bed[1].counters().unwrap().packets(Hook::Receive, Reason::Carried) > 0
            && talks.iter_mut().all(|talk| talk.ask().is_err())
    });
    assert_nothing_invalid(&bed);
}

/// A server that begins to send into a connection whose promotion was just taken back would be taken for the beginning of a
/// connection from there, which this firewall refuses, if connection tracking did not know better.
#[test]
fn the_stack_knows_a_connection_that_returns_to_it_whoever_sends_first() {
    let bed = strict_bed_of(Backend::Vxlan, 1, &ESTABLISHED);
    for member in &bed.members {
        nft(&member.host, ONE_PORT);
        // What is known of the first packets is forgotten at once, as it is after a minute by default.
        member.host.namespace().sysctl("netfilter/nf_conntrack_tcp_timeout_syn_recv", "2").unwrap();
    }
    settle(&bed);
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let (listener, to) = (std::net::SocketAddr::from((b.address(), 8080)), b.address());
    let listener = b.namespace().enter(move || Ok(std::net::TcpListener::bind(listener)?)).unwrap();
    let mut client = a.namespace().enter(move || Ok(std::net::TcpStream::connect((to, 8080))?)).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    exchange(&mut client, &mut server);
    exchange(&mut server, &mut client);
    let tracked = |host: usize| bed[host].host.exec("cat /proc/net/nf_conntrack").unwrap();
    wait_for("connection tracking to be told", || {
        [0, 1].iter().all(|host| tracked(*host).contains("ESTABLISHED"))
    });
    thread::sleep(Duration::from_secs(3));
    // Both hosts' rules change, and the server is the one that goes on.
    for member in &bed.members {
        nft(&member.host, "table ip other { }");
    }
    let by_stack = || bed[1].counters().unwrap().packets(Hook::Encap, Reason::StackFlow);
    let before = by_stack();
    wait_for("the connection to return to the stack", || {
        exchange(&mut server, &mut client);
        by_stack() > before
    });
    exchange(&mut client, &mut server);
    assert_nothing_invalid(&bed);
}

fn exchange(from: &mut std::net::TcpStream, to: &mut std::net::TcpStream) {
    use std::io::{Read as _, Write as _};
    from.write_all(b"line").unwrap();
    to.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    to.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn agents_may_end_and_start_under_packets() {
    let mut bed = Bed::with(Kind::Folder, Options::default(), &ESTABLISHED);
    bed.learn_all();
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let _server = Server::of(&b);
    let mut talks = promoted(&bed);
    let streams = [(&a, &b), (&b, &a)].map(|(from, to)| Numbered::start(from, to, 20_000).unwrap());
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(300));
        bed[0].kill_agent().unwrap();
        thread::sleep(Duration::from_millis(300));
        bed[0].restart_agent().unwrap();
    }
    thread::sleep(Duration::from_millis(300));
    for report in streams.map(|stream| stream.finish().unwrap()) {
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }
    // A restart is no change of the rules: what was promoted stays so.
    for talk in &mut talks {
        let carried = tiers(&bed, || (0..5).for_each(|_| asks(talk)));
        assert_eq!(carried, [Tier::Fast, Tier::Fast]);
    }
    // These streams have one direction each, so that the stack never accepts the other.
    let counted = bed[0].counters().unwrap();
    assert!(counted.packets(Hook::Encap, Reason::StackFlow) > 1000, "{counted:?}");
}

/// The stack flows are copied into the maps of the other layout, with what the stack has accepted.
#[test]
fn promotions_outlive_a_change_of_the_map_layout() {
    let next = build_next(Next::Layout).unwrap();
    let mut bed = strict_bed_of(Backend::Vxlan, 1, &ESTABLISHED);
    let _server = Server::of(&bed[1].containers[0]);
    let mut talks = promoted(&bed);
    bed[0].end_agent().unwrap();
    bed[0].install(&next);
    bed[0].restart_agent().unwrap();
    for talk in &mut talks {
        let carried = tiers(&bed, || (0..5).for_each(|_| asks(talk)));
        assert_eq!(carried, [Tier::Fast, Tier::Fast]);
    }
    assert_nothing_invalid(&bed);
}

#[test]
fn a_full_table_leaves_connections_to_the_stack() {
    let bed =
        Bed::with(Kind::Folder, Options::default(), &[&ESTABLISHED[..], &["--max-flows", "2"]].concat());
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    let _server = Server::of(&b);
    let mut talks: Vec<_> =
        (0..6).map(|_| Talk::open(a.namespace(), Protocol::Tcp, b.address(), 8080).unwrap()).collect();
    for talk in &mut talks {
        (0..3).for_each(|_| asks(talk));
    }
    let counted = bed[0].counters().unwrap();
    assert!(counted.packets(Hook::Send, Reason::FlowTableFull) > 0, "{counted:?}");
    assert!(counted.packets(Hook::Encap, Reason::NotEstablished) > 0, "{counted:?}");
}

/// A container that begins connections without end takes only the space that is left, never another connection's; and what has no
/// space is carried by the stack, until the attempts are forgotten.
#[test]
fn a_flood_of_connections_fills_the_table_and_takes_nothing_from_others() {
    const FLOWS: usize = 1000;
    let mut bed = strict_bed_of(Backend::Vxlan, 1, &[&ESTABLISHED[..], &["--max-flows", "1000"]].concat());
    for member in &bed.members {
        member.host.namespace().sysctl("netfilter/nf_conntrack_udp_timeout", "3").unwrap();
    }
    let (victim, flooder) = (bed[0].containers[0].clone(), bed[0].containers[1].clone());
    let (server, target) = (bed[1].containers[0].clone(), bed[1].containers[1].address());
    let _server = Server::of(&server);
    let mut talks = promoted(&bed);
    let flood = || {
        let to = target;
        flooder
            .namespace()
            .enter(move || {
                for _ in 0..3 {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    for port in 10_000..11_000 {
                        // The target answers that nobody listens there, which the socket tells at the next sending.
                        let _ = socket.send_to(b"flood", (to, port));
                    }
                }
                Ok(())
            })
            .unwrap();
    };
    flood();
    for member in &bed.members {
        let flows = Tables::open(&pins(member)).unwrap().stack_flows;
        assert_eq!(flows.iter().count(), FLOWS, "{}", member.host.name());
    }
    let counted = bed[0].counters().unwrap();
    assert!(counted.packets(Hook::Send, Reason::FlowTableFull) > 1000, "{counted:?}");
    assert!(bed[1].counters().unwrap().packets(Hook::Track, Reason::FlowTableFull) > 1000);
    // What was promoted stays so, and what is new is the stack's, in both directions.
    for talk in &mut talks {
        let carried = tiers(&bed, || (0..5).for_each(|_| asks(talk)));
        assert_eq!(carried, [Tier::Fast, Tier::Fast]);
    }
    for protocol in BOTH {
        let mut beyond = Talk::open(victim.namespace(), protocol, server.address(), 8080).unwrap();
        let carried = tiers(&bed, || (0..5).for_each(|_| asks(&mut beyond)));
        assert_eq!(carried, [Tier::Stack, Tier::Stack], "{protocol:?}");
    }
    // The attempts are forgotten when connection tracking has forgotten them, at the latest when the next agent looks.
    thread::sleep(Duration::from_secs(6));
    for host in [0, 1] {
        bed[host].kill_agent().unwrap();
        bed[host].restart_agent().unwrap();
        let member = &bed[host];
        wait_for("the attempts to be forgotten", || {
            Tables::open(&pins(member)).unwrap().stack_flows.iter().count() < 100
        });
    }
    for protocol in BOTH {
        let mut late = Talk::open(victim.namespace(), protocol, server.address(), 8080).unwrap();
        asserts_fast(&bed, &mut late);
    }
    for talk in &mut talks {
        asserts_fast(&bed, talk);
    }
    assert_nothing_invalid(&bed);
}
