//! What comes and goes meanwhile, at drawn moments: containers of two hosts, peers that exist as leases alone, and a third host
//! whose agent is killed, ended, and taken off the network.
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_lab::{Container, Member, PingOptions, Store, random::Random, wait_until};
use serde::{Deserialize, Serialize};

use super::{
    draw::pause,
    sample::counters,
    talk::{Place, Places, Server},
};

/// How far events of a kind are apart, on average.
const CONTAINERS: Duration = Duration::from_secs(2);
const PEERS: Duration = Duration::from_secs(5);
const AGENTS: Duration = Duration::from_secs(40);
/// How long the third host stays away.
const AWAY: Duration = Duration::from_secs(6);

/// How many containers a host may have besides its lasting ones, and how many hosts may exist as leases alone. Half of them are
/// there at a time, from the beginning on.
const PLACES: usize = 8;
const STRANGERS: usize = 40;
/// The containers' addresses are taken in turn, as container engines do it: last bytes from here on.
const FIRST: u8 = 20;
const ADDRESSES: u8 = 200;

/// The hosts on which containers come and go. The agents of these run all the time.
pub(super) const LASTING: [usize; 2] = [0, 1];
/// The host that comes and goes itself.
pub(super) const RESTLESS: usize = 2;

const PATIENCE: Duration = Duration::from_secs(60);

/// How often each thing happened.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Events {
    /// Containers that came.
    pub(super) containers_came: u64,
    /// Containers that went.
    pub(super) containers_went: u64,
    /// Peers whose lease was written.
    pub(super) peers_came: u64,
    /// Peers whose lease was deleted.
    pub(super) peers_went: u64,
    /// How often the third host's agent was killed with `kill -9` and started again.
    pub(super) agent_killed: u64,
    /// How often it was ended with SIGTERM and started again.
    pub(super) agent_ended: u64,
    /// How often that host's lease was deleted while no agent ran there.
    pub(super) host_left: u64,
    /// How often the network was taken off that host by `overlay down`.
    pub(super) host_down: u64,
}

struct Resident {
    container: Container,
    // It ends before the container's namespace is deleted.
    server: Server,
}

/// Everything that comes and goes.
pub(super) struct Life {
    pub(super) places: Places,
    pub(super) events: Events,
    /// The ids of each host's maps of counters, present and past.
    pub(super) counters: Vec<BTreeSet<u32>>,
    random: Random,
    residents: [Vec<Option<Resident>>; LASTING.len()],
    next_address: [u8; LASTING.len()],
    strangers: [bool; STRANGERS],
    next: Next,
    back: Option<Instant>,
    _lasting: Vec<Server>,
}

struct Next {
    container: Instant,
    peer: Instant,
    agent: Instant,
}

impl Life {
    /// Fills the places half.
    pub(super) fn start(members: &[Member], store: &mut Store, random: Random) -> Result<Self> {
        let lasting = members.iter().enumerate().flat_map(|(host, member)| {
            let place = move |container: &Container| Place { host, container: container.clone() };
            member.containers.iter().map(place)
        });
        let lasting: Vec<Place> = lasting.collect();
        let servers = lasting.iter().map(|place| Server::start(&place.container)).collect::<Result<_>>()?;
        let places = Places::default();
        places.all().extend(lasting);
        let now = Instant::now();
        let mut life = Self {
            places,
            events: Events::default(),
            counters: vec![BTreeSet::new(); members.len()],
            random,
            residents: [0; LASTING.len()].map(|_| (0..PLACES).map(|_| None).collect()),
            next_address: [0; LASTING.len()],
            strangers: [false; STRANGERS],
            next: Next { container: now, peer: now, agent: now },
            back: None,
            _lasting: servers,
        };
        for stranger in (0..STRANGERS).step_by(2) {
            life.peer(store, stranger)?;
        }
        for host in LASTING {
            for place in (0..PLACES).step_by(2) {
                life.container(members, host, place)?;
            }
        }
        life.events = Events::default();
        life.next.agent += pause(AGENTS, &mut life.random);
        Ok(life)
    }

    /// Whether the third host's agent runs and its network is whole.
    pub(super) fn restless_is_there(&self) -> bool {
        self.back.is_none()
    }

    /// Does what is due, and returns what that was if it is worth a line.
    pub(super) fn step(&mut self, members: &mut [Member], store: &mut Store) -> Result<Option<&'static str>> {
        let now = Instant::now();
        if now >= self.next.container {
            self.next.container = now + pause(CONTAINERS, &mut self.random);
            let (host, place) = (self.random.one(&LASTING), self.random.below(PLACES));
            self.container(members, host, place)?;
        }
        if now >= self.next.peer {
            self.next.peer = now + pause(PEERS, &mut self.random);
            let stranger = self.random.below(STRANGERS);
            self.peer(store, stranger)?;
        }
        match self.back {
            Some(back) if now >= back => {
                self.come_back(members)?;
                Ok(Some("the third host is back"))
            }
            None if now >= self.next.agent => self.disturb(&mut members[RESTLESS], store).map(Some),
            _ => Ok(None),
        }
    }

    /// Has the third host back, if it is away, and waits until every lasting agent knows exactly the peers that there are.
    pub(super) fn settle(&mut self, members: &mut [Member]) -> Result<()> {
        if self.back.is_some() {
            self.come_back(members)?;
        }
        let strangers = (0..STRANGERS).filter(|number| self.strangers[*number]).map(subnet_of);
        let strangers: BTreeSet<String> = strangers.map(|subnet| network(&subnet)).collect();
        for host in LASTING {
            let mut expected = strangers.clone();
            let others = members.iter().enumerate().filter(|(number, _)| *number != host);
            expected.extend(others.map(|(_, member)| network(&member.subnet)));
            let known = || peers(&members[host].overlay(&["peers", "--json"])?);
            // Here more than half of the peers go within ten minutes, so the guard holds removals back. An operator who knows that
            // they are meant says so.
            let agrees = || {
                members[host].overlay(&["peers", "--accept-deletions"])?;
                Ok(known()? == expected)
            };
            wait_until("an agent that knows exactly the peers", PATIENCE, agrees).with_context(|| {
                let known = known().unwrap_or_default();
                let more: Vec<_> = known.difference(&expected).collect();
                let lacks: Vec<_> = expected.difference(&known).collect();
                format!("h{}: it knows {more:?} too much, and lacks {lacks:?}", host + 1)
            })?;
        }
        Ok(())
    }

    /// A container comes to this place, or that which is there goes.
    fn container(&mut self, members: &[Member], host: usize, place: usize) -> Result<()> {
        if let Some(Resident { container, server }) = self.residents[host][place].take() {
            // Connections end first.
            self.places.all().retain(|other| other.container.address() != container.address());
            drop(server);
            self.events.containers_went += 1;
            return container.remove();
        }
        let Member { host: on, subnet, mtu, .. } = &members[host];
        let last = FIRST + self.next_address[host];
        self.next_address[host] = (self.next_address[host] + 1) % ADDRESSES;
        let container = on.add_container(&format!("s{place}"), subnet, last, *mtu)?;
        // Its link is up some milliseconds after it was made, and what is sent before that is lost.
        let gateway = container.exec("ip route show default")?;
        let gateway = gateway.split_whitespace().nth(2).context("a default route")?.parse()?;
        let once = PingOptions { count: 1, timeout: 0.2, ..PingOptions::default() };
        wait_until("a new container's link", PATIENCE, || Ok(container.ping(gateway, once)?.complete()))?;
        let server = Server::start(&container)?;
        self.places.all().push(Place { host, container: container.clone() });
        self.residents[host][place] = Some(Resident { container, server });
        self.events.containers_came += 1;
        Ok(())
    }

    /// A host that exists as a lease alone comes, or goes.
    fn peer(&mut self, store: &mut Store, number: usize) -> Result<()> {
        let key = format!("{LEASES}{}", subnet_of(number).replace('/', "-"));
        if self.strangers[number] {
            store.as_etcd()?.ctl(&["del", &key])?;
            self.events.peers_went += 1;
        } else {
            let value = format!(
                r#"{{"PublicIP":"172.16.0.{}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:01:{number:02x}"}}}}"#,
                number + 1
            );
            store.as_etcd()?.ctl(&["put", &key, &value])?;
            self.events.peers_came += 1;
        }
        self.strangers[number] = !self.strangers[number];
        Ok(())
    }

    /// Something happens to the third host.
    fn disturb(&mut self, member: &mut Member, store: &mut Store) -> Result<&'static str> {
        self.next.agent = Instant::now() + pause(AGENTS, &mut self.random);
        Ok(match self.random.below(4) {
            0 => {
                self.events.agent_killed += 1;
                member.kill_agent()?;
                member.restart_agent()?;
                "the third host's agent was killed and started again"
            }
            1 => {
                self.events.agent_ended += 1;
                ended(member)?;
                member.restart_agent()?;
                "the third host's agent was ended and started again"
            }
            2 => {
                self.leave();
                self.events.host_left += 1;
                ended(member)?;
                let key = format!("{LEASES}{}", member.subnet.replace('/', "-"));
                let deleted = store.as_etcd()?.ctl(&["del", &key])?;
                ensure!(deleted.trim() == "1", "the third host's lease {key} was not there");
                "the third host's agent has ended, and its lease was deleted"
            }
            _ => {
                self.leave();
                self.events.host_down += 1;
                ended(member)?;
                // Whatever still counts in this map later was left behind.
                self.counters[RESTLESS].insert(counters(&member.host)?);
                member.overlay(&["down"])?;
                "the network was taken off the third host"
            }
        })
    }

    /// Nobody talks to the third host's containers from now on.
    fn leave(&mut self) {
        self.places.all().retain(|place| place.host != RESTLESS);
        self.back = Some(Instant::now() + pause(AWAY, &mut self.random));
    }

    fn come_back(&mut self, members: &mut [Member]) -> Result<()> {
        self.back = None;
        members[RESTLESS].restart_agent()?;
        let (subnet, _) = members[RESTLESS].agent()?.subnet()?;
        ensure!(subnet == members[RESTLESS].subnet, "the third host came back with another subnet: {subnet}");
        let once = PingOptions { count: 1, timeout: 0.5, ..PingOptions::default() };
        for container in &members[RESTLESS].containers {
            for host in LASTING {
                let from = &members[host].containers[0];
                wait_until("the third host's containers", PATIENCE, || {
                    Ok(from.ping(container.address(), once)?.complete())
                })?;
            }
            self.places.all().push(Place { host: RESTLESS, container: container.clone() });
        }
        Ok(())
    }
}

/// Where leases are in etcd.
const LEASES: &str = "/coreos.com/network/subnets/";

/// The subnet of a host that exists as a lease alone. Agents choose subnets below 10.244.64.0.
fn subnet_of(stranger: usize) -> String {
    format!("10.244.{}.0/24", 100 + stranger)
}

/// The address of a subnet without its length, which is how `overlay peers` names it.
fn network(subnet: &str) -> String {
    subnet.split('/').next().unwrap_or_default().to_owned()
}

/// The subnets that `overlay peers --json` lists.
fn peers(listed: &str) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Peer {
        subnet: String,
    }
    let peers: Vec<Peer> = serde_json::from_str(listed).context("read `overlay peers --json`")?;
    Ok(peers.into_iter().map(|peer| peer.subnet).collect())
}

fn ended(member: &mut Member) -> Result<()> {
    let status = member.end_agent()?;
    ensure!(status.success(), "the third host's agent ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_known_by_their_subnets() {
        let listed =
            r#"[{"subnet":"10.244.7.0","installed":"yes"},{"subnet":"10.244.101.0","installed":"yes"}]"#;
        let expected = ["10.244.7.0/24", &subnet_of(1)].map(network);
        assert_eq!(peers(listed).unwrap(), expected.into());
        assert!(peers(r#"[{"public_ip":"10.99.0.2"}]"#).is_err());
    }
}
