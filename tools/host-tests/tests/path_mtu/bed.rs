//! Three hosts, two of which are behind routers with links of different MTUs. Each has a container that knows the
//! overlay's MTU and one that does not. Packets are carried by our agents, or by the kernel's VXLAN device as flannel
//! sets it up.
use std::{net::Ipv4Addr, time::Duration};

use overlay_common::{Hook, Reason};
pub use overlay_host_tests::overlay;
use overlay_lab::{
    Backend, Carried, Container, ForeignVxlan, Host, Lab, Member, Namespace, Options, PingOptions,
    RoutedPath, Store, populate_with, wait_until,
};

/// Bytes that encapsulation adds on a path with a router.
fn overhead(backend: Backend) -> u32 {
    match backend {
        Backend::Vxlan => 50,
        // host-gw encapsulates what a router would not know how to forward.
        Backend::Udp | Backend::HostGw => 28,
    }
}

/// What carries the packets between the hosts.
#[derive(Clone, Copy, Debug)]
pub enum Carrier {
    /// Our agents, with these options.
    Ours(&'static [&'static str]),
    /// The kernel's VXLAN device.
    Flannel,
}

/// MTU of every device of the underlay.
pub const UNDERLAY: u32 = 1500;
/// MTU of the paths to the second and the third host.
pub const PATHS: [u32; 2] = [1400, 1300];

/// What the first host's routing table says about the MTU of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Nothing.
    Silent,
    /// `mtu NUMBER`, which the kernel obeys for its own packets only.
    Unlocked,
    /// `mtu lock NUMBER`.
    Locked,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Arrived,
    /// It was answered by ICMP "fragmentation needed" with this MTU.
    Told(u32),
    /// It vanished without an answer.
    Lost,
}

pub struct Bed {
    /// Containers whose devices have the overlay's MTU.
    pub containers: Vec<Container>,
    /// Containers whose devices have the underlay's MTU, so that hosts have to tell them what is too large for the
    /// overlay.
    pub wide: Vec<Container>,
    /// Our agents, if they carry the packets.
    pub members: Vec<Member>,
    _store: Option<Store>,
    pub lab: Lab,
    /// Bytes that encapsulation adds.
    pub overhead: u32,
}

impl Bed {
    pub fn new(carrier: Carrier, backend: Backend, wire_like: bool) -> Self {
        let options = Options { hosts: 3, behind_routers: 2, mtu: UNDERLAY, wire_like, ..Options::default() };
        let lab = Lab::new(options).unwrap();
        for (index, mtu) in PATHS.into_iter().enumerate() {
            path(&lab, index + 1).set_mtu(mtu).unwrap();
        }
        let mut bed = Self {
            containers: Vec::new(),
            wide: Vec::new(),
            members: Vec::new(),
            _store: None,
            lab,
            overhead: overhead(backend),
        };
        match carrier {
            Carrier::Ours(options) => bed.start_agents(backend, options),
            Carrier::Flannel => bed.make_devices(),
        }
        bed.talk();
        bed
    }

    fn start_agents(&mut self, backend: Backend, options: &[&str]) {
        let store = Store::folder(&self.lab);
        self.members = populate_with(&self.lab, overlay(), &store, backend.config(), options).unwrap();
        for member in &self.members {
            self.containers.push(member.containers[0].clone());
            self.wide.push(member.host.add_container("wide", &member.subnet, 9, UNDERLAY).unwrap());
        }
        self._store = Some(store);
    }

    fn make_devices(&mut self) {
        let subnet = |index: usize| format!("10.244.{}.0/24", index + 1);
        let hosts = self.lab.hosts();
        let device = |(index, host)| ForeignVxlan::new(host, &subnet(index), 1, 8472).unwrap();
        let devices: Vec<_> = hosts.iter().enumerate().map(device).collect();
        let mtu = UNDERLAY - self.overhead;
        for (own, host) in hosts.iter().enumerate() {
            for (index, peer) in devices.iter().enumerate().filter(|(index, _)| *index != own) {
                devices[own].put_peer(&subnet(index), peer.mac(), hosts[index].address()).unwrap();
            }
            host.add_bridge(&subnet(own), mtu).unwrap();
            self.containers.push(host.add_container("a", &subnet(own), 2, mtu).unwrap());
            self.wide.push(host.add_container("wide", &subnet(own), 9, UNDERLAY).unwrap());
        }
    }

    /// Waits until the first host's containers reach all others. With our agents, every address is learned then.
    fn talk(&self) {
        for (from, to) in self.containers[1..].iter().zip(&self.wide[1..]) {
            for (from, to) in [(&self.containers[0], from), (&self.wide[0], to)] {
                wait_for("a first answer", || {
                    let once = PingOptions { count: 1, timeout: 0.3, ..PingOptions::default() };
                    from.ping(to.address(), once).unwrap().complete()
                });
            }
        }
        for (index, member) in self.members.iter().enumerate() {
            let own = [&self.containers[index], &self.wide[index]].map(Container::address);
            wait_for("the endpoints", || own.iter().all(|address| is_learned(member, *address)));
        }
    }

    /// The host whose containers send.
    pub fn sender(&self) -> &Host {
        self.lab.host(0)
    }

    /// Writes `route` into the first host's routing table for both paths, and removes what the host has learned about
    /// them.
    pub fn set_routes(&self, route: Route) {
        for (index, mtu) in PATHS.into_iter().enumerate() {
            let path = path(&self.lab, index + 1);
            let (network, gateway) = (path.network(), path.gateway());
            let mtu = match route {
                Route::Silent => String::new(),
                Route::Unlocked => format!("mtu {mtu}"),
                Route::Locked => format!("mtu lock {mtu}"),
            };
            // The route is not replaced, because the new one would inherit what was learned for the old one's next hop.
            self.sender().namespace().ip(&format!("route delete {network}")).unwrap();
            self.sender().namespace().ip(&format!("route add {network} via {gateway} {mtu}")).unwrap();
        }
    }

    /// Size of the largest inner packet that fits the path to host `index`.
    pub fn inner(&self, index: usize) -> u32 {
        PATHS[index - 1] - self.overhead
    }

    /// Packets that the first host carried, by tier.
    pub fn carried(&self) -> Carried {
        self.members[0].counters().unwrap().carried()
    }

    /// Packets that the programs of all hosts dropped or answered.
    pub fn dropped(&self) -> u64 {
        self.members.iter().map(|member| member.counters().unwrap().carried().dropped).sum()
    }

    /// Packets that were counted at the first host.
    pub fn counted(&self, hook: Hook, reason: Reason) -> u64 {
        self.members[0].counters().unwrap().packets(hook, reason)
    }
}

/// The routers between the switch and host `index`.
pub fn path(lab: &Lab, index: usize) -> &RoutedPath {
    lab.host(index).path().unwrap()
}

/// Sends one IPv4 packet of `size` bytes, an ICMP echo, from a container that knows nothing of the path.
pub fn probe(from: &Container, to: Ipv4Addr, size: u32, df: bool) -> Fate {
    from.exec("ip route flush cache").unwrap();
    let options = PingOptions { count: 1, size: size - 28, df, timeout: 0.5, ..PingOptions::default() };
    let ping = from.ping(to, options).unwrap();
    assert!(!ping.output.contains("mtu="), "its own device refused it: {}", ping.output);
    match ping.frag_needed {
        _ if ping.complete() => Fate::Arrived,
        Some(mtu) => Fate::Told(mtu),
        None => Fate::Lost,
    }
}

/// A counter of /proc/net/snmp's IPv4.
pub fn ip_counter(namespace: &Namespace, name: &str) -> u64 {
    counter(namespace, "/proc/net/snmp", "Ip:", name)
}

/// A counter of TCP in /proc/net/netstat.
pub fn tcp_counter(namespace: &Namespace, name: &str) -> u64 {
    counter(namespace, "/proc/net/netstat", "TcpExt:", name)
}

/// Reads a counter from a line of names followed by one of numbers, both of which begin with the group.
fn counter(namespace: &Namespace, file: &str, group: &str, name: &str) -> u64 {
    let text = namespace.exec(&format!("cat {file}")).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with(group)).map(|line| line.split_whitespace());
    let (names, mut numbers) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.into_iter().position(|found| found == name).unwrap();
    numbers.nth(at).unwrap().parse().unwrap()
}

/// Waits up to thirty seconds.
pub fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    wait_until(what, Duration::from_secs(30), || Ok(ready())).unwrap();
}

fn is_learned(member: &Member, address: Ipv4Addr) -> bool {
    let rows: serde_json::Value =
        serde_json::from_str(&member.overlay(&["endpoints", "--json"]).unwrap()).unwrap();
    let address = address.to_string();
    rows.as_array().unwrap().iter().any(|row| row["address"] == address.as_str())
}
