//! The interfaces that packets pass, and whether one may have a name that a rule asks for.
use super::range::Holds;
use crate::host::site::Site;

/// An interface that packets pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    /// The packet filter has none to ask about in this hook.
    Absent,
    /// The one with this name.
    Named(String),
    /// One that leads to containers of this host: a bridge, or a port of one, or a veth. It is none of those that the site knows
    /// to lead elsewhere.
    Containers,
    /// One that leads to other hosts. It is none of those that the site knows to lead to containers.
    Hosts,
    /// Any.
    Any,
}

impl Interface {
    /// Whether it has a name like one of `patterns`. A pattern that ends in `*` stands for every name that begins so.
    pub(super) fn is_named(&self, patterns: &[String], site: &Site) -> Holds {
        let begins = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => pattern == name,
        };
        let device = site.device.as_str();
        match self {
            Self::Absent => Holds::Never,
            Self::Named(name) => Holds::certain(patterns.iter().any(|pattern| begins(pattern, name))),
            Self::Any if patterns.iter().any(|pattern| pattern == "*") => Holds::Always,
            Self::Any => Holds::Maybe,
            Self::Containers => {
                let ours = [Some(device), site.underlay.as_deref(), Some("lo")];
                unless_all(patterns, |name| site.names.elsewhere.contains(name) || ours.contains(&Some(name)))
            }
            Self::Hosts => unless_all(patterns, |name| {
                site.names.containers.contains(name) || [device, "lo"].contains(&name)
            }),
        }
    }
}

/// Whether an interface may have one of these names, if it has none that is ruled out.
fn unless_all(names: &[String], is_ruled_out: impl Fn(&str) -> bool) -> Holds {
    if names.iter().all(|name| is_ruled_out(name)) { Holds::Never } else { Holds::Maybe }
}
