//! What XDP does with packets from other hosts before TC sees them, or why it does nothing.
use std::fmt;

use serde::{Deserialize, Serialize};

/// What XDP does, or why it does nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    /// What it does.
    pub xdp: Option<XdpMode>,
    /// Why it does nothing; empty if it does something.
    pub why: String,
}

impl Ingress {
    /// XDP does nothing.
    pub fn without(why: impl Into<String>) -> Self {
        Self { xdp: None, why: why.into() }
    }
}

/// What an XDP program does with a packet for a container here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XdpMode {
    /// Hands it to the container's veth.
    #[serde(rename = "xdp")]
    Redirect,
    /// Takes its outer headers off, so that GRO can merge the inner packets before TC delivers them.
    #[serde(rename = "xdp-strip")]
    Strip,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redirect => "redirects into the containers' veths",
            Self::Strip => "unwraps for GRO and TC",
        })
    }
}

impl XdpMode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Redirect, Self::Strip];
}
