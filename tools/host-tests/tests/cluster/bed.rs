//! A network of hosts for one test: how it is started, what is asked of it, and what it must answer.
use std::{
    net::Ipv4Addr,
    ops::{Index, IndexMut},
    path::{Path, PathBuf},
    time::Duration,
};

pub use overlay_host_tests::overlay;
use overlay_lab::{
    self as lab, Backend, Container, Host, Lab, Member, Options, Ping, PingOptions, Store, etcd::Etcd,
    wait_until,
};
use serde_json::Value;

/// Where leases are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Folder,
    Etcd,
}

/// The agents' options for each mode in which packets take the fast path.
pub const MODES: [&[&str]; 2] = [&["--fast-path", "on"], &["--fast-path", "established"]];

/// Hosts that take part. When it is dropped, the fields end in this order: the agents, the store, and everything else.
pub struct Bed {
    /// Whether every connection begins on the stack (`--fast-path established`).
    pub established: bool,
    pub members: Vec<Member>,
    pub store: Store,
    pub lab: Lab,
}

impl Bed {
    /// Makes `hosts` hosts with agents and two containers each.
    pub fn new(kind: Kind, hosts: u8) -> Self {
        Self::with(kind, Options { hosts, ..Options::default() }, &[])
    }

    /// Makes hosts on an underlay with these options, whose agents have the options `agent`.
    pub fn with(kind: Kind, options: Options, agent: &[&str]) -> Self {
        Self::with_config(kind, options, Backend::Vxlan.config(), agent)
    }

    /// Makes hosts as [`Bed::with`] does, with another config.
    pub fn with_config(kind: Kind, options: Options, config: &str, agent: &[&str]) -> Self {
        let lab = Lab::new(options).unwrap();
        let store = match kind {
            Kind::Folder => Store::folder(&lab),
            Kind::Etcd => Store::etcd(&lab).unwrap(),
        };
        let members = lab::populate_with(&lab, overlay(), &store, config, agent).unwrap();
        let mut bed = Self { established: agent.contains(&"established"), members, store, lab };
        bed.wait_for_peers(usize::from(bed.lab.hosts().len() as u8) - 1);
        bed
    }

    pub fn etcd(&mut self) -> &mut Etcd {
        self.store.as_etcd().unwrap()
    }

    /// Waits until every host has exactly `count` peers.
    pub fn wait_for_peers(&mut self, count: usize) {
        for member in &self.members {
            wait_for(&format!("{count} peers on {}", member.host.name()), || peers(member).len() == count);
        }
    }

    /// Asserts that every container reaches every other.
    pub fn assert_all_reached(&self) {
        let all: Vec<_> = self.members.iter().flat_map(|member| &member.containers).collect();
        for from in &all {
            for to in all.iter().filter(|to| to.address() != from.address()) {
                assert_reaches(from, to.address());
            }
        }
    }

    /// Asserts that every container reaches every other and waits until all addresses are learned, so that the fast
    /// path carries everything from now on.
    pub fn learn_all(&self) {
        self.assert_all_reached();
        for member in &self.members {
            wait_for(&format!("the endpoints of {}", member.host.name()), || {
                member.containers.iter().all(|container| endpoint(member, container.address()).is_some())
            });
        }
    }

    /// The first containers of the first two hosts.
    pub fn pair(&self) -> (&Container, &Container) {
        (&self[0].containers[0], &self[1].containers[0])
    }
}

impl Index<usize> for Bed {
    type Output = Member;

    fn index(&self, index: usize) -> &Member {
        &self.members[index]
    }
}

impl IndexMut<usize> for Bed {
    fn index_mut(&mut self, index: usize) -> &mut Member {
        &mut self.members[index]
    }
}

/// Waits up to half a minute, which is far more than anything takes that is waited for, on a busy machine too.
pub fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    wait_until(what, Duration::from_secs(30), || Ok(ready())).unwrap();
}

pub fn pings(count: u32) -> PingOptions {
    PingOptions { count, interval: 0.02, ..PingOptions::default() }
}

/// Asserts that pings are answered, every one of them.
pub fn assert_reaches(from: &Container, to: Ipv4Addr) {
    let ping = from.ping(to, pings(2)).unwrap();
    assert!(ping.complete(), "{} -> {to}: {}", from.address(), ping.output);
}

/// Sends one packet with so many bytes of ICMP payload that must not be fragmented.
pub fn ping_df(from: &Container, to: Ipv4Addr, payload: u32) -> Ping {
    from.ping(to, PingOptions { count: 1, size: payload, df: true, ..PingOptions::default() }).unwrap()
}

/// What a command of `overlay` answers in JSON.
pub fn json(member: &Member, words: &[&str]) -> Value {
    let text = member.overlay(&[words, &["--json"]].concat()).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
}

/// What `overlay peers` shows: subnet, public address, VtepMAC (empty without VXLAN); in the order of the subnets.
pub fn peers(member: &Member) -> Vec<(String, String, String)> {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let rows = json(member, &["peers"]);
    let row = |row| (format!("{}/24", text(row, "subnet")), text(row, "public_ip"), text(row, "vtep_mac"));
    rows.as_array().unwrap().iter().map(row).collect()
}

/// What `overlay endpoints` shows about an address.
pub fn endpoint(member: &Member, address: Ipv4Addr) -> Option<Value> {
    let rows = json(member, &["endpoints"]);
    let address = address.to_string();
    rows.as_array().unwrap().iter().find(|row| row["address"] == address.as_str()).cloned()
}

/// Where the maps and links of a host are pinned.
pub fn pins(member: &Member) -> PathBuf {
    overlay_host_tests::pins(&member.host)
}

/// What bpftool says about a pin, which it reads without the agent.
pub fn bpftool(words: &[&str], pin: &Path) -> Value {
    let pin = pin.to_str().unwrap();
    let text = overlay_lab::command::run("bpftool", [&["-j"], words, &["pinned", pin]].concat()).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("bpftool {words:?} {pin}: {error}: {text}"))
}

/// Ids of everything that is pinned, by pin: maps, those maps that each agent makes anew, links, and the programs
/// behind the links.
#[derive(Debug, PartialEq, Eq)]
pub struct Ids {
    pub maps: Vec<(String, u64)>,
    pub indexes: Vec<(String, u64)>,
    pub links: Vec<(String, u64)>,
    pub programs: Vec<(String, u64)>,
}

pub fn ids(member: &Member) -> Ids {
    ids_in(&pins(member))
}

/// The ids in one folder of pins.
pub fn ids_in(pins: &Path) -> Ids {
    let id =
        |shown: &Value, field: &str| shown[field].as_u64().unwrap_or_else(|| panic!("no {field}: {shown}"));
    let names = |folder: &Path, wanted: fn(&Path) -> bool| {
        let mut paths: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| wanted(path))
            .collect();
        paths.sort();
        paths
    };
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let (maps, indexes, links, programs) = Default::default();
    let mut found = Ids { maps, indexes, links, programs };
    for path in names(pins, |path| path.is_file()) {
        let (name, id) = (name(&path), id(&bpftool(&["map", "show"], &path), "id"));
        if name.ends_with("_index") { &mut found.indexes } else { &mut found.maps }.push((name, id));
    }
    for path in names(&pins.join("links"), |_| true) {
        let link = bpftool(&["link", "show"], &path);
        found.links.push((name(&path), id(&link, "id")));
        found.programs.push((name(&path), id(&link, "prog_id")));
    }
    found
}

/// MAC address of overlay0.
pub fn vtep_mac(member: &Member) -> String {
    let link = member.host.exec("ip -j link show dev overlay0").unwrap();
    let link: Value = serde_json::from_str(&link).unwrap();
    link[0]["address"].as_str().unwrap().to_owned()
}

/// The key of a member's lease.
pub fn lease_key(subnet: &str) -> String {
    format!("/coreos.com/network/subnets/{}", subnet.replace('/', "-"))
}

/// A lease's value as flannel writes it.
pub fn flannel_lease(public_ip: Ipv4Addr, mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

/// Frames that a host's underlay device has sent; a GSO frame is one.
pub fn frames(host: &Host) -> u64 {
    let link = host.exec("ip -j -s link show dev eth0").unwrap();
    let link: Value = serde_json::from_str(&link).unwrap();
    link[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

/// Asserts that a transfer is cut into segments that fit the MTU when it leaves `host`, and that their inner checksums
/// are right, as on a real wire.
pub fn segments_are_right(host: &Host, from: &Container, to: &Container) {
    // The capture is made at the sender, where frames are as the wire gets them. At the receiver, GRO would have merged
    // them again.
    let capture = host.capture("eth0", &format!("udp port 8472 and src {}", host.address())).unwrap();
    lab::transfer(from, to, 2 << 20).unwrap();
    let packets = capture.lines().unwrap();
    let data: Vec<_> = packets.iter().filter(|packet| packet.contains("length 1398")).collect();
    // What the capture's buffer has no room for is missing from it.
    assert!(data.len() >= 100, "{} of {} packets are full", data.len(), packets.len());
    for packet in &packets {
        assert!(packet.contains("(correct)"), "{packet}");
        assert!(!packet.contains(" bad ") && !packet.contains("incorrect"), "{packet}");
    }
}

/// All filters at the interfaces of a host, as interface, direction, program and its id.
pub fn filters(host: &Host) -> Vec<(String, String, String, u64)> {
    let text = host.exec("bpftool -j net").unwrap();
    let shown: Value = serde_json::from_str(&text).unwrap();
    let text = |one: &Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
    let filters = shown[0]["tc"].as_array().unwrap();
    let read = |one: &Value| {
        (text(one, "devname"), text(one, "kind"), text(one, "name"), one["id"].as_u64().unwrap_or(0))
    };
    let mut filters: Vec<_> = filters.iter().map(read).collect();
    filters.sort();
    filters
}
