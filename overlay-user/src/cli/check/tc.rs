//! Finds what others have at TC where our programs are: in front of our programs, at the containers' ports, and at bridges and
//! overlay0, where the fast path bypasses it.
use std::path::Path;

use super::finding::{Finding, Level};
use crate::{
    datapath::{
        DatapathError,
        links::{
            Attachment, InFront, Links,
            foreign::{self, Foreign, ForeignAt},
        },
    },
    host::netlink::Link,
};

/// How many ports are named. Of any more than these, only the number is told.
const NAMED: usize = 5;

/// Makes a finding for each of our programs before which others see packets, one about all containers' ports, and one for each
/// bridge or tunnel device at which the fast path passes something by.
pub(super) fn findings(pins: &Path, links: &[Link]) -> Vec<Finding> {
    let look = || {
        let mut findings: Vec<Finding> = Links::in_front(pins)?.iter().map(in_front).collect();
        let attached = Links::of(pins)?;
        let with = |wanted: &[Attachment]| {
            let is_wanted = |link: &&Link| wanted.iter().any(|one| attached.contains(&(*one, link.index)));
            let links: Vec<&Link> = links.iter().filter(is_wanted).collect();
            let mut found = foreign::look(&links.iter().map(|link| link.index).collect::<Vec<_>>())?;
            let named = |link: &&Link| Some((link.name.clone(), found.remove(&link.index)?));
            Ok::<Vec<(String, ForeignAt)>, DatapathError>(links.iter().filter_map(named).collect())
        };
        findings.extend(at_ports(&with(&[Attachment::Encap])?));
        let devices = with(&[Attachment::Bridge, Attachment::Receive])?;
        findings.extend(devices.iter().filter_map(|(name, at)| bypassed(name, at)));
        Ok::<_, DatapathError>(findings)
    };
    look().unwrap_or_else(|error| {
        let remedy = "run `overlay check` as root";
        vec![Finding::new("tc", Level::Warn, format!("cannot be looked at: {error}"), remedy)]
    })
}

fn in_front(one: &InFront) -> Finding {
    let what = format!("tc at {}", one.interface);
    let detail = format!("{one}, which does not get what is ended there");
    Finding::new(&what, Level::Warn, detail, one.remedy())
}

fn named(at: &ForeignAt) -> String {
    let all: Vec<String> = at.egress.iter().chain(&at.ingress).map(Foreign::to_string).collect();
    all.join(", ")
}

/// Tells what others have at the containers' ports. The fast path obeys it, so there is nothing to mend.
fn at_ports(ports: &[(String, ForeignAt)]) -> Option<Finding> {
    let one = |(name, at): &(String, ForeignAt)| {
        let path = match at.sides() {
            sides if sides.ingress => "packets take the stack",
            sides if sides.egress => "what is delivered passes it",
            _ => return None,
        };
        Some(format!("{name}: {path}, because of {}", named(at)))
    };
    let mut all: Vec<String> = ports.iter().filter_map(one).collect();
    let rest = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    if rest > 0 {
        all.push(format!("and {rest} more, which `overlay endpoints` shows"));
    }
    (!all.is_empty()).then(|| Finding::ok("tc at containers' ports", all.join("; ")))
}

/// Tells what others have at a bridge or overlay0, which the fast path bypasses.
fn bypassed(name: &str, at: &ForeignAt) -> Option<Finding> {
    let sides = at.sides();
    (sides.egress || sides.ingress).then(|| {
        let detail = format!("{}: what the fast path carries does not pass it", named(at));
        let remedy =
            "put it at the containers' veths, where it is obeyed, or start the agent with --fast-path off";
        Finding::new(&format!("tc at {name}"), Level::Warn, detail, remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_queue() -> ForeignAt {
        ForeignAt { egress: vec![Foreign::Qdisc { kind: "tbf".into() }], ingress: Vec::new() }
    }

    #[test]
    fn what_is_obeyed_is_no_fault_and_what_is_bypassed_is_one() {
        assert_eq!(at_ports(&[("va".into(), ForeignAt::default())]), None);
        let found = at_ports(&[("va".into(), with_queue())]).unwrap();
        assert_eq!(
            (found.level, found.detail.as_str()),
            (Level::Ok, "va: what is delivered passes it, because of queueing discipline tbf")
        );
        let many: Vec<_> = (0..8).map(|number| (format!("v{number}"), with_queue())).collect();
        assert!(at_ports(&many).unwrap().detail.ends_with("and 3 more, which `overlay endpoints` shows"));
        assert_eq!(bypassed("br0", &ForeignAt::default()), None);
        let found = bypassed("br0", &with_queue()).unwrap();
        assert_eq!((found.level, found.what.as_str()), (Level::Warn, "tc at br0"));
    }
}
