//! The options of the fuzzer.
use clap::{Args, ValueEnum};

/// How the fuzzer runs.
#[derive(Args, Clone, Debug)]
pub struct FuzzOptions {
    /// The least number of frames; a case is always completed.
    #[arg(long, default_value_t = 100_000)]
    pub frames: u64,
    /// The same seed makes the same frames. Without it, the clock gives one, which is printed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where our host decapsulates.
    #[arg(long, value_enum, default_value_t = Ingress::Tc)]
    pub ingress: Ingress,
    /// Which connections our host's fast path carries.
    #[arg(long, value_enum, default_value_t = FastPath::On)]
    pub fast_path: FastPath,
    /// Prints the report as JSON.
    #[arg(long)]
    pub json: bool,
}

impl FuzzOptions {
    /// How our host is set up.
    pub(crate) fn setup(&self) -> Setup {
        Setup { ingress: self.ingress, fast_path: self.fast_path }
    }
}

/// Where our host decapsulates. A further ingress mode takes a variant here, its agent's options, and a word in
/// `SETUPS` of tools/host-tests/tests/hostile.rs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ingress {
    /// At TC.
    Tc,
    /// In the driver, and at TC what XDP leaves.
    Xdp,
    /// Outer headers stripped in the driver, delivered at TC.
    XdpStrip,
}

impl Ingress {
    /// The options of an agent with this ingress mode.
    pub(crate) fn agent(self) -> &'static [&'static str] {
        match self {
            Self::Tc => &[],
            Self::Xdp => &["--ingress", "xdp", "--endpoint-gro", "on"],
            Self::XdpStrip => &["--ingress", "xdp-strip"],
        }
    }
}

/// Which connections our host's fast path carries: the agent's option of this name. Under `off` it would carry none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FastPath {
    /// All that it can.
    On,
    /// Those that the stack has accepted in both directions.
    Established,
}

impl FastPath {
    /// The options of an agent in this mode.
    pub(crate) fn agent(self) -> &'static [&'static str] {
        match self {
            Self::On => &[],
            Self::Established => &["--fast-path", "established"],
        }
    }
}

/// How our host is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Where it decapsulates.
    pub ingress: Ingress,
    /// What its fast path carries.
    pub fast_path: FastPath,
}

impl Setup {
    /// The options of its agent.
    pub(crate) fn agent(self) -> Vec<&'static str> {
        [self.ingress.agent(), self.fast_path.agent()].concat()
    }
}
