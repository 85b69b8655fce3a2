//! Programs of others that see packets before ours. One that ends the chain there takes the packets away from the fast path, and
//! from its checks.
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    attacher::interface_name,
    attachment::Attachment,
    foreign::{self, Foreign, is_named_as_ours},
};
use crate::datapath::DatapathError;

/// Others' programs in front of one of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InFront {
    /// Name of the interface.
    pub interface: String,
    /// Our program, whose packets they see first.
    pub program: String,
    /// Whether ours is a filter. Otherwise it is attached by TCX.
    pub as_filter: bool,
    /// Those in front of it, the first one first.
    pub others: Vec<Foreign>,
}

/// All of them at the interfaces at which these are attached, `as_filters` or else by TCX.
pub(super) fn of(attached: &[(Attachment, u32)], as_filters: bool) -> Result<Vec<InFront>, DatapathError> {
    let mut all = Vec::new();
    for (attachment, index) in attached {
        let direction = attachment.direction();
        let Some(interface) = interface_name(*index)? else { continue };
        let programs = foreign::programs(*index, direction)?;
        let others = if as_filters {
            // Whatever is attached by TCX runs before all filters.
            in_front(&programs, foreign::filters(*index, direction)?, attachment.program())
        } else {
            in_front(&[], programs, attachment.program())
        };
        if !others.is_empty() {
            all.push(InFront {
                interface,
                program: attachment.program().to_owned(),
                as_filter: as_filters,
                others,
            });
        }
    }
    Ok(all)
}

impl InFront {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        let last = "let it pass on what it does not handle (return -1, TCX_NEXT or TC_ACT_UNSPEC)";
        let is_filter = |one: &Foreign| matches!(one, Foreign::Filter { .. });
        match (self.others.iter().all(is_filter), self.others.iter().any(is_filter)) {
            (true, _) => format!("give its filter a priority above that of {} (7), or {last}", self.program),
            (_, true) => format!("attach them behind {}, or {last}", self.program),
            _ if self.as_filter => {
                format!(
                    "start the agent without --attach clsact, so that {} comes first, or {last}",
                    self.program
                )
            }
            _ => format!("detach it and attach it again behind {} (BPF_F_AFTER), or {last}", self.program),
        }
    }
}

impl fmt::Display for InFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others: Vec<String> = self.others.iter().map(Foreign::to_string).collect();
        let (interface, program) = (&self.interface, &self.program);
        write!(f, "at {interface}, {} sees packets before {program}", others.join(" and "))
    }
}

/// What stands in a chain before the last program of this name, with what runs before the whole chain. Of several networks'
/// programs at one interface, all have the same name: what is in front of any of them is told.
fn in_front(before: &[Foreign], chain: Vec<Foreign>, program: &str) -> Vec<Foreign> {
    let is_ours = |one: &Foreign| match one {
        Foreign::Program { name, .. } | Foreign::Filter { name, .. } => name == program,
        Foreign::Qdisc { .. } => false,
    };
    // Without ours, nothing is in front of it.
    let Some(place) = chain.iter().rposition(is_ours) else { return Vec::new() };
    let all = before.iter().cloned().chain(chain.into_iter().take(place));
    all.filter(|one| !is_named_as_ours(one)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str, id: u32) -> Foreign {
        Foreign::Program { name: name.to_owned(), id }
    }

    #[test]
    fn the_position_counts_and_not_the_presence() {
        let (ours, other) = (program("overlay_decap", 3), program("ends_it", 4));
        let found = |chain: &[&Foreign]| {
            in_front(&[], chain.iter().map(|one| (*one).clone()).collect(), "overlay_decap")
        };
        let one = vec![other.clone()];
        assert_eq!(found(&[&ours, &other]), []);
        assert_eq!(found(&[&other, &ours]), one);
        assert_eq!(found(&[&other]), [], "ours is not there");
        // The programs of another network are not in anybody's way.
        assert_eq!(found(&[&program("overlay_decap", 2), &ours]), []);
        assert_eq!(found(&[&program("overlay_encap", 2), &other, &ours]), one);
        let filter =
            Foreign::Filter { kind: "bpf".into(), name: "overlay_decap".into(), id: Some(9), priority: 7 };
        assert_eq!(in_front(&one, vec![filter], "overlay_decap"), one);
        let told = InFront {
            interface: "eth0".into(),
            program: "overlay_decap".into(),
            as_filter: false,
            others: vec![other],
        };
        assert_eq!(told.to_string(), "at eth0, TCX program ends_it (id 4) sees packets before overlay_decap");
        assert!(told.remedy().contains("BPF_F_AFTER"), "{}", told.remedy());
    }
}
