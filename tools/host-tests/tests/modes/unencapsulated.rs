//! A machine on the underlay that is no peer, and sends containers packets without encapsulation.
use overlay_common::{Hook, Reason};
use overlay_lab::{Backend, Container, Lab, Member, Options};

use crate::bed::{Bed, Kind, assert_reaches, wait_for};

/// How many echo requests the container's kernel has received.
fn requests(container: &Container) -> u64 {
    let table = container.exec("cat /proc/net/snmp").unwrap();
    let mut rows = table.lines().filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let at = names.split(' ').position(|name| name == "InEchos").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// The first address of a subnet that may be leased, and is nobody's.
fn nobodys(bed: &Bed) -> String {
    let is_free =
        |number: &u8| bed.members.iter().all(|member| member.subnet != format!("10.244.{number}.0/24"));
    format!("10.244.{}.9", (1..64).find(is_free).unwrap())
}

/// One echo request from the machine beside the hosts, in the name of `source`. Says whether an answer came back.
fn ping(bed: &Bed, source: &str, to: &str) -> bool {
    let stranger = bed.lab.switch();
    stranger.ip(&format!("address add {source}/32 dev br0")).unwrap();
    let answered = stranger.exec(&format!("ping -n -c 1 -W 0.3 -I {source} {to}")).is_ok();
    stranger.ip(&format!("address delete {source}/32 dev br0")).unwrap();
    answered
}

fn dropped(member: &Member) -> u64 {
    member.counters().unwrap().packets(Hook::Decap, Reason::NotEncapsulated)
}

#[test]
fn nobody_on_the_underlay_speaks_for_a_container_without_encapsulation() {
    for backend in [Backend::Vxlan, Backend::Udp] {
        let bed = Bed::with_config(Kind::Folder, Options::default(), backend.config(), &[]);
        bed.learn_all();
        let (here, there) = bed.pair();
        let neighbour = &bed[0].containers[1];
        let stranger = bed.lab.switch();
        for member in &bed.members {
            stranger.ip(&format!("route add {} via {}", member.subnet, bed[0].host.address())).unwrap();
        }
        let sources = [there.address().to_string(), nobodys(&bed), neighbour.address().to_string()];
        for rp_filter in ["0", "2"] {
            for interface in ["all", "eth0"] {
                let key = format!("ipv4/conf/{interface}/rp_filter");
                bed[0].host.namespace().sysctl(&key, rp_filter).unwrap();
            }
            // To a container here, and through this host to one of the other host.
            for to in [here, there] {
                for source in sources.iter().filter(|source| **source != to.address().to_string()) {
                    println!("{}, rp_filter {rp_filter}: {source} to {}", backend.name(), to.address());
                    let before = (dropped(&bed[0]), requests(to));
                    assert!(!ping(&bed, source, &to.address().to_string()));
                    let is_unheard = || assert_eq!(requests(to), before.1, "{source} was heard");
                    wait_for("the drop to be counted", || {
                        is_unheard();
                        dropped(&bed[0]) == before.0 + 1
                    });
                    is_unheard();
                }
            }
            // A machine beside the overlay is heard in its own name, and so is a container that is not masqueraded, by a host
            // whose own address it asks.
            let before = dropped(&bed[0]);
            assert!(stranger.exec(&format!("ping -n -c 2 -W 5 {}", here.address())).is_ok());
            assert_reaches(there, bed[0].host.address());
            assert_eq!(dropped(&bed[0]), before);
        }
        bed.assert_all_reached();
    }
}

/// Where Network covers the underlay, but no lease may, machines of the underlay reach containers as they do elsewhere.
#[test]
fn a_machine_of_the_underlay_inside_network_is_heard() {
    for backend in [Backend::Vxlan, Backend::Udp] {
        let config = format!(
            r#"{{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.10.0.0","SubnetMax":"10.50.0.0","Backend":{{"Type":"{}"}}}}"#,
            backend.name()
        );
        let bed = Bed::with_config(Kind::Folder, Options::default(), &config, &[]);
        let here = &bed[0].containers[0];
        let stranger = bed.lab.switch();
        stranger.ip(&format!("route add {} via {}", bed[0].subnet, bed[0].host.address())).unwrap();
        let before = requests(here);
        // Whether the container's answer gets back is another matter.
        let _ = stranger.exec(&format!("ping -n -c 1 -W 0.3 -I {} {}", Lab::SWITCH, here.address()));
        wait_for("the container to hear of it", || requests(here) == before + 1);
        let is_free = |prefix: &&str| !bed.members.iter().any(|member| member.subnet.starts_with(*prefix));
        let nobodys = ["10.40.1.", "10.41.1.", "10.42.1."].into_iter().find(is_free).unwrap();
        assert!(!ping(&bed, &format!("{nobodys}9"), &here.address().to_string()));
        let is_unheard = || assert_eq!(requests(here), before + 1, "nobody was heard");
        wait_for("the drop to be counted", || {
            is_unheard();
            dropped(&bed[0]) == 1
        });
        is_unheard();
    }
}
