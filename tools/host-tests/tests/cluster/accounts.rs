//! Accounts of packets must balance: those sent are those delivered, those with a reason, and those that devices lost;
//! and the devices are named.
use std::{net::UdpSocket, thread, time::Duration};

use overlay_common::{Hook, Reason};
use overlay_lab::{Container, Ledger, Member, Numbered, Options, Traffic, transfer};
use serde_json::Value;

use super::bed::{Bed, Kind, json, pings, wait_for};

/// Sends `count` packets to an address, and waits for no answer.
fn send(from: &Container, to: &str, count: u64) {
    let to = to.to_owned();
    from.namespace()
        .enter(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for _ in 0..count {
                socket.send_to(&[0; 32], &to)?;
            }
            Ok(())
        })
        .unwrap();
}

/// The row of `overlay status --json` about a device's counter.
fn loss(member: &Member, device: &str, counter: &str) -> Option<Value> {
    let status = json(member, &["status"]);
    let rows = status["device_losses"].as_array().unwrap();
    rows.iter().find(|row| row["device"] == device && row["counter"] == counter).cloned()
}

#[test]
fn every_packet_of_both_hosts_has_one_reason() {
    let bed = Bed::new(Kind::Folder, 2);
    // Nothing is learned yet, so the packets that the stack carries are in the accounts as well.
    let ledger = Ledger::open(&bed.members).unwrap();
    let (a, b) = bed.pair();
    let ping = a.ping(b.address(), pings(5)).unwrap();
    assert!(ping.complete(), "{}", ping.output);
    let accounts = ledger.close(&bed.members).unwrap();
    accounts.balance(Traffic { sent: 10, received: 10 }).unwrap();
    assert!(accounts.packets(Hook::Encap, Reason::Unlearned) > 0, "{accounts}");

    bed.learn_all();
    let ledger = Ledger::open(&bed.members).unwrap();
    let streams = [(a, b), (b, a)].map(|(from, to)| Numbered::start(from, to, 5000).unwrap());
    // Nobody has leased this subnet. The programs answer at a limited rate; beyond it they only drop.
    send(a, "10.244.0.7:9", 300);
    thread::sleep(Duration::from_millis(700));
    let reports = streams.map(|stream| stream.finish().unwrap());
    let mut traffic = Traffic::from(&reports[..]);
    traffic.sent += 300;
    let accounts = ledger.close(&bed.members).unwrap();
    accounts.balance(traffic).unwrap();
    assert_eq!(accounts.packets(Hook::Encap, Reason::NoPeer), 300, "{accounts}");
    assert_eq!(accounts.dropped(), 300, "{accounts}");
}

#[test]
fn a_transfer_is_in_the_accounts_by_its_bytes() {
    for wire_like in [false, true] {
        let bed = Bed::with(Kind::Folder, Options { wire_like, ..Options::default() }, &[]);
        bed.learn_all();
        let (a, b) = bed.pair();
        let ledger = Ledger::open(&bed.members).unwrap();
        let done = transfer(a, b, 20 << 20).unwrap();
        let accounts = ledger.close(&bed.members).unwrap();
        println!("wire like {wire_like}: {} bytes\n{accounts}", done.bytes);
        for hook in [Hook::Encap, Hook::Decap] {
            assert!(accounts.bytes(hook) >= done.bytes, "{accounts}");
        }
        assert_eq!((accounts.dropped(), accounts.gaps(Traffic::default())[1]), (0, 0), "{accounts}");
    }
}

#[test]
fn what_the_underlays_queue_drops_is_named_with_and_without_an_agent() {
    let mut bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (a, b) = (bed[0].containers[0].clone(), bed[1].containers[0].clone());
    assert_eq!(loss(&bed[0], "eth0", "queue_drops"), None);
    // This sends about 1000 packets a second, and the queue holds some thirty.
    bed[0].host.exec("tc qdisc add dev eth0 root tbf rate 1mbit burst 2kb limit 4kb").unwrap();
    let ledger = Ledger::open(&bed.members).unwrap();
    let stream = Numbered::start(&a, &b, 5000).unwrap();
    thread::sleep(Duration::from_millis(500));
    let report = stream.finish().unwrap();
    let accounts = ledger.close(&bed.members).unwrap();
    println!("{report:?}\n{accounts}");
    assert!(report.lost > 500, "{report:?}");
    accounts.balance(Traffic::from(&[report][..])).unwrap();
    // The queue is the only place of loss. Other frames (such as ARP) may have been lost there too.
    let dropped = accounts.devices["h1 eth0 queue_drops"];
    assert!((report.lost..report.lost + 10).contains(&dropped), "{report:?} {dropped}");

    let shown = loss(&bed[0], "eth0", "queue_drops").unwrap();
    assert_eq!((&shown["role"], &shown["packets"]), (&"underlay".into(), &dropped.into()), "{shown}");
    assert_eq!(shown["since_start"], shown["packets"], "{shown}");
    let (_, page) = bed[0].host.http_get(8471, "/status").unwrap();
    let page: Value = serde_json::from_str(&page).unwrap();
    assert!(page["device_losses"].as_array().unwrap().contains(&shown), "{page}");
    // The next agent starts to count losses from the devices' present counters.
    bed[0].kill_agent().unwrap();
    let shown = loss(&bed[0], "eth0", "queue_drops").unwrap();
    assert_eq!((&shown["packets"], &shown["since_start"]), (&dropped.into(), &Value::Null), "{shown}");
    let text = bed[0].overlay(&["status"]).unwrap();
    let line = text.lines().find(|line| line.contains("queue_drops")).unwrap();
    assert!(line.starts_with("eth0") && line.contains(&dropped.to_string()), "{text}");
    assert!(text.contains("tc -s qdisc"), "{text}");
    bed[0].restart_agent().unwrap();
    let shown = loss(&bed[0], "eth0", "queue_drops").unwrap();
    assert_eq!((&shown["packets"], &shown["since_start"]), (&dropped.into(), &0.into()), "{shown}");
}

#[test]
fn a_container_whose_side_is_down_is_named() {
    let bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (a, b) = bed.pair();
    assert_eq!(loss(&bed[1], b.port(), "no_carrier"), None);
    b.exec("ip link set eth0 down").unwrap();
    let ledger = Ledger::open(&bed.members).unwrap();
    send(a, &format!("{}:9", b.address()), 50);
    wait_for("the packets", || {
        let counters = bed[1].counters().unwrap();
        counters.carried().fast_in + counters.carried().stack_in > 0
    });
    thread::sleep(Duration::from_millis(200));
    let accounts = ledger.close(&bed.members).unwrap();
    println!("{accounts}");
    let shown = loss(&bed[1], b.port(), "no_carrier").unwrap();
    assert_eq!((&shown["role"], &shown["packets"]), (&"endpoint".into(), &Value::Null), "{shown}");
    println!("{}", bed[1].overlay(&["status"]).unwrap());
    b.exec("ip link set eth0 up").unwrap();
    b.exec(&format!("ip route add default via {}", bed[1].subnet.replace(".0/24", ".1"))).unwrap();
    wait_for("the carrier", || loss(&bed[1], b.port(), "no_carrier").is_none());
    assert!(a.ping(b.address(), pings(3)).unwrap().complete());
}
