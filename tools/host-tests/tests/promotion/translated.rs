//! Translated connections whose addresses, once translated, are those of another connection: none takes the fast path, which would
//! carry them to where they were not translated to.
use std::{
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::Duration,
};

use overlay_lab::{Backend, Container};
use overlay_user::datapath::tables::Tables;

use crate::{
    bed::{Bed, pins},
    traffic::{nft, strict_bed_of},
};

const PORT: u16 = 8080;
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// Answers every datagram with its container's own address, which no translation alters, until the test ends.
fn tells_its_address(container: &Container) {
    let address = container.address();
    let socket = container.namespace().enter(move || Ok(UdpSocket::bind((address, PORT))?)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&address.octets(), from);
        }
    });
}

/// Asks `to` from one port, and returns who has answered and in whose name.
fn asks(socket: &UdpSocket, to: Ipv4Addr) -> (Ipv4Addr, Ipv4Addr) {
    socket.send_to(b"who?", (to, PORT)).unwrap();
    let mut buffer = [0; 4];
    let (_, from) =
        socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("no answer from {to}: {error}"));
    let std::net::IpAddr::V4(from) = from.ip() else { panic!("{from}") };
    (buffer.into(), from)
}

/// Translates what is sent to the first address to the second.
type Rule = (Ipv4Addr, Ipv4Addr);

fn bed(fast_path: &str, rules: impl Fn(Ipv4Addr, Ipv4Addr) -> [Rule; 2]) -> (Bed, UdpSocket) {
    let bed = strict_bed_of(Backend::Vxlan, 1, &["--fast-path", fast_path]);
    let host = &bed[0].host;
    host.namespace().ip("route add 10.96.0.0/16 dev eth0").unwrap();
    let [one, other] = [0, 1].map(|number| bed[1].containers[number].clone());
    let rules = rules(one.address(), other.address());
    let lines = rules.map(|(from, to)| format!("ip daddr {from} udp dport {PORT} dnat to {to};")).concat();
    let chain = format!("chain in {{ type nat hook prerouting priority -100; {lines} }}");
    nft(host, &format!("table ip crosswise {{\n{chain}\n}}"));
    tells_its_address(&one);
    tells_its_address(&other);
    let socket = bed[0].containers[0].namespace().enter(|| Ok(UdpSocket::bind("0.0.0.0:4000")?)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    (bed, socket)
}

#[track_caller]
fn nothing_promoted(bed: &Bed) {
    let flows = Tables::open(&pins(&bed[0])).unwrap().stack_flows;
    let promoted = flows.promoted().unwrap();
    assert!(promoted.iter().all(|(key, _)| !key.ports.contains(&4000_u16.to_be_bytes())), "{promoted:?}");
}

#[test]
fn two_containers_that_stand_for_each_other_both_answer_in_the_others_name() {
    let (bed, socket) = bed("established", |one, other| [(one, other), (other, one)]);
    let [one, other] = [0, 1].map(|number| bed[1].containers[number].address());
    for _ in 0..10 {
        assert_eq!(asks(&socket, one), (other, one));
        assert_eq!(asks(&socket, other), (one, other));
    }
    nothing_promoted(&bed);
}

#[test]
fn a_service_whose_backend_has_another_container_stand_for_it_keeps_answering() {
    for fast_path in ["on", "established"] {
        let (bed, socket) = bed(fast_path, |one, other| [(SERVICE, one), (one, other)]);
        let [one, other] = [0, 1].map(|number| bed[1].containers[number].address());
        for _ in 0..10 {
            assert_eq!(asks(&socket, SERVICE), (one, SERVICE), "{fast_path}");
            assert_eq!(asks(&socket, one), (other, one), "{fast_path}");
        }
        nothing_promoted(&bed);
    }
}
