//! What the project needs beyond cargo: all of it for `cargo xtask setup`, for another command what that one needs. Looks
//! first, installs only what is missing, removes nothing.
use std::path::Path;

use anyhow::{Result, bail};
use overlay_project::project;

use self::{
    machine::{find_command, is_root},
    progress::{Progress, lock},
};

pub(crate) mod apt;
mod docker;
pub(crate) mod ebpf;
pub(crate) mod machine;
pub(crate) mod progress;
mod protoc;

/// What set-up is asked for: what will be done afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// The tests' rungs.
    Units,
    Kernel,
    Hosts,
    Vm,
    Fresh,
    /// The demo on a folder as the store.
    Demo,
    DemoEtcd,
    DemoDocker,
    Lab,
    Run,
    Bench,
    Scale,
    /// To draw again what such a run has found.
    Draw,
    Fuzz,
    Endure,
    Lints,
    /// To build the lab or the fuzzer alone, for their `--help`.
    Tool,
    /// The same for the benchmark.
    BenchTool,
}

impl For {
    /// Everything.
    pub(crate) const ALL: &[Self] = &[
        Self::Units,
        Self::Kernel,
        Self::Hosts,
        Self::Vm,
        Self::Fresh,
        Self::Demo,
        Self::DemoEtcd,
        Self::DemoDocker,
        Self::Lab,
        Self::Run,
        Self::Bench,
        Self::Scale,
        Self::Draw,
        Self::Fuzz,
        Self::Endure,
        Self::Lints,
        Self::Tool,
        Self::BenchTool,
    ];

    /// Whether the kernel programs are built for it.
    fn takes_programs(self) -> bool {
        !matches!(self, Self::Fresh | Self::Tool | Self::BenchTool)
    }

    /// Whether it makes network namespaces, or does something else that only root may do.
    fn takes_root(self) -> bool {
        LAB.contains(&self) || self == Self::Fresh
    }

    fn takes_docker(self) -> bool {
        matches!(self, Self::Hosts | Self::DemoDocker)
    }
}

/// A Debian package, the files that show it is there (any of them), what it is for, and who needs it.
struct Need {
    package: &'static str,
    shown_by: &'static [&'static str],
    purpose: &'static str,
    by: &'static [For],
}

const fn need(
    package: &'static str,
    shown_by: &'static [&'static str],
    purpose: &'static str,
    by: &'static [For],
) -> Need {
    Need { package, shown_by, purpose, by }
}

/// Who builds the agent or links its crates.
const AGENT: &[For] = &[
    For::Units,
    For::Kernel,
    For::Hosts,
    For::Vm,
    For::Demo,
    For::DemoEtcd,
    For::DemoDocker,
    For::Lab,
    For::Run,
    For::Bench,
    For::Scale,
    For::Draw,
    For::Fuzz,
    For::Endure,
    For::Lints,
    For::BenchTool,
];
/// Who makes hosts.
const LAB: &[For] = &[
    For::Kernel,
    For::Hosts,
    For::Vm,
    For::Demo,
    For::DemoEtcd,
    For::DemoDocker,
    For::Lab,
    For::Bench,
    For::Fuzz,
    For::Endure,
];
/// Who starts an etcd.
const ETCD: &[For] = &[For::Units, For::Hosts, For::DemoEtcd, For::Bench, For::Scale, For::Endure];

const NEEDS: &[Need] = &[
    need("gcc", &["cc"], "links every Rust program", For::ALL),
    need("libc6-dev", &["/usr/include/stdio.h"], "links every Rust program", For::ALL),
    need("protobuf-compiler", &["protoc"], "the etcd client's build generates its messages", AGENT),
    need("libprotobuf-dev", &["/usr/include/google/protobuf/empty.proto"], "types those messages use", AGENT),
    need("iproute2", &["ip"], "namespaces and links of the lab", LAB),
    need("nftables", &["nft"], "masquerading, and firewalls of the lab's hosts", LAB),
    need("iptables", &["iptables"], "forward rules of the lab's hosts", LAB),
    need("iputils-ping", &["ping"], "pings of the lab", LAB),
    need("ethtool", &["ethtool"], "offloads of the lab's links", LAB),
    need("tcpdump", &["tcpdump"], "captures of the lab", LAB),
    need(
        "fonts-dejavu-core",
        &["/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"],
        "text in the plots of measurements",
        &[For::Units, For::Hosts, For::Bench, For::Scale, For::Draw],
    ),
    need("iperf3", &["iperf3"], "TCP streams of the lab", LAB),
    need(
        "bpftool",
        &["bpftool"],
        "reads pinned maps in the tests, programs' run times in the benchmark; detaches programs in endure",
        &[For::Kernel, For::Hosts, For::Bench, For::Endure],
    ),
    need("etcd-server", &["etcd"], "the store of the demo and the tests", ETCD),
    need("etcd-client", &["etcdctl"], "looks at that store from outside", ETCD),
    need("openssl", &["openssl"], "certificates of the test etcd", ETCD),
    need("binutils", &["strip"], "takes debug symbols out of what goes into VMs", &[For::Vm]),
    need(
        "python3-scapy",
        &["/usr/lib/python3/dist-packages/scapy"],
        "frames not made by our own code",
        &[For::Units, For::Kernel, For::Hosts],
    ),
    need("debootstrap", &["debootstrap"], "makes a bare machine's root", &[For::Fresh]),
    need("git", &["git"], "clones the project into that root", &[For::Fresh]),
];

/// Brings in what is missing for `what`. Prints one line per thing it does, and one at the end.
pub(crate) fn provide(what: &[For]) -> Result<()> {
    let progress = Progress::start();
    // `setup` itself, which asks for everything, goes on without root and brings what it can.
    if what != For::ALL && what.iter().any(|one| one.takes_root()) && !is_root() {
        bail!("this makes network namespaces and loads programs into the kernel: run it as root");
    }
    let _lock = lock(&project::target(), &progress)?;
    let wanted = |need: &&Need| what.iter().any(|one| need.by.contains(one)) && !is_there(need);
    let missing: Vec<_> = NEEDS.iter().filter(wanted).collect();
    for need in &missing {
        progress.say(&format!("{} is missing: {}", need.package, need.purpose));
    }
    let names: Vec<_> = missing.iter().map(|need| need.package).collect();
    let takes = |kind: fn(For) -> bool| what.iter().any(|one| kind(*one));
    let done = apt::install(&names, &progress)
        .and_then(|()| if takes(|one| AGENT.contains(&one)) { protoc::check() } else { Ok(()) })
        .and_then(|()| if takes(For::takes_programs) { ebpf::provide(&progress) } else { Ok(()) })
        .and_then(|()| if takes(For::takes_docker) { docker::provide(&progress) } else { Ok(()) });
    if let Err(error) = done {
        let mut advice = by_hand(&names);
        if takes(For::takes_programs) {
            advice += ebpf::BY_HAND;
        }
        if takes(For::takes_docker) {
            advice += docker::BY_HAND;
        }
        bail!("{error:#}\n{advice}");
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
    advice
}

fn is_there(need: &Need) -> bool {
    need.shown_by.iter().any(|mark| {
        if mark.starts_with('/') { Path::new(mark).exists() } else { find_command(mark).is_some() }
    })
}
