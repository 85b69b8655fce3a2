//! IPsec policies of a host hold for packets between containers, however much the fast path was asked to carry.
use overlay_common::{Hook, Reason};
use overlay_lab::{Container, Member, Options, PingOptions};

use super::bed::{Bed, Kind, wait_for};

/// How many of so many pings are answered.
fn answered(from: &Container, to: &Container, count: u32) -> u32 {
    let options = PingOptions { count, interval: 0.05, timeout: 0.5, ..PingOptions::default() };
    from.ping(to.address(), options).unwrap().received
}

fn fast(member: &Member) -> u64 {
    member.counters().unwrap().packets(Hook::Encap, Reason::Carried)
}

/// Waits until the pings of two hosts' containers take the fast path, all or, where the stack is asked first, those behind the first.
fn wait_for_the_fast_path(member: &Member, from: &Container, to: &Container) {
    wait_for("pings on the fast path", || {
        let before = fast(member);
        answered(from, to, 5) == 5 && fast(member) >= before + 3
    });
}

#[test]
fn ipsec_policies_are_obeyed_in_every_mode_as_long_as_they_are_there() {
    for mode in ["auto", "on", "established"] {
        let bed = Bed::with(Kind::Folder, Options { hosts: 2, ..Options::default() }, &["--fast-path", mode]);
        let [here, there] = [&bed.members[0], &bed.members[1]];
        let (from, to) = (&here.containers[0], &there.containers[0]);
        wait_for_the_fast_path(here, from, to);

        // A policy about something else changes nothing.
        here.host
            .exec("ip xfrm policy add src 192.168.7.0/24 dst 192.168.8.0/24 dir out action block")
            .unwrap();
        wait_for_the_fast_path(here, from, to);

        let (own, peer) = (here.host.address(), there.host.address());
        let selector = format!("src {own}/32 dst {peer}/32 dir out");
        here.host.exec(&format!("ip xfrm policy add {selector} action block")).unwrap();
        wait_for("pings that are refused", || answered(from, to, 1) == 0);
        let clear = format!("udp dst port 8472 and src host {own}");
        let capture = here.host.capture("eth0", &clear).unwrap();
        assert_eq!(answered(from, to, 5), 0, "{mode}");
        assert_eq!(capture.lines().unwrap(), [""; 0], "{mode}: nothing leaves in the clear");
        let status = here.overlay(&["status"]).unwrap();
        let named = format!("the fast path is off: IPsec policy {selector} action block");
        assert!(status.contains(&named), "{mode}: {status}");

        here.host.exec(&format!("ip xfrm policy delete {selector}")).unwrap();
        wait_for("pings that are answered again", || answered(from, to, 1) == 1);
        wait_for_the_fast_path(here, from, to);

        // The host's default, and a policy about what the containers themselves send.
        here.host.exec("ip xfrm policy setdefault out block").unwrap();
        wait_for("pings that are refused by default", || answered(from, to, 1) == 0);
        here.host.exec("ip xfrm policy setdefault out accept").unwrap();
        wait_for_the_fast_path(here, from, to);
        let inner = format!("src {}/32 dst 10.244.0.0/16 dir fwd", from.address());
        here.host.exec(&format!("ip xfrm policy add {inner} action block")).unwrap();
        wait_for("pings that are refused when they are forwarded", || answered(from, to, 1) == 0);
        assert_eq!(
            answered(&here.containers[1], to, 3),
            3,
            "{mode}: the policy is about the other container"
        );
    }
}
