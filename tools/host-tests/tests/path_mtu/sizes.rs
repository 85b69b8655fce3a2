//! Packets of every size around the MTU of every path: which are answered, which are fragmented, and which arrive.
use overlay_common::{Hook, Reason};
use overlay_lab::{Backend, Container};

use super::bed::*;

/// Sizes around what fits the path, the overlay, and the container's own device.
fn sizes(bed: &Bed, index: usize) -> [u32; 9] {
    let (path, overlay) = (bed.inner(index), UNDERLAY - bed.overhead);
    [path - 1, path, path + 1, path + 2, overlay - 1, overlay, overlay + 1, overlay + 2, UNDERLAY]
}

/// Sends packets from the first host's container to that of host `index`.
fn fates(bed: &Bed, index: usize, df: bool) -> Vec<(u32, Fate)> {
    let to = bed.wide[index].address();
    sizes(bed, index).iter().map(|size| (*size, probe(&bed.wide[0], to, *size, df))).collect()
}

/// What should happen: without DF everything arrives; with DF whatever is larger than `fits` is answered.
fn expected(bed: &Bed, index: usize, df: bool, fits: u32) -> Vec<(u32, Fate)> {
    let fate = |size: u32| if df && size > fits { Fate::Told(fits) } else { Fate::Arrived };
    sizes(bed, index).iter().map(|size| (*size, fate(*size))).collect()
}

fn told(fates: &[(u32, Fate)]) -> u64 {
    fates.iter().filter(|(_, fate)| matches!(fate, Fate::Told(_))).count() as u64
}

#[test]
fn every_size_arrives_or_is_told_the_mtu_of_its_path_and_none_is_lost_that_flannel_carries() {
    let (ours, flannel) = (
        Bed::new(Carrier::Ours(&[]), Backend::Vxlan, false),
        Bed::new(Carrier::Flannel, Backend::Vxlan, false),
    );
    let overlay = UNDERLAY - ours.overhead;
    let [before, mut answered, mut fragmented] = [ours.dropped(), 0, 0];
    let stack_fragments = ours.counted(Hook::Encap, Reason::NeedsFragmentation);
    for route in [Route::Silent, Route::Unlocked, Route::Locked] {
        ours.set_routes(route);
        flannel.set_routes(route);
        for index in [1, 2] {
            // The fast path obeys a route's MTU only if it is locked.
            let fits = if route == Route::Locked { ours.inner(index) } else { overlay };
            for df in [true, false] {
                let found = fates(&ours, index, df);
                assert_eq!(found, expected(&ours, index, df, fits), "{route:?}, host {index}, df {df}");
                // The kernel's device fragments its own outer packets, or the routers do; so it answers by its own MTU
                // only.
                let theirs = fates(&flannel, index, df);
                assert_eq!(
                    theirs,
                    expected(&flannel, index, df, overlay),
                    "{route:?}, host {index}, df {df}"
                );
                answered += told(&found);
                let large = sizes(&ours, index).iter().filter(|size| !df && **size > fits).count();
                fragmented += large as u64;
            }
        }
    }
    // Each answer is counted under its reason, and nothing else was dropped anywhere.
    assert_eq!(ours.counted(Hook::Encap, Reason::TooBig), answered);
    assert_eq!(ours.dropped() - before, answered);
    assert_eq!(ours.counted(Hook::Encap, Reason::NeedsFragmentation) - stack_fragments, fragmented);
    // Routers have fragmented the packets that the host did not know to be too large.
    for index in [1, 2] {
        assert!(ip_counter(path(&ours.lab, index).near(), "FragCreates") > 0);
    }
}

/// There is no comparison with flannel here: its relay truncates packets that are too large, and its host-gw reaches
/// nobody behind a router.
#[test]
fn every_size_arrives_or_is_told_in_the_other_modes_too() {
    for backend in [Backend::Udp, Backend::HostGw] {
        println!("{}", backend.name());
        let bed = Bed::new(Carrier::Ours(&[]), backend, false);
        let before = bed.dropped();
        let mut answered = 0;
        for route in [Route::Silent, Route::Locked] {
            bed.set_routes(route);
            for index in [1, 2] {
                let fits = if route == Route::Locked { bed.inner(index) } else { UNDERLAY - bed.overhead };
                for df in [true, false] {
                    let found = fates(&bed, index, df);
                    assert_eq!(found, expected(&bed, index, df, fits), "{route:?}, host {index}, df {df}");
                    answered += told(&found);
                }
            }
        }
        assert_eq!((bed.counted(Hook::Encap, Reason::TooBig), bed.dropped() - before), (answered, answered));
    }
}

#[test]
fn icmp_that_is_lost_makes_no_black_hole_unless_outer_packets_have_df() {
    for (carrier, vanishes) in
        [(Carrier::Ours(&[]), false), (Carrier::Flannel, false), (Carrier::Ours(&["--outer-df"]), true)]
    {
        let bed = Bed::new(carrier, Backend::Vxlan, false);
        path(&bed.lab, 1).near().exec("iptables -A OUTPUT -p icmp -j DROP").unwrap();
        bed.set_routes(Route::Silent);
        let (from, to, fits) = (&bed.wide[0], bed.wide[1].address(), bed.inner(1));
        for df in [true, false] {
            assert_eq!(probe(from, to, fits, df), Fate::Arrived, "{carrier:?}, df {df}");
            // This is done twice, to show that nothing is learned from the first.
            for _ in 0..2 {
                let fate = if vanishes { Fate::Lost } else { Fate::Arrived };
                assert_eq!(probe(from, to, fits + 1, df), fate, "{carrier:?}, df {df}");
            }
        }
    }
}

#[test]
fn under_outer_df_the_host_learns_what_routers_say_and_tells_its_containers() {
    for (backend, port) in [(Backend::Vxlan, 8472), (Backend::Udp, 8285), (Backend::HostGw, 8285)] {
        println!("{}", backend.name());
        learn(backend, port);
    }
}

fn learn(backend: Backend, port: u16) {
    let bed = Bed::new(Carrier::Ours(&["--outer-df"]), backend, false);
    let from = &bed.wide[0];
    // Later fragments have no port.
    let filter = format!("src 10.99.0.1 and (udp port {port} or ip[6:2] & 0x1fff != 0)");
    let capture = bed.sender().capture("eth0", &filter).unwrap();
    for index in [1, 2] {
        let (to, fits) = (bed.wide[index].address(), bed.inner(index));
        for df in [true, false] {
            assert_eq!(probe(from, to, fits, df), Fate::Arrived);
        }
        // The router's answer goes to the host, whose kernel takes it as one about packets of the tunnel's socket.
        assert_eq!(probe(from, to, fits + 1, true), Fate::Lost);
        assert_eq!(probe(from, to, fits + 1, true), Fate::Told(fits));
        assert_eq!(fates(&bed, index, true), expected(&bed, index, true, fits));
        // Without DF the stack carries the packet in fragments, which for that reason have no DF. The first answer of
        // the same size teaches the other host.
        assert_eq!(probe(from, to, fits + 1, false), Fate::Lost);
        assert_eq!(fates(&bed, index, false), expected(&bed, index, false, fits));
    }
    let outer = |line: &str| line.split("flags [").nth(1).is_some_and(|flags| flags.starts_with("DF]"));
    let packets = capture.lines().unwrap();
    let whole: Vec<_> = packets.iter().filter(|line| !line.contains("flags [+]")).collect();
    let with_df = whole.iter().filter(|line| outer(line)).count();
    assert!(with_df >= 6 && packets.len() > whole.len(), "{packets:#?}");
}

#[test]
fn connections_of_the_stack_lose_nothing_under_outer_df_either() {
    // The stack carries everything here. The host itself answers only packets that overlay0 does not accept.
    let bed = Bed::new(Carrier::Ours(&["--outer-df", "--fast-path", "off"]), Backend::Vxlan, false);
    let overlay = UNDERLAY - bed.overhead;
    for route in [Route::Silent, Route::Unlocked, Route::Locked] {
        bed.set_routes(route);
        for index in [1, 2] {
            let (to, fits) = (bed.wide[index].address(), bed.inner(index));
            // These many packets are lost until both hosts have learned the path MTU, by a router's answer or from
            // their own route.
            let losses = match route {
                Route::Silent => 2,
                Route::Unlocked => 1,
                Route::Locked => 0,
            };
            for _ in 0..losses {
                assert_eq!(probe(&bed.wide[0], to, fits + 1, true), Fate::Lost, "{route:?}");
            }
            for df in [true, false] {
                assert_eq!(fates(&bed, index, df), expected(&bed, index, df, overlay), "{route:?}, df {df}");
            }
        }
    }
}

#[test]
fn a_receiver_whose_bridge_is_smaller_says_so_itself() {
    const SMALL: u32 = 1300;
    for carrier in [Carrier::Ours(&[]), Carrier::Ours(&["--outer-df"]), Carrier::Flannel] {
        let bed = Bed::new(carrier, Backend::Vxlan, false);
        path(&bed.lab, 1).set_mtu(UNDERLAY).unwrap();
        let shrink = |container: &Container| {
            let host = bed.lab.host(1).namespace();
            host.ip(&format!("link set {} mtu {SMALL}", container.port())).unwrap();
            host.ip(&format!("link set br0 mtu {SMALL}")).unwrap();
            container.namespace().ip(&format!("link set eth0 mtu {SMALL}")).unwrap();
        };
        shrink(&bed.wide[1]);
        let (from, to) = (&bed.wide[0], bed.wide[1].address());
        for (size, df, fate) in [
            (SMALL, true, Fate::Arrived),
            (SMALL + 1, true, Fate::Told(SMALL)),
            (UNDERLAY - bed.overhead, true, Fate::Told(SMALL)),
            (SMALL + 1, false, Fate::Arrived),
            (UNDERLAY, false, Fate::Arrived),
        ] {
            assert_eq!(probe(from, to, size, df), fate, "{carrier:?}: {size}, df {df}");
        }
    }
}
