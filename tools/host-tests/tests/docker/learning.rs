//! docker0 and its containers are learned as they come and go, whether the agent, the daemon or the container comes
//! first.
use overlay_lab::{Backend, Member};

use super::hosts::{
    Hosts, agents, assert_learned, assert_talk, assert_talk_fast, heard, own, ports, wait_for_forward_rules,
};
use crate::bed::{endpoint, wait_for};

fn index(member: &Member, link: &str) -> String {
    let shown = member.host.exec(&format!("ip -o link show dev {link}")).unwrap();
    shown.split(':').next().unwrap().to_owned()
}

#[test]
fn containers_are_learned_as_they_start_and_forgotten_as_they_stop() {
    let hosts = Hosts::new(Backend::Vxlan);
    wait_for("docker0", || ports(&hosts[0], "docker0").is_some_and(|ports| ports.is_empty()));
    let [mut a, b] = hosts.pair();
    wait_for("the container's port", || ports(&hosts[0], "docker0").is_some_and(|ports| ports.len() == 1));

    // The address is unknown before the first packet. That packet is not lost either.
    assert_talk([&a, &b]);
    assert_learned(&hosts[0], &a);
    assert_learned(&hosts[1], &b);
    assert_talk_fast(&hosts, [&a, &b]);

    let stopped = a.address();
    a.stop().unwrap();
    wait_for("no endpoint and no port", || {
        endpoint(&hosts[0], stopped).is_none()
            && ports(&hosts[0], "docker0").is_some_and(|ports| ports.is_empty())
    });
    assert!(!b.reaches(stopped));

    a.start().unwrap();
    assert_talk([&a, &b]);
    assert_learned(&hosts[0], &a);
    assert_talk_fast(&hosts, [&a, &b]);
    // Containers of one host reach each other by their bridge.
    let c = hosts.dockers[0].run("two", "").unwrap();
    assert_eq!(heard(&c, a.address()), c.address());
}

#[test]
fn an_agent_that_starts_after_docker_and_one_that_was_killed_find_what_runs() {
    let mut bed = agents(Backend::Vxlan);
    // The agent's lease stays, so that docker0 can be in its subnet; everything else of the network is removed.
    bed[0].end_agent().unwrap();
    bed[0].overlay(&["down"]).unwrap();
    let dockers: Vec<_> = bed.members.iter().map(|member| member.start_docker().unwrap()).collect();
    let [a, b] = [0, 1].map(|host| dockers[host].run("one", "").unwrap());
    for (member, container) in bed.members.iter().zip([&a, &b]) {
        container.ping(own(member, 1), 1).unwrap();
    }
    bed[0].restart_agent().unwrap();
    wait_for_forward_rules(&bed);
    // There has been no packet since, so the agent has learned it from the kernel's tables.
    assert_learned(&bed[0], &a);
    assert_learned(&bed[1], &b);
    bed.wait_for_peers(1);
    assert_talk_fast(&bed, [&a, &b]);

    bed[0].kill_agent().unwrap();
    assert_talk_fast(&bed, [&a, &b]);
    // A container that is not learned is served by the stack.
    let c = dockers[0].run("two", "").unwrap();
    assert_talk([&c, &b]);
    assert_eq!(endpoint(&bed[0], c.address()), None);
    let stopped = a.address();
    a.stop().unwrap();

    bed[0].restart_agent().unwrap();
    assert_learned(&bed[0], &c);
    wait_for("no endpoint of the stopped", || endpoint(&bed[0], stopped).is_none());
    let d = dockers[0].run("three", "").unwrap();
    assert_talk([&d, &b]);
    assert_learned(&bed[0], &d);
    assert_talk_fast(&bed, [&d, &b]);
}

#[test]
fn a_daemon_that_restarts_is_followed_also_to_another_docker0() {
    let mut hosts = Hosts::new(Backend::Vxlan);
    let [mut a, b] = hosts.pair();
    assert_talk([&a, &b]);
    let before = index(&hosts[0], "docker0");
    for another in [false, true] {
        let stopped = a.address();
        assert!(hosts.dockers.remove(0).stop().unwrap().success());
        wait_for("no endpoint", || endpoint(&hosts[0], stopped).is_none());
        if another {
            hosts[0].host.namespace().ip("link delete docker0").unwrap();
        }
        hosts.dockers.insert(0, hosts[0].start_docker().unwrap());
        assert_eq!(index(&hosts[0], "docker0") != before, another);
        a.start().unwrap();
        assert_talk([&a, &b]);
        assert_learned(&hosts[0], &a);
        assert_talk_fast(&hosts, [&a, &b]);
    }
}
