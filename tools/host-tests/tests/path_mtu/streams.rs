//! TCP over paths that are narrower than its ends know. A stream must begin at once, and must go on when the path
//! shrinks.
//!
//! "At once" is measured by the sender's retransmission time-outs rather than by a clock. A packet that vanishes costs
//! one; an answer, or a loss that TCP notices by itself (RFC 8985), costs none. The smallest time-out is two seconds
//! here, so that a busy machine causes none.
use overlay_lab::{Backend, Container, Steady, transfer};

use super::bed::*;

const BYTES: u64 = 2 << 20;

/// How many retransmission time-outs this container has had.
fn timeouts(container: &Container) -> u64 {
    tcp_counter(container.namespace(), "TCPTimeouts")
}

/// Makes both ends forget what they know of any path, and keeps a busy machine from causing time-outs.
fn forget(ends: [&Container; 2]) {
    for end in ends {
        let route = end.exec("ip route show default").unwrap();
        let route = route.trim().split(" rto_min").next().unwrap().to_owned();
        end.namespace().ip(&format!("route replace {route} rto_min 2s")).unwrap();
        end.exec("ip route flush cache").unwrap();
        end.exec("ip tcp_metrics flush all").unwrap();
    }
}

/// Transfers data and asserts that there was no time-out.
fn begins_at_once(what: &str, from: &Container, to: &Container) {
    forget([from, to]);
    let before = timeouts(from);
    let done = transfer(from, to, BYTES).unwrap_or_else(|error| panic!("{what}: {error:#}"));
    assert_eq!(timeouts(from) - before, 0, "{what}: {done:?}");
}

#[test]
fn a_stream_over_a_smaller_path_begins_at_once() {
    for wire_like in [false, true] {
        for options in [&[][..], &["--outer-df"]] {
            let bed = Bed::new(Carrier::Ours(options), Backend::Vxlan, wire_like);
            for route in [Route::Silent, Route::Locked] {
                for (tso, timestamps) in [("on", "1"), ("on", "0"), ("off", "1"), ("off", "0")] {
                    for container in bed.containers.iter().chain(&bed.wide) {
                        container.exec(&format!("ethtool -K eth0 tso {tso} gso {tso}")).unwrap();
                        container.namespace().sysctl("ipv4/tcp_timestamps", timestamps).unwrap();
                    }
                    for (from, to) in [
                        (&bed.containers[0], &bed.containers[1]),
                        (&bed.containers[1], &bed.containers[0]),
                        (&bed.wide[0], &bed.wide[2]),
                    ] {
                        bed.set_routes(route);
                        let what = format!(
                            "wire-like {wire_like}, {options:?}, {route:?}, tso {tso}, timestamps {timestamps}, {} -> {}",
                            from.address(),
                            to.address()
                        );
                        let before = bed.carried();
                        begins_at_once(&what, from, to);
                        let after = bed.carried();
                        // A sender that was told the MTU keeps to the fast path.
                        if route == Route::Locked && from.address() != bed.containers[1].address() {
                            let segments = BYTES / u64::from(bed.inner(1));
                            assert!(after.fast_out - before.fast_out >= segments, "{what}: {after:?}");
                            assert_eq!(after.stack_out, before.stack_out, "{what}: {before:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_stream_without_df_crosses_a_smaller_path_in_fragments() {
    for options in [&[][..], &["--outer-df"]] {
        let bed = Bed::new(Carrier::Ours(options), Backend::Vxlan, false);
        let (from, to) = (&bed.containers[0], &bed.containers[1]);
        from.namespace().sysctl("ipv4/ip_no_pmtu_disc", "1").unwrap();
        for route in [Route::Silent, Route::Locked] {
            bed.set_routes(route);
            let before = ip_counter(bed.sender().namespace(), "FragCreates");
            begins_at_once(&format!("{options:?}, {route:?}"), from, to);
            let fragments = ip_counter(bed.sender().namespace(), "FragCreates") - before;
            let known = route == Route::Locked || !options.is_empty();
            assert_eq!(fragments > BYTES / u64::from(UNDERLAY), known, "{options:?}, {route:?}: {fragments}");
        }
    }
}

/// The path MTU of a container's only connection, as its TCP knows it.
fn known_to(container: &Container) -> Option<u32> {
    let text = container.exec("ss -Htin state established").unwrap();
    text.split("pmtu:").nth(1)?.split_whitespace().next()?.parse().ok()
}

#[test]
fn a_live_stream_goes_on_when_its_path_shrinks_and_grows() {
    for carrier in [Carrier::Ours(&[]), Carrier::Ours(&["--outer-df"]), Carrier::Flannel] {
        let bed = Bed::new(carrier, Backend::Vxlan, false);
        let (path, overhead) = (path(&bed.lab, 1), bed.overhead);
        let (from, to) = (&bed.containers[0], &bed.containers[1]);
        path.set_mtu(UNDERLAY).unwrap();
        forget([from, to]);
        // The kernel forgets a learned path MTU after ten minutes; here, after three seconds.
        for namespace in [bed.sender().namespace(), from.namespace()] {
            namespace.sysctl("ipv4/route/mtu_expires", "3").unwrap();
        }
        let before = timeouts(from);
        let stream = Steady::start(from, to).unwrap();
        let fragments = || ip_counter(path.near(), "FragCreates");
        let knows =
            |mtu: u32| wait_for(&format!("a path MTU of {mtu}"), || known_to(from) == Some(mtu - overhead));
        knows(UNDERLAY);
        assert_eq!(fragments(), 0);
        for mtu in PATHS {
            path.set_mtu(mtu).unwrap();
            if matches!(carrier, Carrier::Ours(["--outer-df"])) {
                knows(mtu);
            } else {
                let before = fragments();
                wait_for("fragments", || fragments() > before + 100);
                assert_eq!(known_to(from), Some(UNDERLAY - overhead), "{carrier:?}");
            }
        }
        path.set_mtu(UNDERLAY).unwrap();
        knows(UNDERLAY);
        let whole = stream.finish().unwrap();
        assert!(whole.bytes > 0);
        assert_eq!(timeouts(from) - before, 0, "{carrier:?}: {whole:?}");
        if matches!(carrier, Carrier::Ours(["--outer-df"])) {
            assert_eq!(fragments(), 0, "a router fragmented what has DF");
        }
    }
}
