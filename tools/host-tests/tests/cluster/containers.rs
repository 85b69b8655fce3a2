//! Containers come, go, are replaced and move, and some try to use addresses of others.
use std::{
    net::Ipv4Addr,
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, sendto, socket},
};
use overlay_common::{Hook, Reason};
use overlay_lab::{Container, Ledger, Member, Numbered, PingOptions, Traffic, wait_until};
use serde_json::Value;

use super::bed::{Bed, Kind, assert_reaches, endpoint, json, pings, wait_for};

fn mac(container: &Container) -> String {
    let link: Value = serde_json::from_str(&container.exec("ip -j link show dev eth0").unwrap()).unwrap();
    link[0]["address"].as_str().unwrap().to_owned()
}

fn gateway(member: &Member) -> std::net::Ipv4Addr {
    member.subnet.replace(".0/24", ".1").parse().unwrap()
}

/// Removes the first container of a host and makes another with its name and address, as a container runtime does.
fn replace(bed: &mut Bed, host: usize) -> (Container, String) {
    let old = bed[host].containers.remove(0);
    let (old_mac, subnet, mtu) = (mac(&old), bed[host].subnet.clone(), bed[host].mtu);
    old.remove().unwrap();
    let new = bed[host].host.add_container("a", &subnet, 2, mtu).unwrap();
    bed[host].containers.insert(0, new.clone());
    assert_ne!(mac(&new), old_mac);
    (new, old_mac)
}

#[test]
fn endpoints_are_learned_and_shown() {
    let bed = Bed::new(Kind::Folder, 2);
    assert_eq!(json(&bed[0], &["endpoints"]), Value::Array(Vec::new()));
    bed.learn_all();
    for member in &bed.members {
        assert_eq!(json(member, &["endpoints"]).as_array().unwrap().len(), 2);
        for container in &member.containers {
            let row = endpoint(member, container.address()).unwrap();
            assert_eq!(row["mac"], mac(container).as_str());
            assert_eq!((&row["port"], &row["pinned"]), (&container.port().into(), &false.into()), "{row}");
        }
    }
}

#[test]
fn a_replaced_container_is_reached_again_with_the_agent_alive_and_dead() {
    let mut bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let other = bed[1].containers[0].clone();

    let (new, _) = replace(&mut bed, 0);
    // This makes one ARP exchange, as the container's first packet does.
    assert_reaches(&new, gateway(&bed[0]));
    assert_reaches(&other, new.address());
    assert_reaches(&new, other.address());
    wait_for("the new endpoint", || {
        endpoint(&bed[0], new.address()).is_some_and(|row| row["mac"] == mac(&new).as_str())
    });
    bed.assert_all_reached();

    bed[0].kill_agent().unwrap();
    let (new, old_mac) = replace(&mut bed, 0);
    assert_reaches(&new, gateway(&bed[0]));
    assert_reaches(&other, new.address());
    assert_reaches(&new, other.address());
    // No agent was there to learn the new container, so its entry is stale; the stack carries the packets all the same.
    assert_eq!(endpoint(&bed[0], new.address()).unwrap()["mac"], old_mac.as_str());

    bed[0].restart_agent().unwrap();
    wait_for("the new endpoint", || {
        endpoint(&bed[0], new.address()).is_some_and(|row| row["mac"] == mac(&new).as_str())
    });
    bed.assert_all_reached();
    for member in &bed.members {
        let counters = member.counters().unwrap();
        assert_eq!(counters.carried().dropped, 0, "{counters:?}");
    }
}

#[test]
fn attached_endpoints_are_pinned_until_detached() {
    let bed = Bed::new(Kind::Folder, 2);
    let (a, b) = bed.pair();
    let address = a.address().to_string();
    // There has been no packet yet, so only the operator knows the container.
    let words = ["attach", &address, "--port", a.port(), "--mac", &mac(a)];
    assert!(bed[0].overlay(&words).unwrap().contains("attached"));
    wait_for("the endpoint", || endpoint(&bed[0], a.address()).is_some());
    let row = endpoint(&bed[0], a.address()).unwrap();
    assert_eq!((&row["pinned"], &row["mac"]), (&true.into(), &mac(a).as_str().into()), "{row}");
    assert_reaches(b, a.address());
    assert!(endpoint(&bed[0], a.address()).unwrap()["pinned"].as_bool().unwrap(), "learning moved it");

    bed[0].overlay(&["detach", &address]).unwrap();
    wait_for("no endpoint", || endpoint(&bed[0], a.address()).is_none());
    let refused = bed[0].overlay(&["detach", "10.244.0.77"]).unwrap_err().to_string();
    assert!(refused.contains("10.244.0.77 is not an endpoint here"), "{refused}");
    let refused = bed[0].overlay(&["attach", &address, "--port", "eth7"]).unwrap_err().to_string();
    assert!(refused.contains("no interface eth7"), "{refused}");
    assert_reaches(b, a.address());
}

#[test]
fn a_second_bridge_takes_part() {
    let bed = Bed::new(Kind::Folder, 2);
    let subnet = bed[0].subnet.replace(".0/24", ".192/26");
    let host = &bed[0].host;
    host.add_bridge_named("br1", &subnet, 1450).unwrap();
    let container = host.add_container_on("br1", "c", &subnet, 8, 1450).unwrap();
    let other = &bed[1].containers[0];
    assert_reaches(&container, other.address());
    wait_for("the endpoint", || endpoint(&bed[0], container.address()).is_some());
    let before = bed[0].counters().unwrap().carried();
    assert_reaches(&container, other.address());
    assert_reaches(other, container.address());
    let after = bed[0].counters().unwrap().carried();
    assert!(after.fast_in > before.fast_in && after.fast_out > before.fast_out, "{before:?} {after:?}");
}

#[test]
fn an_address_cannot_be_stolen_by_claiming_it() {
    let bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (victim, other) = bed.pair();
    let thief = &bed[0].containers[1];
    let held = endpoint(&bed[0], victim.address()).unwrap();

    let ledger = Ledger::open(&bed.members).unwrap();
    let stream = Numbered::start(other, victim, 2000).unwrap();
    thief.exec(&format!("ip address add {}/24 dev eth0", victim.address())).unwrap();
    // With arp_notify the kernel announces its addresses by gratuitous ARP when its MAC address is set, even to the
    // same value. That moves the host's neighbour entry.
    thief.namespace().sysctl("ipv4/conf/eth0/arp_notify", "1").unwrap();
    thief.exec(&format!("ip link set eth0 address {}", mac(thief))).unwrap();
    wait_for("the host to be taken in", || {
        let entry = bed[0].host.exec(&format!("ip neigh show {} dev br0", victim.address())).unwrap();
        entry.contains(&mac(thief))
    });
    let refused = wait_until("the conflict", Duration::from_secs(10), || {
        let status = bed[0].overlay(&["status"])?;
        Ok(status.lines().any(|line| line.starts_with("address conflict") && line.contains("is held by va")))
    });
    assert!(json(&bed[0], &["status"])["agent"]["learned"]["conflicts_total"].as_u64() > Some(0));
    thread::sleep(Duration::from_millis(500));
    let report = stream.finish().unwrap();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    let (accounts, traffic) = (ledger.close(&bed.members).unwrap(), Traffic::from(&[report][..]));
    assert_eq!((accounts.gaps(traffic), accounts.dropped()), ([0; 3], 0), "{accounts}");
    assert_eq!(endpoint(&bed[0], victim.address()).unwrap(), held);
    refused.unwrap();

    // The thief cannot send with the victim's address either.
    let before = bed[0].counters().unwrap().packets(Hook::Encap, Reason::SourceAtWrongPort);
    let line = format!("ping -c 3 -i 0.1 -W 1 -I {} {}", victim.address(), other.address());
    let words: Vec<_> = line.split_whitespace().collect();
    let _ = thief.namespace().command(&words).unwrap().output().unwrap();
    let after = bed[0].counters().unwrap().packets(Hook::Encap, Reason::SourceAtWrongPort);
    assert!(after >= before + 3, "{before} {after}");
    thief.exec(&format!("ip address delete {}/24 dev eth0", victim.address())).unwrap();
    assert!(other.ping(victim.address(), pings(3)).unwrap().complete());
}

/// Announces an address as a container's own, by one gratuitous ARP packet and nothing else.
fn announce(container: &Container, address: Ipv4Addr) {
    let sent = container.namespace().enter(move || {
        let (flags, protocol) = (SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, protocol)?;
        let eth0 = getifaddrs()?.find_map(|entry| {
            let address = entry.address.filter(|_| entry.interface_name == "eth0")?;
            address.as_link_addr().copied()
        });
        let eth0 = eth0.unwrap();
        let (mac, address) = (eth0.addr().unwrap(), address.octets());
        let head = [&[0xff; 6], &mac[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        let frame = [&head, &mac[..], &address, &[0; 6], &address].concat();
        sendto(socket.as_raw_fd(), &frame, &eth0, MsgFlags::empty())?;
        Ok(())
    });
    sent.unwrap();
}

/// A virtual IP has a new holder, which announces it, before the former one gives it up.
#[test]
fn a_virtual_ip_that_moves_is_followed_within_a_second() {
    let bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (host, other) = (&bed[0], &bed[1].containers[0]);
    let address: Ipv4Addr = host.subnet.replace(".0/24", ".100").parse().unwrap();
    let takes = |container: &Container| {
        container.exec(&format!("ip address add {address}/32 dev eth0")).unwrap();
        announce(container, address);
    };
    let is_at = |container: &Container| {
        wait_for("the endpoint", || {
            endpoint(host, address).is_some_and(|row| row["port"] == container.port())
        });
    };
    let (mut old, mut new) = (&host.containers[0], &host.containers[1]);
    takes(old);
    assert_reaches(other, address);
    is_at(old);
    // The kernel forgets neighbours with which it does not speak itself. Then only the announcement tells of the move.
    for is_forgotten in [false, false, true] {
        if is_forgotten {
            host.host.exec("ip neigh flush dev br0").unwrap();
        }
        let (ping, both) = thread::scope(|scope| {
            let arrived = || host.counters().unwrap().carried().fast_in;
            let before = arrived();
            let numbered = PingOptions { count: 3000, interval: 0.001, ..PingOptions::default() };
            let ping = scope.spawn(move || other.ping(address, numbered).unwrap());
            wait_for("packets", || arrived() > before + 50);
            let since = Instant::now();
            takes(new);
            old.exec(&format!("ip address delete {address}/32 dev eth0")).unwrap();
            let both = since.elapsed();
            (ping.join().unwrap(), both)
        });
        // At most one is sent in a millisecond. The agent looks again after half of the time in which both had the address at the
        // latest. The rest is for questions that a busy CPU delays: the pauses after which it looks grow with each.
        let lost = u128::from(ping.sent - ping.received);
        println!("{lost} of {} were lost; both had the address for {both:?}", ping.sent);
        assert!(lost < both.as_millis() / 2 + 500, "both had it for {both:?}\n{}", ping.output);
        is_at(new);
        (old, new) = (new, old);
    }
    assert_reaches(other, address);
    let learned = json(host, &["status"])["agent"]["learned"]["moves_total"].clone();
    assert_eq!(learned, 3);
}
