//! Which packets between containers the programs carry past the host's stack.
use std::fmt;

use serde::{Deserialize, Serialize};

/// Which packets between containers the programs carry past the host's stack, and so past its packet filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FastPath {
    /// All that they can.
    #[default]
    On,
    /// Those of connections that the stack, with whatever packet filter there is, has accepted in both directions.
    Established,
    /// None.
    Off,
}

impl fmt::Display for FastPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Established => "established",
            Self::Off => "off",
        })
    }
}
