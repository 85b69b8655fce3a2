//! Two hosts with an agent and a Docker daemon each, set up as the README says.
use std::{net::Ipv4Addr, ops::Deref, thread, time::Duration};

use overlay_lab::{self as lab, Backend, Docker, DockerContainer, Lab, Member, Options, Store};
use serde_json::Value;

use super::traffic::{Tier, tiers};
use crate::bed::{Bed, endpoint, json, overlay, wait_for};

/// Makes two hosts whose agents masquerade, as they should beside Docker, without bridges or containers.
pub fn agents(backend: Backend) -> Bed {
    let lab = Lab::new(Options::default()).unwrap();
    let store = Store::folder(&lab);
    lab::configure(&lab, overlay(), &store, backend.config()).unwrap();
    for host in lab.hosts() {
        // Docker sets the policy of FORWARD to drop only if it is Docker that switches forwarding on.
        host.namespace().sysctl("ipv4/ip_forward", "0").unwrap();
    }
    let join = |host| Member::join(host, overlay(), &store, &["--ip-masq"]).unwrap();
    let members = lab.hosts().iter().map(join).collect();
    let bed = Bed { established: false, members, store, lab };
    for member in &bed.members {
        wait_for("the peer", || json(member, &["peers"]).as_array().is_some_and(|peers| peers.len() == 1));
    }
    bed
}

/// When this is dropped, the daemons with their containers end before the agents.
pub struct Hosts {
    pub dockers: Vec<Docker>,
    pub bed: Bed,
}

impl Hosts {
    /// Makes two hosts, starts the agents, and then the daemons.
    pub fn new(backend: Backend) -> Self {
        let bed = agents(backend);
        let dockers = bed.members.iter().map(|member| member.start_docker().unwrap()).collect();
        wait_for_forward_rules(&bed);
        Self { dockers, bed }
    }

    /// Starts one container on each host.
    pub fn pair(&self) -> [DockerContainer; 2] {
        [0, 1].map(|host| self.dockers[host].run("one", "").unwrap())
    }
}

impl Deref for Hosts {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        &self.bed
    }
}

/// Waits until the agent has noticed that Docker's FORWARD drops packets, which takes a second at most. Until then the
/// stack carries nothing between containers of different hosts.
pub fn wait_for_forward_rules(bed: &Bed) {
    for member in &bed.members {
        wait_for("the forward rules", || {
            json(member, &["status"])["agent"]["rules"]["forward"]["state"] == "active"
        });
    }
}

/// Address number `last` of a host's subnet: 0 is overlay0's, 1 is docker0's.
pub fn own(member: &Member, last: u8) -> Ipv4Addr {
    let base: Ipv4Addr = member.subnet.split('/').next().unwrap().parse().unwrap();
    Ipv4Addr::from(u32::from(base) + u32::from(last))
}

/// The address that a web server sees when container `from` sends it a request.
pub fn heard(from: &DockerContainer, address: impl ToString) -> Ipv4Addr {
    from.fetch(&format!("{}/cgi-bin/who", address.to_string())).unwrap().parse().unwrap()
}

/// Waits until the container is an endpoint behind the port of its own veth.
#[track_caller]
pub fn assert_learned(member: &Member, container: &DockerContainer) {
    let mac = container.mac().unwrap();
    let learned = || endpoint(member, container.address()).filter(|row| row["mac"] == mac.as_str());
    wait_for(&format!("{} on {}", container.address(), member.host.name()), || learned().is_some());
    let row = learned().unwrap();
    assert!(row["port"].as_str().unwrap().starts_with("veth") && row["pinned"] == false, "{row}");
}

/// The ports of a bridge as the agent shows them.
pub fn ports(member: &Member, bridge: &str) -> Option<Vec<String>> {
    let status = json(member, &["status"]);
    let bridges = status["agent"]["learned"]["bridges"].as_array()?.clone();
    let found = bridges.into_iter().find(|found| found["name"] == bridge)?;
    let name = |port: &Value| port.as_str().unwrap().to_owned();
    Some(found["ports"].as_array().unwrap().iter().map(name).collect())
}

/// Asserts that the two containers reach each other, that each sees the other's own address, and that a transfer too
/// long for one packet arrives whole.
pub fn assert_talk([a, b]: [&DockerContainer; 2]) {
    a.ping(b.address(), 3).unwrap();
    b.ping(a.address(), 3).unwrap();
    exchange([a, b]);
}

fn exchange([a, b]: [&DockerContainer; 2]) {
    for (from, to) in [(a, b), (b, a)] {
        assert_eq!(heard(from, to.address()), from.address());
        from.download(to.address()).unwrap();
    }
}

/// Asserts that learned containers reach each other by the programs alone. This uses no pings: busybox takes its
/// process id as their id, which is the same again in a container that was restarted, and such a connection may have
/// been a stack flow.
#[track_caller]
pub fn assert_talk_fast(bed: &Bed, containers: [&DockerContainer; 2]) {
    // Some packets of what the stack carried before may still be under way.
    thread::sleep(Duration::from_millis(100));
    assert_eq!(tiers(bed, || exchange(containers)), [Tier::Fast, Tier::Fast]);
}
