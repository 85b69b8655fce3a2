//! What others have attached to interfaces at TC: queueing disciplines, filters and programs that are not this project's. The
//! kernel is asked, and says in which order they see a packet.
use std::{collections::BTreeMap, fmt};

use aya::programs::SchedClassifier;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{
    attacher::interface_name,
    attachment::{Attachment, attach_type},
};
use crate::{
    datapath::error::{DatapathError, errno},
    host::netlink::{
        NetlinkError,
        tc::{self, Direction, Filter},
    },
    model::entries::ForeignTc,
};

/// Something at an interface that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "what")]
pub enum Foreign {
    /// A queueing discipline.
    Qdisc {
        /// Its kind, such as `tbf`.
        kind: String,
    },
    /// A filter of a clsact or ingress qdisc.
    Filter {
        /// Its kind, such as `flower`.
        kind: String,
        /// Its name, if it is of the kind `bpf`.
        name: String,
        /// Id of its program, if it is of the kind `bpf`.
        id: Option<u32>,
        /// Its priority: filters with a lower one see the packet first.
        priority: u16,
    },
    /// A program attached by TCX.
    Program {
        /// Its name.
        name: String,
        /// Its id.
        id: u32,
    },
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Qdisc { kind } => write!(f, "queueing discipline {kind}"),
            Self::Filter { kind, name, id: Some(id), priority } => {
                write!(f, "{kind} filter {name} (id {id}) of priority {priority}")
            }
            Self::Filter { kind, id: None, priority, .. } => {
                write!(f, "{kind} filter of priority {priority}")
            }
            Self::Program { name, id } => write!(f, "TCX program {name} (id {id})"),
        }
    }
}

/// What others have at one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignAt {
    /// What sees packets that leave the host there.
    pub egress: Vec<Foreign>,
    /// What sees packets that enter the host there.
    pub ingress: Vec<Foreign>,
}

impl ForeignAt {
    /// On which sides there is anything.
    pub fn sides(&self) -> ForeignTc {
        ForeignTc { egress: !self.egress.is_empty(), ingress: !self.ingress.is_empty() }
    }

    /// What comes of it for the packets there, in words. `None` if there is nothing.
    pub fn effect(&self) -> Option<String> {
        let named = |all: &[Foreign]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match (self.egress.is_empty(), self.ingress.is_empty()) {
            (true, true) => None,
            (false, true) => Some(format!("{} gets what is delivered there", named(&self.egress))),
            (_, false) => {
                Some(format!("its packets take the stack, where {} sees them", named(&self.ingress)))
            }
        }
    }
}

/// Looks at interfaces, by index. One that is gone has nothing.
///
/// # Errors
/// When the kernel does not list qdiscs, filters or programs.
pub fn look(interfaces: &[u32]) -> Result<BTreeMap<u32, ForeignAt>, DatapathError> {
    let tc::Qdiscs { chosen, filtering } = tc::Qdiscs::list().map_err(failed)?;
    let mut found = BTreeMap::new();
    for &index in interfaces {
        let mut at = ForeignAt::default();
        at.egress.extend(chosen.get(&index).map(|kind| Foreign::Qdisc { kind: kind.clone() }));
        for (direction, side) in [(Direction::Egress, &mut at.egress), (Direction::Ingress, &mut at.ingress)]
        {
            side.extend(programs(index, direction)?.into_iter().filter(|one| !is_named_as_ours(one)));
            // The ingress qdisc answers for egress as if it had been asked for ingress.
            let has_filters = match filtering.get(&index) {
                Some(tc::FilterQdisc::Clsact) => true,
                Some(tc::FilterQdisc::Ingress) => direction == Direction::Ingress,
                None => false,
            };
            if has_filters {
                side.extend(filters(index, direction)?.into_iter().filter(|one| !is_named_as_ours(one)));
            }
        }
        found.insert(index, at);
    }
    Ok(found)
}

/// The programs that are attached by TCX, in the order in which they see a packet. A kernel without TCX has none.
pub(super) fn programs(index: u32, direction: Direction) -> Result<Vec<Foreign>, DatapathError> {
    const TRIES: usize = 5;
    let mut tries = 0;
    loop {
        let Some(name) = interface_name(index)? else { return Ok(Vec::new()) };
        tries += 1;
        match SchedClassifier::query_tcx(&name, attach_type(direction)) {
            Ok((_, programs)) => {
                let program = |info: &aya::programs::ProgramInfo| Foreign::Program {
                    name: info.name_as_str().unwrap_or_default().to_owned(),
                    id: info.id(),
                };
                return Ok(programs.iter().map(program).collect());
            }
            Err(error) => match errno(&error) {
                // EINVAL: the kernel has no TCX.
                Some(Errno::EINVAL | Errno::ENODEV) => return Ok(Vec::new()),
                // A program was detached between the list and the question about it.
                Some(Errno::ENOENT) if tries < TRIES => {}
                _ => return Err(DatapathError::failed(format!("ask for the programs of {name}"), &error)),
            },
        }
    }
}

/// The filters of an interface, in the order in which they see a packet. The head of a priority of bpf filters is none.
pub(super) fn filters(index: u32, direction: Direction) -> Result<Vec<Foreign>, DatapathError> {
    let filters = tc::filters(index, direction).map_err(failed)?;
    let mut found: Vec<Foreign> = filters.into_iter().filter_map(filter).collect();
    found.dedup();
    Ok(found)
}

fn filter(Filter { kind, name, program, priority, handle, .. }: Filter) -> Option<Foreign> {
    let is_head = kind == "bpf" && handle == 0;
    (!is_head).then_some(Foreign::Filter { kind, name, id: program, priority })
}

/// Whether a filter or program has the name of one of ours, in this version or an earlier one: another network of this host has
/// such programs, too.
pub(super) fn is_named_as_ours(one: &Foreign) -> bool {
    let (Foreign::Program { name, .. } | Foreign::Filter { name, .. }) = one else { return false };
    Attachment::ALL.into_iter().any(|attachment| attachment.goes_by(name))
}

pub(super) fn failed(error: NetlinkError) -> DatapathError {
    DatapathError::Failed { action: error.action, detail: error.detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_told_by_its_kind_and_its_place() {
        let bpf = Filter { kind: "bpf".into(), priority: 7, ..Filter::default() };
        assert_eq!(filter(bpf.clone()), None);
        let ours = Filter { handle: 1, name: "overlay_note".into(), program: Some(3), ..bpf.clone() };
        assert!(is_named_as_ours(&filter(ours).unwrap()));
        let other = Filter { handle: 1, name: "drop.o:[tc]".into(), program: Some(9), ..bpf };
        let other = filter(other).unwrap();
        assert_eq!(other.to_string(), "bpf filter drop.o:[tc] (id 9) of priority 7");
        assert!(!is_named_as_ours(&other));
        let u32 = Filter { kind: "u32".into(), priority: 1, ..Filter::default() };
        assert_eq!(filter(u32).unwrap().to_string(), "u32 filter of priority 1");
    }

    #[test]
    fn an_interface_that_is_gone_has_nothing() {
        let nobody = i32::MAX as u32;
        assert_eq!(look(&[nobody]).unwrap()[&nobody].sides(), ForeignTc::default());
    }
}
