//! In which state the rules in the packet filter are found, in the words of the agent's status.
use serde::{Deserialize, Serialize};

/// The state of the rules at the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesStatus {
    /// Masquerading of what leaves the overlay.
    pub masquerade: RuleStatus,
    /// Accepting the overlay's packets where the policy of FORWARD drops.
    pub forward: RuleStatus,
}

/// The state of one kind of rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// Whether the rule is in force.
    pub state: RuleState,
    /// How often the rule was put back since the agent started, because somebody else had removed or altered it.
    pub restored: u64,
    /// Why the rule could not be put in force.
    pub error: Option<String>,
}

/// Whether a rule is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleState {
    /// The rule was not asked for.
    #[default]
    Off,
    /// The rule was asked for, but there is no command to look with. So it is not known whether the rule is needed.
    Absent,
    /// The rule was asked for, but it is not needed here.
    Unneeded,
    /// The rule is in force.
    Active,
    /// The rule was asked for, and could not be put in force.
    Failed,
}

/// What a look found and did. Of several looks, the greatest value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Looked {
    /// There was no command to look with.
    Absent,
    /// The rule is not needed.
    Unneeded,
    /// The rule was as it should be.
    Kept,
    /// The rule was written.
    Written,
}
