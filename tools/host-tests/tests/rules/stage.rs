//! Two hosts with a container each that talk, and the rules that are put before them and taken away again.
use std::{
    fs,
    net::{SocketAddrV4, UdpSocket},
    time::Duration,
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use overlay_lab::{Backend, Member, Options, wait_until};
use overlay_user::host::firewall::fingerprint::fingerprint;

use super::arrivals::Names;
use crate::bed::{Bed, Kind, json};

/// How long anything may take that should happen soon.
const SOON: Duration = Duration::from_secs(60);
/// How often a packet goes through the CPU's queue until everything before it has arrived. The longest path between two
/// containers has five queues, and a question needs an answer.
const TURNS: usize = 64;
/// A service's address, which every host's routes drop.
pub const SERVICE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 96, 0, 10);

/// Changes nothing in the end, but makes the kernel send news of rules, so that an agent looks at them at once.
pub const NEWS: &str = "add table ip news\ndelete table ip news\n";

/// Removes all rules, and the routing policies of rows. Of what it removes by iptables' older variant there is no news either, so it
/// makes some with `$NEWS`, which is [`NEWS`].
const CLEAR: &str = "
    nft flush ruleset
    for table in $(cat /proc/net/ip_tables_names 2>/dev/null); do
        iptables-legacy -t $table -F
        iptables-legacy -t $table -X
        iptables-legacy -t $table -S | sed -n 's/^-P \\([A-Z]*\\) DROP$/\\1/p' | while read chain; do
            iptables-legacy -t $table -P $chain ACCEPT
        done
    done
    [ -z \"$(cat /proc/net/ip_tables_names 2>/dev/null)\" ] || nft \"$NEWS\"
    while ip rule delete pref 1000 2>/dev/null; do :; done
    ip route flush table 100 2>/dev/null || true
";

/// Two hosts whose agents were started with the same options.
pub struct Stage {
    /// The hosts.
    pub bed: Bed,
    /// What addresses are called.
    pub names: Names,
    /// Whether the agents look at the rules at all.
    asks_rules: bool,
    /// A socket that sends to itself by a loopback device.
    loopback: UdpSocket,
}

impl Stage {
    /// Makes the hosts, with this `--fast-path`. All their containers are learned.
    pub fn new(fast_path: &str) -> Self {
        let agent = ["--fast-path", fast_path];
        let bed = Bed::with_config(Kind::Folder, Options::default(), Backend::Vxlan.config(), &agent);
        bed.learn_all();
        for member in &bed.members {
            let containers = member.containers.iter().map(|container| container.namespace());
            for namespace in containers.chain([member.host.namespace()]) {
                // Whether an ICMP error is sent must not depend on how many were sent in the second before.
                namespace.sysctl("ipv4/icmp_ratemask", "0").unwrap();
            }
            // Of routes that do not exist, senders are told at a limited rate that no namespace can change for itself.
            member.host.namespace().ip(&format!("route add blackhole {SERVICE}")).unwrap();
        }
        let mut addresses = std::collections::HashMap::from([(SERVICE, "service".to_owned())]);
        for (number, name, member) in [(1, "a", &bed[0]), (2, "b", &bed[1])] {
            let container = member.containers[0].address();
            let [x, y, z, _] = container.octets();
            let own = |last| std::net::Ipv4Addr::new(x, y, z, last);
            // What TCP sends again, and what is answered to that, would depend on how long everything takes.
            let namespace = member.containers[0].namespace();
            namespace.ip(&format!("route change default via {} rto_min 60s", own(1))).unwrap();
            namespace.sysctl("ipv4/tcp_early_retrans", "0").unwrap();
            addresses.insert(container, name.to_owned());
            addresses.insert(own(0), format!("t{number}"));
            addresses.insert(own(1), format!("g{number}"));
            addresses.insert(member.host.address(), format!("h{number}"));
        }
        let loopback = bed.lab.switch().enter(|| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(socket.local_addr()?)?;
            socket.set_read_timeout(Some(SOON))?;
            Ok(socket)
        });
        let names = Names { addresses, ..Names::default() };
        Self { bed, names, asks_rules: fast_path != "off", loopback: loopback.unwrap() }
    }

    /// The address of the container that talks on a host, with a port.
    pub fn container(&self, host: usize, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.bed[host].containers[0].address(), port)
    }

    /// Returns when everything that this thread has sent, and what was answered without a process, has arrived or is lost.
    ///
    /// A packet that crosses a veth waits in the queue of its CPU, which the loopback device uses too, and which is first in,
    /// first out. This thread keeps to one CPU. So each time that a packet of its own has passed the queue, every packet that
    /// was sent before has come at least one device further.
    pub fn drain(&self) {
        for _ in 0..TURNS {
            self.loopback.send(b"turn").unwrap();
            self.loopback.recv(&mut [0; 8]).unwrap();
        }
    }

    /// Carries a script out on a host, and returns what it said if it failed.
    pub fn apply(&self, host: usize, script: &str) -> Result<(), String> {
        let address = |name: &str| {
            let found = self.names.addresses.iter().find(|(_, found)| *found == name);
            found.map(|(address, _)| address.to_string()).unwrap()
        };
        let variables = ["a", "b", "g1", "g2", "h1", "h2", "t1", "t2"].map(|name| (name, address(name)));
        let member = &self.bed[host];
        let file = member.host.folder().join("rules");
        let of_nft = ["table", "add"].iter().any(|word| script.trim_start().starts_with(word));
        let (text, words) = if of_nft {
            let defined: String =
                variables.iter().map(|(name, address)| format!("define {name} = {address}\n")).collect();
            (defined + script, ["nft", "-f"])
        } else {
            (script.to_owned(), ["sh", "-e"])
        };
        fs::write(&file, text).unwrap();
        let words = [&words[..], &[file.to_str().unwrap()]].concat();
        let mut command = member.host.namespace().command(&words).unwrap();
        command.envs(variables.iter().map(|(name, value)| (name, value))).env("NEWS", NEWS);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(()).ok_or(said)
    }

    /// Removes all rules on both hosts.
    pub fn clear(&self) {
        (0..2).for_each(|host| self.apply(host, CLEAR).unwrap());
    }

    /// Waits until a script succeeds on a host.
    #[track_caller]
    pub fn wait_for(&self, host: usize, script: &str) {
        wait_until(script, SOON, || Ok(self.apply(host, script).is_ok())).unwrap();
    }

    /// Waits until the agents have decided about the present rules.
    pub fn settle(&self) {
        for member in self.bed.members.iter().filter(|_| self.asks_rules) {
            let rules = || {
                let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
                member.host.namespace().enter(move || runtime()?.block_on(fingerprint())).unwrap()
            };
            let known = || json(member, &["status"])["agent"]["fast_path"]["rules"].as_u64();
            wait_until("the agent to know the rules", SOON, || Ok(known() == Some(rules().into()))).unwrap();
        }
    }
}

/// The options of an agent that looks at the rules by itself.
pub const AUTO: [&str; 2] = ["--fast-path", "auto"];

/// The path that a member's agent has decided on, and why; empty if it was started with a fixed one.
pub fn decided(member: &Member) -> (String, String) {
    let status = json(member, &["status"]);
    let text = |name: &str| status["agent"]["fast_path"][name].as_str().unwrap_or_default().to_owned();
    (text("effective"), text("why"))
}

/// Waits until a host's agent has decided on this path.
#[track_caller]
pub fn eventually(bed: &Bed, host: usize, path: &str) {
    let mut last = Default::default();
    let reached = wait_until(path, SOON, || {
        last = decided(&bed[host]);
        Ok(last.0 == path)
    });
    reached.unwrap_or_else(|error| panic!("{error}: {last:?}"));
}

/// Keeps this thread, and what it starts, on one CPU.
pub fn keep_to_cpu(number: usize) {
    let present = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let usable: Vec<_> = (0..CpuSet::count()).filter(|cpu| present.is_set(*cpu).unwrap_or(false)).collect();
    let mut one = CpuSet::new();
    one.set(usable[number % usable.len()]).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
}
