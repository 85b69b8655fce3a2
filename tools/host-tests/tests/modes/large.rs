//! Packets and frames that are larger than usual: on underlays with jumbo frames, and GSO frames beyond 65,535 bytes
//! (BIG TCP).
use netlink_packet_route::link::LinkAttribute;
use overlay_common::{
    Hook::{Encap, Send},
    Reason,
};
use overlay_lab::{Backend, Member, Namespace, Options, transfer};
use serde_json::Value;

use super::count::{Count, be_patient, set_wire_like, without_timeouts};
use crate::bed::{Bed, Kind, json, ping_df, wait_for};

const TC: &[&str] = &["--ingress", "tc"];
const STRIP: &[&str] = &["--ingress", "xdp-strip"];
const INGRESSES: [&[&str]; 3] = [TC, &["--ingress", "xdp", "--endpoint-gro", "on"], STRIP];
const JUMBO: u32 = 9000;
const BIG: u32 = 185_000;

/// Replaces the agents by ones with this ingress mode, and waits until it is in use.
fn take_in_by(bed: &mut Bed, ingress: &[&str]) {
    for member in &mut bed.members {
        assert!(member.end_agent().unwrap().success());
        member.set_options(&bed.store, ingress);
        member.start_agent().unwrap();
    }
    for member in &mut bed.members {
        member.wait_ready().unwrap();
        let status = json(member, &["status"]);
        let tiers = status["tiers"].as_array().unwrap();
        let xdp = tiers.iter().find(|tier| tier["name"] == "xdp").unwrap();
        assert_eq!(xdp["in_use"], ingress != TC, "{}", xdp["why"]);
        if ingress.contains(&"xdp") {
            wait_for("the containers' veths to take frames", || {
                json(member, &["status"])["agent"]["datapath"]["receivers"] == 2
            });
        }
    }
}

/// MTU of overlay0.
fn device_mtu(member: &Member) -> u32 {
    let link: Value =
        serde_json::from_str(&member.host.exec("ip -j link show dev overlay0").unwrap()).unwrap();
    link[0]["mtu"].as_u64().unwrap() as u32
}

#[test]
fn jumbo_packets_take_the_fast_path_in_every_combination() {
    for (backend, mtu) in [(Backend::Vxlan, 8950), (Backend::Udp, 8972), (Backend::HostGw, 9000)] {
        let options = Options { mtu: JUMBO, ..Options::default() };
        let mut bed = Bed::with_config(Kind::Folder, options, backend.config(), TC);
        bed.learn_all();
        for member in &bed.members {
            // The former is the MTU of subnet.env and the containers.
            assert_eq!((member.mtu, device_mtu(member)), (mtu, mtu), "{}", backend.name());
        }
        for ingress in INGRESSES {
            if ingress != TC {
                take_in_by(&mut bed, ingress);
            }
            for wire_like in [false, true] {
                set_wire_like(&bed.lab, wire_like);
                full_packets(&bed, &format!("{}, {}, wire-like {wire_like}", backend.name(), ingress[1]));
            }
        }
    }
}

fn full_packets(bed: &Bed, what: &str) {
    const BYTES: u64 = 16 << 20;
    let ((a, b), mtu) = (bed.pair(), bed[0].mtu);
    let count = Count::of(bed, || {
        for (from, to) in [(a, b), (b, a)] {
            let ping = ping_df(from, to.address(), mtu - 28);
            assert!(ping.complete(), "{what}: {}", ping.output);
        }
    });
    count.is_fast(what, 0, 1);
    for host in [0, 1] {
        let carried = count.carried(host);
        assert_eq!((carried.fast_out, carried.fast_in), (2, 2), "{what}: {carried:?}");
    }
    let count = Count::of(bed, || assert!(transfer(a, b, BYTES).unwrap().bytes >= BYTES));
    count.is_fast(what, BYTES, u64::from(mtu));
    // There are so few frames only if they were that large.
    assert!(count.carried(0).fast_out < BYTES / 4000, "{what}: {:?}", count.carried(0));
}

/// Allows devices GSO and GRO frames of this many bytes, for IPv4 too (Linux 6.3). This is done by netlink, because not
/// every `ip` has the option.
fn allow(namespace: &Namespace, devices: &[&str], size: u32) {
    let devices: Vec<_> = devices.iter().map(|&device| device.to_owned()).collect();
    let done = namespace.enter(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            for device in devices {
                let index = nix::net::if_::if_nametoindex(device.as_str())?;
                let message = rtnetlink::LinkUnspec::new_with_index(index)
                    .append_extra_attribute(LinkAttribute::GsoMaxSize(size))
                    .append_extra_attribute(LinkAttribute::GroMaxSize(size))
                    .append_extra_attribute(LinkAttribute::GsoIpv4MaxSize(size))
                    .append_extra_attribute(LinkAttribute::GroIpv4MaxSize(size));
                handle.link().change(message.build()).execute().await?;
            }
            Ok(())
        })
    });
    done.unwrap();
}

/// All devices between two containers accept BIG TCP frames, and what the fast path cannot carry is carried by the
/// stack. There must be no time-outs, except where the agent relays, because its queue may overflow.
fn big(backend: Backend, bytes: u64, no_timeouts: bool) {
    let mut bed = Bed::with_config(Kind::Folder, Options::default(), backend.config(), TC);
    bed.learn_all();
    for member in &bed.members {
        allow(member.host.namespace(), &["eth0", "br0", "va", "vb"], BIG);
        for container in &member.containers {
            allow(container.namespace(), &["eth0"], BIG);
        }
    }
    allow(bed.lab.switch(), &["br0", "h1", "h2"], BIG);
    if no_timeouts {
        be_patient(bed.pair().0);
    }
    for (wire_like, ingress) in [(false, TC), (true, STRIP)] {
        set_wire_like(&bed.lab, wire_like);
        if ingress != TC {
            take_in_by(&mut bed, ingress);
        }
        let (a, b) = bed.pair();
        let what = format!("{}, wire-like {wire_like}, {}", backend.name(), ingress[1]);
        let count = Count::of(&bed, || {
            if no_timeouts {
                without_timeouts(&what, a, || transfer(a, b, bytes));
            } else {
                println!("{what}: {:?}", transfer(a, b, bytes).unwrap());
            }
        });
        let [here, there] = [0, 1].map(|host| count.carried(host));
        assert_eq!((here.dropped, there.dropped), (0, 0), "{what}: {here:?} {there:?}");
        // There were such frames, and the agent relayed those that no program could send.
        assert!(count.packets(0, Encap, Reason::NeedsFragmentation) > 0, "{what}: {here:?}");
        let relayed =
            [Reason::NeedsFragmentation, Reason::HeadroomRefused].map(|why| count.packets(0, Send, why));
        let sent = here.fast_out + here.stack_out + relayed.iter().sum::<u64>();
        assert!(sent >= bytes / 1460, "{what}: {here:?}");
        assert!(there.fast_in + there.stack_in >= bytes / 1460, "{what}: {there:?}");
    }
}

#[test]
fn big_tcp_arrives_over_vxlan() {
    big(Backend::Vxlan, 100 << 20, true);
}

#[test]
fn big_tcp_arrives_in_udp_mode() {
    big(Backend::Udp, 32 << 20, false);
}

#[test]
fn big_tcp_arrives_unencapsulated() {
    big(Backend::HostGw, 100 << 20, true);
}
