//! `cargo xtask setup`: everything the project needs beyond cargo. Looks first, installs only what is missing, removes nothing.
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Result, bail};
use nix::unistd::Uid;

use crate::command;

pub(crate) mod apt;
pub mod docker;
pub mod ebpf;

/// A Debian package, the files that show it is there (any of them), and what it is for.
struct Need {
    package: &'static str,
    shown_by: &'static [&'static str],
    purpose: &'static str,
}

const fn need(package: &'static str, shown_by: &'static [&'static str], purpose: &'static str) -> Need {
    Need { package, shown_by, purpose }
}

const NEEDS: &[Need] = &[
    need("gcc", &["cc"], "links every Rust program"),
    need("libc6-dev", &["/usr/include/stdio.h"], "links every Rust program"),
    need("protobuf-compiler", &["protoc"], "the etcd client's build generates its messages"),
    need("libprotobuf-dev", &["/usr/include/google/protobuf/empty.proto"], "types those messages use"),
    need("iproute2", &["ip"], "namespaces and links of the lab"),
    need("nftables", &["nft"], "masquerading, and firewalls of the lab's hosts"),
    need("iptables", &["iptables"], "forward rules of the lab's hosts"),
    need("iputils-ping", &["ping"], "pings of the lab"),
    need("ethtool", &["ethtool"], "offloads of the lab's links"),
    need("tcpdump", &["tcpdump"], "captures of the lab"),
    need(
        "fonts-dejavu-core",
        &["/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"],
        "text in the benchmark's plots",
    ),
    need("iperf3", &["iperf3"], "TCP streams of the lab"),
    need("bpftool", &["bpftool"], "reads pinned maps in the tests, programs' run times in the benchmark"),
    need("etcd-server", &["etcd"], "the store of the demo and the tests"),
    need("etcd-client", &["etcdctl"], "looks at that store from outside"),
    need("openssl", &["openssl"], "certificates of the test etcd"),
    need("binutils", &["strip"], "takes debug symbols out of what goes into VMs"),
    need("python3-scapy", &["/usr/lib/python3/dist-packages/scapy"], "frames not made by our own code"),
];

/// Brings in everything that is missing. Prints one line per thing it does, and one at the end.
pub fn setup() -> Result<()> {
    let progress = Progress::start();
    let missing: Vec<_> = NEEDS.iter().filter(|need| !is_there(need)).collect();
    for need in &missing {
        progress.say(&format!("{} is missing: {}", need.package, need.purpose));
    }
    let names: Vec<_> = missing.iter().map(|need| need.package).collect();
    let done = apt::install(&names, &progress)
        .and_then(|()| ebpf::provide(&progress))
        .and_then(|()| docker::provide(&progress));
    if let Err(error) = done {
        bail!("{error:#}\n{}", by_hand(&names));
    }
    progress.say("set-up: everything is there");
    Ok(())
}

/// What to do where this program cannot install anything itself.
fn by_hand(missing: &[&str]) -> String {
    let mut advice = String::from("what to do by hand:\n");
    if !missing.is_empty() {
        advice += &format!(
            "  on Debian, as root: apt-get install --no-install-recommends {}\n  elsewhere: the packages that bring the same commands\n",
            missing.join(" ")
        );
    }
    advice + ebpf::BY_HAND + docker::BY_HAND
}

/// Says what is being done and how long it took to get there.
pub(crate) struct Progress(Instant);

impl Progress {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn say(&self, text: &str) {
        eprintln!("[setup {:6.1} s] {text}", self.0.elapsed().as_secs_f32());
    }
}

fn is_there(need: &Need) -> bool {
    need.shown_by.iter().any(|mark| {
        if mark.starts_with('/') { Path::new(mark).exists() } else { find_command(mark).is_some() }
    })
}

/// Where `name` is, in PATH or where root's commands live.
pub(crate) fn find_command(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Runs a long command quietly; its output appears only in the error.
fn quietly(command: &mut Command) -> Result<()> {
    command::output(command.stdin(std::process::Stdio::null())).map(drop)
}

fn is_root() -> bool {
    Uid::effective().is_root()
}
