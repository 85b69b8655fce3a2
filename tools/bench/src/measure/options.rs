//! The options of the benchmark.
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{jobs::Group, network::Case};

/// How the benchmark runs.
#[derive(Args, Debug)]
pub struct BenchOptions {
    /// Measures fewer points, in short samples, in 3 rounds and on veth's default underlay only. For a quick look
    /// within 3 minutes once the agent is built.
    #[arg(long)]
    pub(super) quick: bool,
    /// Rounds [default: 5, with --quick 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) rounds: Option<u32>,
    /// Milliseconds of each sample [default: 300, with --quick 100].
    #[arg(long, value_parser = clap::value_parser!(u64).range(10..))]
    pub(super) milliseconds: Option<u64>,
    /// Measures only these groups.
    #[arg(long, value_name = "MEASURE", value_delimiter = ',')]
    pub(super) only: Vec<Group>,
    /// Compares only these networks, besides the bare route and its twin.
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    pub(super) networks: Vec<Case>,
    /// How frames cross between the hosts [default: both, with --quick veth].
    #[arg(long, value_delimiter = ',')]
    pub(super) underlay: Vec<Underlay>,
    /// Numbers of peers to compare; 1 is always among them [default with --quick: 100000].
    #[arg(long, value_delimiter = ',', default_value = "1,1000,10000,100000")]
    pub(super) peers: Vec<u32>,
    /// Compares with another build of `overlay` too: this program. Its hosts, with VXLAN, take turns with the other
    /// networks, and what the kernel says of our programs' time is given as a ratio to its. Numbers of peers are not compared with it. It may be an older version, as long as the networks can be built
    /// with it.
    #[arg(long, value_name = "PROGRAM")]
    pub(super) beside: Option<PathBuf>,
    /// Compares with the same network after this command too. A shell runs it in the network namespace of each of its hosts and
    /// containers; the variable PLACE says `host` or `container`. So a setting's worth can be measured, such as
    /// 'ethtool -K eth0 gro on' in containers.
    #[arg(long, value_name = "COMMAND")]
    pub(super) altered: Option<String>,
    /// Compares the ratios with those of the run that wrote this file.
    #[arg(long, value_name = "OLD.json")]
    pub(super) compare: Option<PathBuf>,
    /// Measures nothing, and draws the plots of the run that wrote this file.
    #[arg(long, value_name = "RESULTS.json", conflicts_with = "compare")]
    pub(super) draw: Option<PathBuf>,
    /// The folder that the results are written to.
    #[arg(long, value_name = "FOLDER")]
    pub(super) out: Option<PathBuf>,
}

impl BenchOptions {
    /// The groups that are measured.
    pub(super) fn groups(&self) -> Vec<Group> {
        chosen(&self.only, Group::value_variants().to_vec())
    }
}

/// The kinds of underlay, which differ in the veths' offloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Underlay {
    /// veth's default: 64 KiB frames cross whole, with unfinished checksums.
    Veth,
    /// `tso off gso off tx off`, `gro on`: one frame per segment, as behind a NIC without offloads.
    WireLike,
}

impl Underlay {
    /// Name of the underlay in the results.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::WireLike => "wire-like",
        }
    }
}

/// What the user chose, or else the default.
pub(super) fn chosen<T: Clone>(asked: &[T], default: Vec<T>) -> Vec<T> {
    if asked.is_empty() { default } else { asked.to_vec() }
}
