//! What is known of the host: the overlay's addresses, and where the interfaces lead.
use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::range::Holds;

/// An interface that packets pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    /// The packet filter has none to ask about in this hook.
    Absent,
    /// The one with this name.
    Named(String),
    /// One that leads to containers of this host: a bridge, or a port of one, or a veth. It is none of [`Names::elsewhere`].
    Containers,
    /// One that leads to other hosts. It is none of [`Names::containers`].
    Hosts,
    /// Any.
    Any,
}

/// What is known of the host, as far as rules ask about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// All addresses of the overlay.
    pub network: IpNet,
    /// The first and the last address that a container can get. No host has one on its underlay.
    pub leasable: (IpAddr, IpAddr),
    /// The addresses of this host's containers.
    pub subnet: IpNet,
    /// Name of the tunnel device.
    pub device: String,
    /// Name of the underlay interface.
    pub underlay: String,
    /// This host's address on it.
    pub address: IpAddr,
    /// UDP port of the tunnel.
    pub port: u16,
    /// Whether peers on the same link are reached without encapsulation.
    pub is_direct: bool,
    /// Where the host's interfaces lead.
    pub names: Names,
}

/// Where the host's interfaces lead, as far as their addresses and routes tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Names of those that lead to containers of this host.
    pub containers: BTreeSet<String>,
    /// Names of those that lead to none.
    pub elsewhere: BTreeSet<String>,
}

impl Site {
    /// Whether an interface has a name like one of `patterns`. A pattern that ends in `*` stands for every name that begins so.
    pub(super) fn is_named(&self, interface: &Interface, patterns: &[String]) -> Holds {
        let begins = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => pattern == name,
        };
        match interface {
            Interface::Absent => Holds::Never,
            Interface::Named(name) => Holds::certain(patterns.iter().any(|pattern| begins(pattern, name))),
            Interface::Any if patterns.iter().any(|pattern| pattern == "*") => Holds::Always,
            Interface::Any => Holds::Maybe,
            Interface::Containers => {
                let ours = [self.device.as_str(), self.underlay.as_str(), "lo"];
                unless_all(patterns, |name| self.names.elsewhere.contains(name) || ours.contains(&name))
            }
            Interface::Hosts => {
                let ours = [self.device.as_str(), "lo"];
                unless_all(patterns, |name| self.names.containers.contains(name) || ours.contains(&name))
            }
        }
    }
}

/// Whether an interface may have one of these names, if it has none that is ruled out.
fn unless_all(names: &[String], is_ruled_out: impl Fn(&str) -> bool) -> Holds {
    if names.iter().all(|name| is_ruled_out(name)) { Holds::Never } else { Holds::Maybe }
}
