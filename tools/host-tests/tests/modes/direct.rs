//! Direct routing to peers on the same link (host-gw, `DirectRouting`), encapsulation to the others, and the change
//! from one to the other while packets flow.
use nix::sys::signal::Signal;
use overlay_common::{Hook::Decap, Reason};
use overlay_lab::{Backend, Container, DIRECT_VXLAN, Lab, Member, Numbered, Options, transfer};

use crate::bed::{Bed, Kind, assert_reaches, ping_df};

/// What a network with direct routing falls back to: the port of its encapsulated packets, and the MTU that is left.
struct Fallback {
    config: &'static str,
    port: u16,
    mtu: u32,
    fallback_mtu: u32,
}

fn all() -> [Fallback; 2] {
    [
        Fallback { config: Backend::HostGw.config(), port: 8285, mtu: 1500, fallback_mtu: 1472 },
        Fallback { config: DIRECT_VXLAN, port: 8472, mtu: 1450, fallback_mtu: 1450 },
    ]
}

/// The reverse path filters are strict: a packet must arrive by the interface by which it would be answered.
fn bed(config: &str) -> Bed {
    let options = Options { rp_filter: 1, ..Options::default() };
    Bed::with_config(Kind::Folder, options, config, &[])
}

/// How many packets leave a host while `work` runs: encapsulated, and unencapsulated.
fn seen(member: &Member, port: u16, work: impl FnOnce()) -> (usize, usize) {
    let (host, subnet) = (&member.host, &member.subnet);
    let filter = format!("src {} and udp port {port} or src net {subnet}", host.address());
    let capture = host.capture("eth0", &filter).unwrap();
    work();
    let lines = capture.lines().unwrap();
    let encapsulated = |line: &&String| line.contains(&format!(".{port}: "));
    let count = lines.iter().filter(encapsulated).count();
    (count, lines.len() - count)
}

/// Makes the path from the first host to the second lead over the switch, as if that were a router, or undoes that.
fn detour(bed: &Bed, is_there: bool) {
    let verb = if is_there { "add" } else { "delete" };
    let peer = bed[1].host.address();
    bed[0].host.namespace().ip(&format!("route {verb} {peer}/32 via {}", Lab::SWITCH)).unwrap();
}

/// Makes the switch a router that forwards and that does not tell hosts of shorter paths.
fn make_router(bed: &Bed) {
    for (key, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/br0/send_redirects", "0"),
    ] {
        bed.lab.switch().sysctl(key, value).unwrap();
    }
}

fn ten(from: &Container, to: &Container) {
    for _ in 0..5 {
        assert_reaches(from, to.address());
    }
}

#[test]
fn peers_on_the_link_are_reached_unencapsulated_and_others_encapsulated() {
    for Fallback { config, port, mtu, fallback_mtu } in all() {
        println!("{config}");
        let bed = bed(config);
        make_router(&bed);
        bed.learn_all();
        let (a, b) = bed.pair();
        assert_eq!(bed[0].mtu, mtu);
        let (encapsulated, unencapsulated) = seen(&bed[0], port, || ten(a, b));
        assert!(encapsulated == 0 && unencapsulated >= 10, "{encapsulated} {unencapsulated}");
        assert!(ping_df(a, b.address(), mtu - 28).complete());

        detour(&bed, true);
        let (encapsulated, unencapsulated) = seen(&bed[0], port, || ten(a, b));
        assert!(unencapsulated == 0 && encapsulated >= 10, "{encapsulated} {unencapsulated}");
        // The answers come unencapsulated as before.
        let (encapsulated, unencapsulated) = seen(&bed[1], port, || ten(a, b));
        assert!(encapsulated == 0 && unencapsulated >= 10, "{encapsulated} {unencapsulated}");
        if fallback_mtu < mtu {
            let refused = ping_df(a, b.address(), mtu - 28);
            let told = format!("mtu = {fallback_mtu}");
            assert!(refused.received == 0 && refused.output.contains(&told), "{}", refused.output);
        }
        assert!(ping_df(a, b.address(), fallback_mtu - 28).complete());
        transfer(a, b, 8 << 20).unwrap();

        // Routes change under packets. None is lost, since the programs remember no path.
        let stream = Numbered::start(a, b, 5000).unwrap();
        for is_there in [false, true, false] {
            std::thread::sleep(std::time::Duration::from_millis(200));
            detour(&bed, is_there);
        }
        let report = stream.finish().unwrap();
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
        for member in &bed.members {
            let counters = member.counters().unwrap();
            // The answer about the MTU is the only packet that was not delivered.
            assert!(counters.carried().dropped <= 1, "{counters:?}");
        }
    }
}

/// No program and no agent knows the container: what it sends is the stack's, as long as the agent sleeps.
#[test]
fn what_takes_the_stack_may_be_as_large_as_the_path_allows_whatever_the_path() {
    for Fallback { config, mtu, fallback_mtu, .. } in all() {
        println!("{config}");
        let mut bed = bed(config);
        make_router(&bed);
        bed.learn_all();
        bed[0].agent().unwrap().signal(Signal::SIGSTOP).unwrap();
        let late = bed[0].host.add_container("late", &bed[0].subnet, 77, mtu).unwrap();
        let to = bed[1].containers[0].address();
        let full = ping_df(&late, to, mtu - 28);
        assert!(full.complete(), "{}", full.output);
        detour(&bed, true);
        if fallback_mtu < mtu {
            let refused = ping_df(&late, to, mtu - 28);
            let told = format!("mtu = {fallback_mtu}");
            assert!(refused.received == 0 && refused.output.contains(&told), "{}", refused.output);
            // So is the host itself, whose packets always take the stack.
            bed[0].host.exec(&format!("ping -n -c 1 -W 1 -M do -s {} {to}", mtu - 28)).unwrap_err();
            let told = bed[0].host.exec(&format!("ip route get {to}")).unwrap();
            assert!(told.contains(&format!("mtu {fallback_mtu}")), "{told}");
        }
        assert!(ping_df(&late, to, fallback_mtu - 28).complete());
        transfer(&late, &bed[1].containers[0], 1 << 20).unwrap();
        bed[0].agent().unwrap().signal(Signal::SIGCONT).unwrap();
    }
}

#[test]
fn what_takes_the_stack_is_unencapsulated_too_and_passes_strict_filters() {
    for Fallback { config, port, .. } in all() {
        println!("{config}");
        let bed = bed(config);
        bed.learn_all();
        let b = &bed[1].containers[0];
        let (subnet, mtu) = (bed[0].subnet.clone(), bed[0].mtu);
        // Hosts have no endpoints, so their packets take the stack in both directions.
        let (encapsulated, unencapsulated) = seen(&bed[0], port, || {
            bed[0].host.exec(&format!("ping -n -c 5 -i 0.05 -W 5 {}", b.address())).unwrap();
        });
        assert!(encapsulated == 0 && unencapsulated >= 5, "{encapsulated} {unencapsulated}");
        let late = bed[0].host.add_container("late", &subnet, 77, mtu).unwrap();
        assert_reaches(&late, b.address());
        assert_reaches(b, late.address());
        transfer(b, &late, 4 << 20).unwrap();
    }
}

/// An unencapsulated packet has no outer source, so only the inner address tells who sent it.
#[test]
fn unencapsulated_packets_of_nobody_are_dropped_and_the_underlays_own_pass() {
    for Fallback { config, .. } in all() {
        println!("{config}");
        let bed = bed(config);
        bed.learn_all();
        let stranger = bed.lab.switch();
        let to = bed[0].containers[0].address();
        stranger.ip(&format!("route add {} via {}", bed[0].subnet, bed[0].host.address())).unwrap();
        let ping = |source: &str| stranger.exec(&format!("ping -n -c 1 -W 0.3 -I {source} {to}")).is_ok();
        // A host beside the overlay has a route to it. Its packets are not ours, so they are left to the stack and its
        // firewall.
        assert!(ping(&Lab::SWITCH.to_string()));
        let neighbour = bed[0].containers[1].address();
        for (source, reason) in
            [("10.244.0.9".to_owned(), Reason::UnknownPeer), (neighbour.to_string(), Reason::PeerMismatch)]
        {
            let count = || bed[0].counters().unwrap().packets(Decap, reason);
            let before = count();
            stranger.ip(&format!("address add {source}/32 dev br0")).unwrap();
            assert!(!ping(&source), "{source}");
            assert_eq!(count(), before + 1, "{source}");
            stranger.ip(&format!("address delete {source}/32 dev br0")).unwrap();
        }
    }
}
