//! User-defined Docker networks: beside the overlay, on it, and in conflict with it.
use std::net::Ipv4Addr;

use overlay_lab::{Backend, Docker, DockerContainer, Member};

use super::{
    hosts::{
        Hosts, agents, assert_learned, assert_talk, assert_talk_fast, heard, own, wait_for_forward_rules,
    },
    traffic::{
        Tier::{Fast, Stack},
        tiers,
    },
};
use crate::bed::{endpoint, json};

/// What `overlay check` says about `what`, if that is not in order.
fn complaint(member: &Member, what: &str) -> Option<String> {
    let findings = json(member, &["check", "--iface", "eth0"]);
    let findings = findings.as_array().unwrap_or_else(|| panic!("{findings}"));
    let found = findings.iter().find(|found| found["what"] == what).unwrap_or_else(|| panic!("{findings:?}"));
    (found["level"] != "ok").then(|| format!("{}: {}", found["detail"], found["remedy"]))
}

fn create(docker: &Docker, options: &str) -> anyhow::Result<String> {
    docker.docker(&format!("network create {options}"))
}

#[test]
fn containers_of_another_network_speak_as_their_host_and_are_reached_by_published_ports() {
    let hosts = Hosts::new(Backend::Vxlan);
    create(&hosts.dockers[0], "beside").unwrap();
    let stranger = hosts.dockers[0].run("stranger", "--network beside --publish 8000:80").unwrap();
    let b = hosts.dockers[1].run("one", "").unwrap();
    // A packet makes the container learned.
    b.ping(own(&hosts[0], 1), 1).unwrap();
    assert_learned(&hosts[1], &b);

    // Docker's masquerading hides the container behind its host's address on the overlay.
    assert_eq!(tiers(&hosts, || assert_eq!(heard(&stranger, b.address()), own(&hosts[0], 0))), [Stack, Fast]);
    stranger.download(b.address()).unwrap();
    assert!(!b.reaches(stranger.address()), "its address is no part of the overlay");
    // This packet leaves the overlay and is therefore masqueraded: the stranger sees its own gateway.
    let format = "{{range.IPAM.Config}}{{.Gateway}}{{end}}";
    let gateway = hosts.dockers[0].docker(&format!("network inspect --format {format} beside")).unwrap();
    assert_eq!(heard(&b, format!("{}:8000", own(&hosts[0], 1))), gateway.trim().parse::<Ipv4Addr>().unwrap());
    assert_eq!(heard(&b, format!("{}:8000", hosts[0].host.address())), hosts[1].host.address());
    assert_eq!(endpoint(&hosts[0], stranger.address()), None);
    for what in [
        "masquerading",
        "other networks",
        "iptables-nft forward rules",
        "iptables-legacy forward rules",
        "rules between containers",
        "docker's filters",
    ] {
        assert_eq!(complaint(&hosts[0], what), None, "{what}");
    }

    // docker0 has the whole subnet, so Docker itself refuses a part of it.
    let refused = create(&hosts.dockers[0], "--subnet 10.244.0.0/16 all").unwrap_err().to_string();
    assert!(refused.contains("overlaps"), "{refused}");
    // A network in another host's subnet makes that host's containers unreachable from here.
    create(&hosts.dockers[0], &format!("--subnet {} stolen", hosts[1].subnet)).unwrap();
    let said = complaint(&hosts[0], "other networks").unwrap();
    assert!(
        said.contains(&format!("{}/24 of br-", own(&hosts[1], 1))) && said.contains("docker network rm"),
        "{said}"
    );
}

#[test]
fn a_network_of_the_hosts_subnet_is_on_the_overlay() {
    let bed = agents(Backend::Vxlan);
    let dockers: Vec<_> = bed
        .members
        .iter()
        .map(|member| {
            // docker0 keeps its default subnet, so that the overlay's subnet is free for another network.
            let docker = member.host.start_docker(&[]).unwrap();
            // Gateway and MTU are those in subnet.env.
            let (gateway, mtu) = (own(member, 1), member.mtu);
            let place = format!("--subnet {gateway}/24 --gateway {gateway} on-overlay");
            create(&docker, &format!("--opt com.docker.network.driver.mtu={mtu} {place}")).unwrap();
            let said = complaint(member, "masquerading").unwrap();
            assert!(said.contains("enable_ip_masquerade=false"), "{said}");
            docker.docker("network rm on-overlay").unwrap();
            let unmasked = "--opt com.docker.network.bridge.enable_ip_masquerade=false";
            create(&docker, &format!("{unmasked} --opt com.docker.network.driver.mtu={mtu} {place}"))
                .unwrap();
            assert_eq!(complaint(member, "masquerading"), None);
            docker
        })
        .collect();
    wait_for_forward_rules(&bed);
    let run = |host: usize, name: &str| -> DockerContainer {
        dockers[host].run(name, "--network on-overlay --publish 80").unwrap()
    };
    let (a, b) = (run(0, "one"), run(1, "one"));
    assert_talk([&a, &b]);
    assert_learned(&bed[0], &a);
    assert_learned(&bed[1], &b);
    assert_talk_fast(&bed, [&a, &b]);
    // A user-defined network has names, which docker0 has not.
    let c = run(0, "two");
    assert_eq!(heard(&c, "one"), c.address());
    // The containers on docker0 are the strangers now.
    let stranger = dockers[0].run("stranger", "").unwrap();
    assert_eq!(heard(&stranger, b.address()), own(&bed[0], 0));
}

#[test]
fn docker0_and_another_network_share_the_hosts_subnet() {
    let bed = agents(Backend::Vxlan);
    let dockers: Vec<_> = bed
        .members
        .iter()
        .map(|member| {
            let options = member.docker_options().unwrap().join(" ").replace("/24", "/25");
            let docker = member.host.start_docker(&[&options]).unwrap();
            let second = format!("--subnet {}/25 --gateway {}", own(member, 128), own(member, 129));
            let plain = "--opt com.docker.network.bridge.enable_ip_masquerade=false";
            let mtu = format!("--opt com.docker.network.driver.mtu={}", member.mtu);
            create(&docker, &format!("{plain} {mtu} {second} second")).unwrap();
            docker
        })
        .collect();
    wait_for_forward_rules(&bed);
    let [first, second] = ["", "--network second"].map(|network| {
        [0, 1].map(|host| dockers[host].run(&format!("c{}", network.len()), network).unwrap())
    });
    for [a, b] in [[&first[0], &second[1]], [&second[0], &first[1]], [&second[0], &second[1]]] {
        assert_talk([a, b]);
        assert_learned(&bed[0], a);
        assert_learned(&bed[1], b);
        assert_talk_fast(&bed, [a, b]);
    }
    // Docker keeps its networks on one host apart from each other.
    assert!(!first[0].reaches(second[0].address()));
}
