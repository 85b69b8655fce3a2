//! A host with the kernel's own VXLAN device, set up as flannel does, as the peer of a host of ours; and two of our
//! hosts on the same kinds of underlay.
use overlay_common::{Hook, Reason};
use overlay_lab::{
    Backend, Carried, Container, ForeignVxlan, Host, Lab, Member, Options, Store, configure, etcd::Etcd,
    populate_some, transfer,
};

use super::bed::{
    Bed, Kind, assert_reaches, endpoint, flannel_lease, frames, lease_key, overlay, peers, ping_df,
    segments_are_right, vtep_mac, wait_for,
};

pub const BYTES: u64 = 100 << 20;
/// Bytes of TCP payload in one segment: 1450 minus the headers of IPv4 and TCP and TCP's timestamps.
pub const SEGMENT: u64 = 1450 - 20 - 20 - 12;
pub const FOREIGN: &str = "10.244.77.0/24";

/// A host with our agent and one set up as flannel does, with a container on each.
pub struct Mixed {
    pub ours: Member,
    pub container: Container,
    /// Containers with the underlay's MTU. Their hosts must tell them what is too large for the overlay.
    wide: [Container; 2],
    pub foreign: Container,
    store: Store,
    lab: Lab,
}

impl Mixed {
    /// The host that is set up as flannel does.
    pub fn foreign_host(&self) -> &Host {
        self.lab.host(1)
    }

    /// The VtepMAC in our host's lease.
    pub fn vtep_mac(&self) -> String {
        vtep_mac(&self.ours)
    }

    pub fn etcd(&mut self) -> &mut Etcd {
        self.store.as_etcd().unwrap()
    }
}

pub fn mixed(wire_like: bool) -> Mixed {
    mixed_with(wire_like, &[])
}

/// Makes the hosts, with these options for our agent.
pub fn mixed_with(wire_like: bool, agent: &[&str]) -> Mixed {
    let lab = Lab::new(Options { wire_like, ..Options::default() }).unwrap();
    let mut store = Store::etcd(&lab).unwrap();
    configure(&lab, overlay(), &store, Backend::Vxlan.config()).unwrap();
    let ours = populate_some(&lab.hosts()[..1], overlay(), &store, agent).unwrap().remove(0);

    // What flannel does on the other host is done by hand: it makes the device, the lease and the peer. Then come the
    // bridge and the containers.
    let host = lab.host(1);
    let device = ForeignVxlan::new(host, FOREIGN, 1, 8472).unwrap();
    let etcd = store.as_etcd().unwrap();
    let granted = etcd.ctl(&["lease", "grant", "86400"]).unwrap();
    let id = granted.split_whitespace().nth(1).unwrap();
    etcd.ctl(&["put", "--lease", id, &lease_key(FOREIGN), &flannel_lease(host.address(), device.mac())])
        .unwrap();
    let lease = etcd.ctl(&["get", "--print-value-only", &lease_key(&ours.subnet)]).unwrap();
    // Our lease must be exactly what flannel itself would have written, so that flannel can read it.
    assert_eq!(lease.trim_end(), flannel_lease(ours.host.address(), &vtep_mac(&ours)));
    device.put_peer(&ours.subnet, &vtep_mac(&ours), ours.host.address()).unwrap();
    host.add_bridge(FOREIGN, 1450).unwrap();
    let foreign = host.add_container("a", FOREIGN, 2, 1450).unwrap();
    let wide = [
        ours.host.add_container("wide", &ours.subnet, 9, 1500).unwrap(),
        host.add_container("wide", FOREIGN, 9, 1500).unwrap(),
    ];
    wait_for("the foreign host's lease", || peers(&ours).len() == 1);
    Mixed { container: ours.containers[0].clone(), ours, wide, foreign, store, lab }
}

#[test]
fn flannels_device_and_ours_talk_up_to_the_exact_mtu() {
    let bed = mixed(false);
    let Mixed { container, foreign, wide, ours, .. } = &bed;
    for (from, to) in [(container, foreign), (foreign, container)] {
        assert_reaches(from, to.address());
        assert!(ping_df(from, to.address(), 1422).complete());
        // The container's own interface refuses the packet already.
        let refused = ping_df(from, to.address(), 1423);
        assert!(refused.received == 0 && refused.output.contains("mtu=1450"), "{}", refused.output);
    }
    // Containers that do not know the overlay's MTU are told by their host: by our programs on one, by the kernel on
    // the other.
    for (from, to) in [(&wide[0], foreign), (&wide[1], container)] {
        assert_reaches(from, to.address());
        wait_for("the endpoints", || {
            [&wide[0], container].iter().all(|own| endpoint(ours, own.address()).is_some())
        });
        assert!(ping_df(from, to.address(), 1422).complete());
        let refused = ping_df(from, to.address(), 1423);
        assert_eq!((refused.received, refused.frag_needed), (0, Some(1450)), "{}", refused.output);
    }
    let counters = ours.counters().unwrap();
    let carried = counters.carried();
    assert!(carried.fast_out > 0 && carried.fast_in > 0, "{carried:?}");
    // The fast path has told it, not the stack behind it.
    assert_eq!(counters.packets(Hook::Encap, Reason::TooBig), 1, "{counters:?}");
}

/// Transfers data in both directions. Our fast path must have carried all of it and dropped nothing.
fn transfers(ours: &Member, own: &Container, other: &Container) {
    // The first packets make the containers' addresses learned.
    assert_reaches(own, other.address());
    assert_reaches(other, own.address());
    wait_for("the endpoint", || endpoint(ours, own.address()).is_some());
    let count = || ours.counters().unwrap().carried();
    let segments = BYTES / SEGMENT;

    let before = count();
    let sent = transfer(own, other, BYTES).unwrap();
    let between = count();
    let received = transfer(other, own, BYTES).unwrap();
    let after = count();
    println!("  100 MB out in {:?}, in in {:?}", sent.time, received.time);
    assert!(between.fast_out - before.fast_out >= segments, "{before:?} {between:?}");
    assert!(after.fast_in - between.fast_in >= segments, "{between:?} {after:?}");
    let Carried { stack_out, stack_in, dropped, .. } = before;
    assert_eq!((after.stack_out, after.stack_in, after.dropped), (stack_out, stack_in, dropped), "{after:?}");
    assert_eq!(dropped, 0, "{:?}", ours.counters().unwrap());
}

#[test]
fn flannels_device_and_ours_carry_100_mb_either_way() {
    for wire_like in [false, true] {
        println!("wire-like: {wire_like}");
        let bed = mixed(wire_like);
        let before = frames(bed.lab.host(0));
        transfers(&bed.ours, &bed.container, &bed.foreign);
        let carried = frames(bed.lab.host(0)) - before;
        println!("  {carried} frames sent by eth0, {} segments", BYTES / SEGMENT);
        if wire_like {
            segments_are_right(bed.lab.host(0), &bed.container, &bed.foreign);
            segments_are_right(bed.lab.host(1), &bed.foreign, &bed.container);
        } else {
            // GSO works: the segments of one send travel in few frames.
            assert!(carried < BYTES / SEGMENT / 4, "{carried} frames");
        }
    }
}

#[test]
fn two_hosts_of_ours_carry_100_mb_either_way() {
    for wire_like in [false, true] {
        println!("wire-like: {wire_like}");
        let bed = Bed::with(Kind::Folder, Options { wire_like, ..Options::default() }, &[]);
        let (a, b) = bed.pair();
        let before = frames(&bed[0].host);
        transfers(&bed[0], a, b);
        let carried = frames(&bed[0].host) - before;
        println!("  {carried} frames sent by eth0, {} segments", BYTES / SEGMENT);
        let other = bed[1].counters().unwrap();
        assert_eq!(other.carried().dropped, 0, "{other:?}");
        assert!(other.all().iter().all(|(hook, ..)| *hook != Hook::Xdp));
        if wire_like {
            segments_are_right(&bed[0].host, a, b);
        } else {
            assert!(carried < BYTES / SEGMENT / 4, "{carried} frames");
        }
    }
}
