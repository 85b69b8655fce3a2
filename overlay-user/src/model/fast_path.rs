//! Which packets between containers the programs carry past the host's stack: what is asked for, and what is in force.
use std::fmt;

use overlay_common::{FAST_PATH_ESTABLISHED, FAST_PATH_OFF, FAST_PATH_ON};
use serde::{Deserialize, Serialize};

/// Which packets between containers the programs carry past the host's stack, and so past its packet filter. One that is greater
/// leaves more to the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

impl FastPath {
    /// The number by which the programs are told (`FAST_PATH_*`).
    pub const fn number(self) -> u32 {
        match self {
            Self::On => FAST_PATH_ON,
            Self::Established => FAST_PATH_ESTABLISHED,
            Self::Off => FAST_PATH_OFF,
        }
    }

    /// The one with this number. What the programs do not know, they take for off.
    pub const fn numbered(number: u32) -> Self {
        match number {
            FAST_PATH_ON => Self::On,
            FAST_PATH_ESTABLISHED => Self::Established,
            _ => Self::Off,
        }
    }
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

/// What `--fast-path` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AskedFastPath {
    /// As much as the host's packet filter allows, by what its rules are at the time.
    #[default]
    Auto,
    /// [`FastPath::On`], whatever the rules are.
    On,
    /// [`FastPath::Established`], whatever the rules are.
    Established,
    /// [`FastPath::Off`].
    Off,
}

impl AskedFastPath {
    /// The one that is asked for, unless the rules decide.
    pub const fn fixed(self) -> Option<FastPath> {
        match self {
            Self::Auto => None,
            Self::On => Some(FastPath::On),
            Self::Established => Some(FastPath::Established),
            Self::Off => Some(FastPath::Off),
        }
    }
}

impl fmt::Display for AskedFastPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fixed() {
            None => f.write_str("auto"),
            Some(fixed) => fixed.fmt(f),
        }
    }
}

/// What of the fast path is in force, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastPathStatus {
    /// What was asked for.
    pub asked: AskedFastPath,
    /// What is in force.
    pub effective: FastPath,
    /// Why it is that: a rule, a policy or an option. It is empty where the fast path is on.
    pub why: String,
    /// A number of the rules that were followed for it; see [`crate::host::firewall::fingerprint`]. It is zero where the rules
    /// make no difference, or where their number cannot be told.
    pub rules: u32,
    /// What could refuse, alter or delay frames that a bridge forwards from one container of this host to another, whatever was asked
    /// for; or that the fast path is off. `None` if nothing could.
    #[serde(default)]
    pub at_bridges: Option<String>,
}
