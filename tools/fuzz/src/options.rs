//! What is asked of the fuzzer.
use clap::{Args, ValueEnum};

/// What to fuzz.
#[derive(Args, Clone, Debug)]
pub struct FuzzOptions {
    /// How many frames, at least; those that belong together are not parted.
    #[arg(long, default_value_t = 100_000)]
    pub frames: u64,
    /// The same seed makes the same frames. Without one the clock gives it, and it is printed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where our host decapsulates.
    #[arg(long, value_enum, default_value_t = Ingress::Tc)]
    pub ingress: Ingress,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Where our host decapsulates. A way more is a variant, what its agents are told, and a word in `INGRESSES` of
/// tools/host-tests/tests/hostile.rs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ingress {
    /// At TC.
    Tc,
    /// In the driver, and TC for what XDP leaves.
    Xdp,
    /// Unwrapped in the driver, delivered at TC.
    XdpStrip,
}

impl Ingress {
    /// What an agent is told.
    pub(crate) fn agent(self) -> &'static [&'static str] {
        match self {
            Self::Tc => &[],
            Self::Xdp => &["--ingress", "xdp", "--endpoint-gro", "on"],
            Self::XdpStrip => &["--ingress", "xdp-strip"],
        }
    }
}
