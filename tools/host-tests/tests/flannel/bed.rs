//! A network in which some hosts run flannel and some run the agent.
use std::{
    io::Write as _,
    net::{Ipv4Addr, UdpSocket},
    path::Path,
    sync::Once,
    thread,
    time::Duration,
};

use overlay_lab::{
    Container, Flanneld, Host, Lab, Member, NumberedReport, Options, PingOptions, Store, etcd::Etcd,
    populate_some,
};
use serde_json::Value;

pub use super::{
    cluster::{
        assert_reaches, bpftool, endpoint, flannel_lease, ids, json, lease_key, overlay, peers, ping_df,
        pins, vtep_mac, wait_for,
    },
    mode::Mode,
};

/// A flannel that takes part: its name in messages, and the command to run.
#[derive(Clone, Debug)]
pub struct Flannel {
    words: Vec<String>,
}

/// The stand-in, and the real flannel if `FLANNELD_BIN` names it. Every test runs with each.
pub fn flannels() -> Vec<Flannel> {
    static SAID: Once = Once::new();
    let own = std::env::current_exe().unwrap().display().to_string();
    let standin = [&own, "--exact", "flannel::standin::flanneld", "--ignored", "--nocapture"];
    let mut flannels = vec![Flannel { words: standin.map(str::to_owned).to_vec() }];
    let real = std::env::var("FLANNELD_BIN").ok();
    SAID.call_once(|| {
        let line = match &real {
            Some(path) => format!("flannel: the stand-in, and then {path}"),
            None => "flannel: the stand-in only; FLANNELD_BIN=/path/to/flanneld runs all of this against a real one, too"
                .to_owned(),
        };
        // This does not use eprintln, whose output the test harness would keep for itself.
        std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
    });
    flannels.extend(real.map(|path| Flannel { words: vec![path] }));
    flannels
}

/// Each flannel with each of these backends.
pub fn cases(modes: &[Mode]) -> Vec<(Flannel, Mode)> {
    let of = |flannel: Flannel| modes.iter().map(move |mode| (flannel.clone(), *mode));
    flannels().into_iter().flat_map(of).collect()
}

/// A host that runs flannel.
pub struct FlannelHost {
    pub host: Host,
    pub container: Container,
    /// Its subnet, such as `10.244.7.0/24`.
    pub subnet: String,
    pub flanneld: Option<Flanneld>,
    mode: Mode,
    flannel: Flannel,
    etcd: String,
}

impl FlannelHost {
    fn start(host: &Host, flannel: &Flannel, mode: Mode, etcd: &str) -> Self {
        let words: Vec<_> = flannel.words.iter().map(String::as_str).collect();
        let flanneld = host.start_flanneld(&words, etcd).unwrap();
        let (subnet, mtu) = told(host);
        host.add_bridge(&subnet, mtu).unwrap();
        let container = host.add_container("a", &subnet, 2, mtu).unwrap();
        let (flannel, etcd) = (flannel.clone(), etcd.to_owned());
        Self { host: host.clone(), container, subnet, flanneld: Some(flanneld), mode, flannel, etcd }
    }

    /// Ends flanneld. Its device, routes and lease stay, as flannel leaves them, except for the TUN of its UDP backend,
    /// which ends with its process.
    pub fn stop(&mut self) {
        self.flanneld.take().unwrap().terminate().unwrap();
    }

    /// Starts flanneld again.
    pub fn start_again(&mut self) {
        let words: Vec<_> = self.flannel.words.iter().map(String::as_str).collect();
        self.flanneld = Some(self.host.start_flanneld(&words, &self.etcd).unwrap());
        assert_eq!(told(&self.host).0, self.subnet);
    }

    /// Starts flanneld on a host that is no longer flannel's, where it writes its lease and then fails.
    pub fn start_in_vain(&self) {
        let words: Vec<_> = self.flannel.words.iter().map(String::as_str).collect();
        assert!(self.host.start_flanneld(&words, &self.etcd).is_err());
    }

    /// Does what a reboot does to the host: it gets another device, with another MAC address if the backend has one.
    pub fn restart_with_a_new_device(&mut self) {
        let before = self.mac();
        self.stop();
        if self.mode == Mode::Vxlan {
            self.host.namespace().ip("link delete flannel.1").unwrap();
        }
        self.start_again();
        assert!(self.mode != Mode::Vxlan || self.mac() != before, "still {before}");
    }

    /// MAC address of its tunnel device. It is empty without VXLAN.
    pub fn mac(&self) -> String {
        if self.mode != Mode::Vxlan {
            return String::new();
        }
        let link = self.host.exec("ip -j link show dev flannel.1").unwrap();
        let link: Value = serde_json::from_str(&link).unwrap();
        link[0]["address"].as_str().unwrap().to_owned()
    }

    /// The route by which its kernel sends packets to a subnet.
    pub fn route(&self, subnet: &str) -> String {
        self.host.exec(&format!("ip route show {subnet}")).unwrap().trim().to_owned()
    }

    /// Whether flannel on this host knows a peer for a subnet.
    pub fn knows(&self, subnet: &str) -> bool {
        if self.mode != Mode::Udp {
            return !self.route(subnet).is_empty();
        }
        // flannel's UDP relay shows its table to nobody, but it answers packets for which it has no route, into its own
        // device.
        let (read, answered) = self.relayed();
        let subnet: ipnet::Ipv4Net = subnet.parse().unwrap();
        let target = (Ipv4Addr::from(u32::from(subnet.network()) + 250), 9);
        let probe = move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            Ok(socket.send_to(&[0], target)?)
        };
        self.container.namespace().enter(probe).unwrap();
        wait_for("the relay", || self.relayed().0 > read);
        // The relay's only thread makes two system calls between the two counts.
        thread::sleep(Duration::from_millis(100));
        self.relayed().1 == answered
    }

    /// Packets that found the queues of flannel's UDP relay full, because its only thread did not get the CPU in time.
    fn lost_by_relay(&self) -> u64 {
        let link = self.host.exec("ip -j -s link show dev flannel0").unwrap();
        let link: Value = serde_json::from_str(&link).unwrap();
        let sockets = self.host.exec("nstat -a -s -z -j UdpRcvbufErrors").unwrap();
        let sockets: Value = serde_json::from_str(&sockets).unwrap();
        let of_socket = sockets["kernel"]["UdpRcvbufErrors"].as_u64().unwrap();
        link[0]["stats64"]["tx"]["dropped"].as_u64().unwrap() + of_socket
    }

    /// How many packets flannel's UDP relay has read from its device, and how many it has written to it.
    fn relayed(&self) -> (u64, u64) {
        let link = self.host.exec("ip -j -s link show dev flannel0").unwrap();
        let link: Value = serde_json::from_str(&link).unwrap();
        let packets = |way: &str| link[0]["stats64"][way]["packets"].as_u64().unwrap();
        (packets("tx"), packets("rx"))
    }

    /// Its lease, as it must be in etcd.
    pub fn lease(&self) -> String {
        self.mode.lease(self.host.address(), &self.mac())
    }

    /// Its row in `overlay peers`.
    pub fn peer(&self) -> (String, String, String) {
        (self.subnet.clone(), self.host.address().to_string(), self.mac())
    }
}

/// Subnet and MTU according to subnet.env.
fn told(host: &Host) -> (String, u32) {
    let text = std::fs::read_to_string(host.subnet_file()).unwrap();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
    };
    let subnet: ipnet::Ipv4Net = value("FLANNEL_SUBNET").parse().unwrap();
    (subnet.trunc().to_string(), value("FLANNEL_MTU").parse().unwrap())
}

/// Hosts of both kinds on one underlay and in one etcd. When it is dropped, the fields end in this order.
pub struct Bed {
    pub mode: Mode,
    pub ours: Vec<Member>,
    pub flannel: Vec<FlannelHost>,
    pub store: Store,
    pub lab: Lab,
}

impl Bed {
    /// Makes `ours` hosts that run the agent, and then `others` that run flannel, with VXLAN.
    pub fn new(flannel: &Flannel, ours: u8, others: u8) -> Self {
        Self::of(Mode::Vxlan, flannel, ours, others)
    }

    /// Does the same with another backend.
    pub fn of(mode: Mode, flannel: &Flannel, ours: u8, others: u8) -> Self {
        Self::with(flannel, ours, others, mode.config(), mode.underlay())
    }

    /// Does the same with another config and underlay.
    pub fn with(flannel: &Flannel, ours: u8, others: u8, config: &str, options: Options) -> Self {
        Self::with_agents(flannel, (ours, others), config, options, &[])
    }

    /// Does the same with other options for the agents.
    pub fn with_agents(
        flannel: &Flannel,
        (ours, others): (u8, u8),
        config: &str,
        options: Options,
        agent: &[&str],
    ) -> Self {
        let lab = Lab::new(Options { hosts: ours + others, ..options }).unwrap();
        let mut store = Store::etcd(&lab).unwrap();
        let etcd = store.as_etcd().unwrap();
        etcd.ctl(&["put", "/coreos.com/network/config", config]).unwrap();
        let url = etcd.client_url();
        let (of_us, of_flannel) = lab.hosts().split_at(ours.into());
        let mode = Mode::of(config);
        let start = |host| FlannelHost::start(host, flannel, mode, &url);
        // flannel starts first, so that the agents join a network which exists already.
        let flannel = of_flannel.iter().map(start).collect();
        let ours = populate_some(of_us, overlay(), &store, agent).unwrap();
        let bed = Self { mode, ours, flannel, store, lab };
        bed.know_each_other();
        bed
    }

    /// Waits until every host knows every other.
    pub fn know_each_other(&self) {
        for member in &self.ours {
            let count = self.ours.len() + self.flannel.len() - 1;
            wait_for(&format!("{count} peers of {}", member.host.name()), || peers(member).len() == count);
        }
        for host in &self.flannel {
            let others =
                self.flannel.iter().map(|other| &other.subnet).filter(|subnet| **subnet != host.subnet);
            for subnet in self.ours.iter().map(|member| &member.subnet).chain(others) {
                wait_for(&format!("{subnet} on {}", host.host.name()), || host.knows(subnet));
            }
        }
    }

    pub fn etcd(&mut self) -> &mut Etcd {
        self.store.as_etcd().unwrap()
    }

    /// The value of a key, without its newline.
    pub fn get(&mut self, key: &str) -> String {
        self.etcd().ctl(&["get", "--print-value-only", key]).unwrap().trim_end().to_owned()
    }

    /// All leases, as keys and values in the order of the keys.
    pub fn leases(&mut self) -> Vec<(String, String)> {
        let text = self.etcd().ctl(&["get", "--prefix", "/coreos.com/network/subnets"]).unwrap();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    }

    /// Removes the lease of a host that runs flannel, whereupon its flanneld ends.
    pub fn delete_lease(&mut self, subnet: &str) {
        let key = lease_key(subnet);
        assert_eq!(self.etcd().ctl(&["del", &key]).unwrap().trim(), "1", "{key}");
    }

    /// The VtepMAC in the lease of our first host. It is empty without VXLAN.
    pub fn our_mac(&self) -> String {
        if self.mode == Mode::Vxlan { vtep_mac(&self.ours[0]) } else { String::new() }
    }

    /// Asserts that nothing was lost or duplicated, apart from what flannel's relays say that they lost.
    pub fn assert_none_lost(&self, report: &NumberedReport) {
        let relays = self.flannel.iter().filter(|host| host.mode == Mode::Udp && host.flanneld.is_some());
        let by_relays: u64 = relays.map(FlannelHost::lost_by_relay).sum();
        assert_eq!(report.duplicated, 0, "{report:?}");
        assert!(report.lost <= by_relays, "{report:?}, {by_relays} of them by flannel's relay");
    }

    /// A container on a host of ours and one on a host of flannel's.
    pub fn pair(&self) -> (&Container, &Container) {
        (&self.ours[0].containers[0], &self.flannel[0].container)
    }

    /// Waits until every container reaches every other, and asserts that they keep reaching each other.
    pub fn assert_all_reached(&self) {
        let ours = self.ours.iter().flat_map(|member| &member.containers);
        let all: Vec<_> = ours.chain(self.flannel.iter().map(|host| &host.container)).collect();
        let once = PingOptions { count: 1, timeout: 0.3, ..PingOptions::default() };
        for from in &all {
            for to in all.iter().filter(|to| to.address() != from.address()) {
                wait_for(&format!("{} -> {}", from.address(), to.address()), || {
                    from.ping(to.address(), once).unwrap().complete()
                });
                assert_reaches(from, to.address());
            }
        }
    }

    /// Waits until every address of our containers is learned, so that the fast path carries their packets from now on.
    pub fn learn_all(&self) {
        self.assert_all_reached();
        for member in &self.ours {
            wait_for(&format!("the endpoints of {}", member.host.name()), || {
                member.containers.iter().all(|container| endpoint(member, container.address()).is_some())
            });
        }
    }
}

/// Sends one datagram of `bytes` bytes and compares what arrives.
pub fn datagram_arrives(from: &Container, to: &Container, bytes: usize) {
    let socket = |container: &Container| {
        container.namespace().enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?)).unwrap()
    };
    let (sender, receiver) = (socket(from), socket(to));
    let sent: Vec<u8> = (0..bytes).map(|at| (at * 7 + at / 256) as u8).collect();
    let target = (to.address(), receiver.local_addr().unwrap().port());
    sender.send_to(&sent, target).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut received = vec![0; 65536];
    let what = format!("{bytes} bytes {} -> {}", from.address(), to.address());
    let length = receiver.recv(&mut received).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(received[..length] == sent[..], "{what}: {length} bytes came, and not the same");
}

/// The text of a host's subnet.env, which tells Docker and CNI plugins about its subnet.
pub fn subnet_env(host: &Host) -> String {
    std::fs::read_to_string(Path::new(&host.subnet_file())).unwrap()
}
