//! As many agents as there are subnets start all at once.
use std::{collections::BTreeSet, time::Duration};

use overlay_lab::{Agent, Host, Lab, Options, PingOptions, etcd::Etcd, wait_until};

use super::bed::overlay;

const HOSTS: u8 = 64;
/// 10.244.64.0/24 to 10.244.127.0/24.
const CONFIG: &str = r#"{"Network":"10.244.0.0/16","SubnetLen":24,"SubnetMin":"10.244.64.0","SubnetMax":"10.244.127.0","Backend":{"Type":"vxlan"}}"#;
/// How long 64 agents may take on few cores. The kernel verifies the programs of each.
const PATIENCE: Duration = Duration::from_secs(180);

fn leases(etcd: &Etcd) -> usize {
    let keys = etcd.ctl(&["get", "--prefix", "--keys-only", "/coreos.com/network/subnets/"]).unwrap();
    keys.lines().filter(|line| !line.is_empty()).count()
}

/// What befalls etcd during the race.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Harm {
    Nothing,
    /// It is killed when some have a lease, and three quarters of the agents have begun to ask. The last quarter starts while
    /// it is dead. So some have a lease and some have none, however fast or slow the machine is.
    Killed,
}

/// Starts 64 whole agents while etcd hangs, so that all of them ask for a lease in the same moment, unless the harm says
/// otherwise. In the end all run, no two with the same subnet, and a 65th is told that none is free.
fn race(harm: Harm) {
    let lab = Lab::new(Options { hosts: HOSTS + 1, ..Options::default() }).unwrap();
    let mut etcd = Etcd::start_in_netns(&lab.folder(), lab.switch().name(), Lab::SWITCH).unwrap();
    etcd.ctl(&["put", "/coreos.com/network/config", CONFIG]).unwrap();
    let url = etcd.client_url();
    // The tables are no larger than the test needs, because the kernel allocates them whole for each of the 64.
    let options = ["--etcd-endpoints", &url, "--max-peers", "128", "--max-flows", "1024"];
    etcd.pause().unwrap();
    let (racing, late) = lab.hosts().split_at(usize::from(HOSTS));
    let start = |hosts: &[Host]| {
        let agents: Vec<Agent> =
            hosts.iter().map(|host| host.start_agent(overlay(), &options).unwrap()).collect();
        wait_until("all to ask etcd", PATIENCE, || {
            Ok(agents.iter().all(|agent| agent.log().contains("underlay eth0")))
        })
        .unwrap();
        agents
    };
    let (first, rest) =
        racing.split_at(if harm == Harm::Killed { racing.len() * 3 / 4 } else { racing.len() });
    let mut agents = start(first);
    etcd.resume().unwrap();
    if harm == Harm::Killed {
        wait_until("a lease", PATIENCE, || Ok(leases(&etcd) > 0)).unwrap();
        etcd.kill9().unwrap();
        agents.extend(start(rest));
        etcd.restart().unwrap();
    }
    for agent in &mut agents {
        agent.wait_ready(PATIENCE).unwrap();
    }
    let subnets: BTreeSet<_> = agents.iter().map(|agent| agent.subnet().unwrap().0).collect();
    assert_eq!((subnets.len(), leases(&etcd)), (usize::from(HOSTS), usize::from(HOSTS)), "{subnets:?}");
    assert!(subnets.contains("10.244.64.0/24") && subnets.contains("10.244.127.0/24"), "{subnets:?}");
    for agent in &mut agents {
        assert!(agent.status().unwrap().is_none(), "{}", agent.log());
    }

    // Each agent knows the 63 others, and packets between their containers arrive.
    for host in racing {
        wait_until("63 peers", PATIENCE, || {
            let peers: serde_json::Value =
                serde_json::from_str(&host.overlay(overlay(), &["peers", "--json"])?)?;
            Ok(peers.as_array().is_some_and(|peers| peers.len() == usize::from(HOSTS) - 1))
        })
        .unwrap();
    }
    let ends = [0, usize::from(HOSTS) - 1].map(|index| {
        let (subnet, mtu) = agents[index].subnet().unwrap();
        racing[index].add_bridge(&subnet, mtu).unwrap();
        racing[index].add_container("a", &subnet, 2, mtu).unwrap()
    });
    let once = PingOptions { count: 1, ..PingOptions::default() };
    wait_until("an answer from end to end", PATIENCE, || {
        Ok(ends[0].ping(ends[1].address(), once)?.complete())
    })
    .unwrap();

    let mut agent = late[0].start_agent(overlay(), &options).unwrap();
    wait_until("the end of the 65th", PATIENCE, || Ok(agent.status()?.is_some())).unwrap();
    assert_eq!(agent.status().unwrap().unwrap().code(), Some(1));
    let said = agent.log();
    for words in [
        "no free subnet in 10.244.0.0/16: all 64 subnets from 10.244.64.0 to 10.244.127.0 are leased",
        "delete leases of hosts that are gone, or widen Network, SubnetMin or SubnetMax",
    ] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(leases(&etcd), usize::from(HOSTS));
}

#[test]
fn sixty_four_agents_race_for_as_many_subnets() {
    race(Harm::Nothing);
}

#[test]
fn sixty_four_agents_race_while_etcd_is_killed() {
    race(Harm::Killed);
}
