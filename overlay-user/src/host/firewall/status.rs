//! In which state the rules in the packet filter are found, in the words of the agent's status.
use serde::{Deserialize, Serialize};

/// The rules, as they were when last looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesStatus {
    /// Masquerading of what leaves the overlay.
    pub masquerade: RuleStatus,
    /// Accepting the overlay's packets where FORWARD drops.
    pub forward: RuleStatus,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// Whether it is in force.
    pub state: RuleState,
    /// How often somebody else had removed or altered it, and it was put back, since the agent started.
    pub restored: u64,
    /// Why it could not be put in force.
    pub error: Option<String>,
}

/// Whether a rule is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleState {
    /// Not asked for.
    #[default]
    Off,
    /// Asked for, and there is no command to look by: it is not known whether there is something for it to do.
    Absent,
    /// Asked for, and there is nothing for it to do.
    Unneeded,
    /// In force.
    Active,
    /// Asked for, and could not be put in force.
    Failed,
}

/// What a look did; of several the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Looked {
    /// There is no command to look by.
    Absent,
    /// There is nothing for the rule to do.
    Unneeded,
    /// It was as it should be.
    Kept,
    /// It was written.
    Written,
}
