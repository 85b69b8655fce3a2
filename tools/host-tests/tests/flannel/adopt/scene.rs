//! A host of flannel's that is to be moved, what a move changes on it, and traffic to and from it.
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
};

use overlay_lab::{Container, Host, Numbered, NumberedReport, Options, Steady};
use serde_json::Value;

use super::super::{
    bed::{Bed, Flannel, FlannelHost, Mode, assert_reaches, lease_key, overlay, subnet_env, wait_for},
    rules,
};

/// Two hosts of flannel's whose containers have talked to each other. The first is to be moved.
pub struct Scene {
    pub bed: Bed,
    pub etcd: String,
}

impl Scene {
    pub fn new(flannel: &Flannel) -> Self {
        Self::with(flannel, Mode::Vxlan.config())
    }

    pub fn with(flannel: &Flannel, config: &str) -> Self {
        let mut bed = Bed::with(flannel, 0, 2, config, Options::default());
        let etcd = bed.etcd().client_url();
        let scene = Self { bed, etcd };
        // kube-proxy and ufw do this.
        rules::drop_invalid(&scene.moved().host);
        let (a, b) = scene.containers();
        assert_reaches(a, b.address());
        assert_reaches(b, a.address());
        scene
    }

    pub fn moved(&self) -> &FlannelHost {
        &self.bed.flannel[0]
    }

    pub fn other(&self) -> &FlannelHost {
        &self.bed.flannel[1]
    }

    pub fn containers(&self) -> (&Container, &Container) {
        (&self.moved().container, &self.other().container)
    }

    /// `overlay adopt-flannel` for the host that is moved. The folder `path` comes first in `PATH`.
    pub fn command(&self, words: &[&str], path: Option<&PathBuf>) -> Command {
        let host = &self.moved().host;
        let words = [&[overlay().to_str().unwrap(), "adopt-flannel"], words].concat();
        let mut command = host.namespace().command(&words).unwrap();
        command.env("OVERLAY_ETCD_ENDPOINTS", &self.etcd).env("OVERLAY_IFACE", "eth0");
        command.env("OVERLAY_BPF_ROOT", host.bpf_root());
        command.env("OVERLAY_STATE_DIR", host.folder().join("state"));
        command.env("OVERLAY_SUBNET_FILE", host.subnet_file());
        // The hosts have rules that `auto` would obey, and the fast path is what must not lose a packet.
        command.env("OVERLAY_FAST_PATH", "on");
        if let Some(first) = path {
            let rest = std::env::var("PATH").unwrap();
            command.env("PATH", format!("{}:{rest}", first.display()));
        }
        command
    }

    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words, None).output().unwrap()
    }

    /// Runs the command, asserts that it succeeds, and returns what it prints.
    pub fn done(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the command and asserts that it fails with these words.
    pub fn refused(&self, words: &[&str], says: &[&str]) {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {}", text(&output));
        for said in says {
            assert!(text(&output).contains(said), "`{said}` is not in: {}", text(&output));
        }
    }

    /// How many packets the moved host has dropped because connection tracking called them invalid.
    pub fn invalid(&self) -> u64 {
        let listed = self.moved().host.exec("nft -j list chain ip strict forward").unwrap();
        let counters = listed.split_once(r#""counter": {"packets": "#).unwrap_or_else(|| panic!("{listed}"));
        counters.1.split(',').next().unwrap().parse().unwrap()
    }

    pub fn lease(&mut self) -> String {
        let key = lease_key(&self.bed.flannel[0].subnet);
        self.bed.get(&key)
    }
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Everything of a host that a move changes or must not change.
#[derive(Debug, PartialEq, Eq)]
pub struct Picture(pub BTreeMap<&'static str, String>);

impl Picture {
    pub fn of(host: &Host) -> Self {
        let sorted = |line: &str| {
            let shown = host.exec(line).unwrap();
            let mut lines: Vec<_> = shown.lines().map(str::trim_end).collect();
            lines.sort_unstable();
            lines.join("\n")
        };
        let links = host.exec("ip -d -j link show type vxlan").unwrap();
        let mut links: Value = serde_json::from_str(&links).unwrap();
        for link in links.as_array_mut().unwrap() {
            // A device made anew has another index, but must be the same otherwise.
            link["ifindex"] = Value::Null;
        }
        // The interfaces' indexes are cut off.
        let addresses = host.exec("ip -4 -o address").unwrap();
        let mut addresses: Vec<_> =
            addresses.lines().filter_map(|line| line.split_once(": ")).map(|it| it.1).collect();
        addresses.sort_unstable();
        Self(BTreeMap::from([
            ("links", format!("{links:#}")),
            ("addresses", addresses.join("\n")),
            ("routes", sorted("ip route show")),
            ("neighbours", sorted("ip neigh show nud permanent")),
            ("forwarding", sorted("bridge fdb show").lines().filter(|line| line.contains(" dst ")).collect()),
            ("rules", rules::shown(host)),
            ("subnet.env", subnet_env(host)),
        ]))
    }

    #[track_caller]
    pub fn same(&self, after: &Self, what: &str) {
        for (name, before) in &self.0 {
            assert_eq!(before, &after.0[name], "{what}: {name}");
        }
    }
}

/// Numbered packets and a connection in each direction.
pub struct Traffic {
    pub numbered: [Numbered; 2],
    pub steady: [Steady; 2],
}

impl Traffic {
    pub fn start(scene: &Scene) -> Self {
        let (a, b) = scene.containers();
        let both = [(a, b), (b, a)];
        let traffic = Self {
            numbered: both.map(|(from, to)| Numbered::start(from, to, 1000).unwrap()),
            steady: both.map(|(from, to)| Steady::start(from, to).unwrap()),
        };
        traffic.flow_on();
        traffic
    }

    /// Waits until 500 more packets are sent.
    pub fn flow_on(&self) {
        let goal = self.numbered[0].sent() + 500;
        wait_for("packets to be sent", || self.numbered[0].sent() > goal);
    }

    /// Asserts that the connections still work, and returns what became of the packets that left the moved host and of
    /// those that came to it.
    pub fn finish(self) -> [NumberedReport; 2] {
        self.flow_on();
        for steady in self.steady {
            let report = steady.finish().unwrap();
            assert!(report.bytes > 0);
        }
        self.numbered.map(|numbered| {
            let report = numbered.finish().unwrap();
            assert_eq!(report.duplicated, 0);
            report
        })
    }
}

pub fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Makes a command that is found before the installed one. `does` is a shell script. Returns the command's folder.
pub fn in_place_of(host: &Host, command: &str, does: &str) -> PathBuf {
    let folder = host.folder().join("bin");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(command);
    fs::write(&path, format!("#!/bin/sh\n{does}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Whether an interface was up when `links` was printed.
pub fn is_up(links: &str, name: &str) -> bool {
    let link = links.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {links}"));
    link.contains(",UP")
}

/// All interfaces of a host, and whether they are up.
pub fn links(host: &Host) -> String {
    host.exec("ip -br link").unwrap()
}
