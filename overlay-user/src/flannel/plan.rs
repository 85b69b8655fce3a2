//! What a move will do, step by step, before it does anything.
use std::fmt;

use ipnet::Ipv4Net;
use serde::Serialize;

use super::discover::Discovered;
use crate::device::DeviceSpec;

/// The steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What other hosts know this one by, and containers have: all of it stays.
    pub kept: Vec<String>,
    /// What is done, in this order.
    pub steps: Vec<String>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// What the plan is made of, beside what was found.
#[derive(Clone, Debug)]
pub struct Means {
    /// Our tunnel device.
    pub spec: DeviceSpec,
    /// Name of the underlay interface.
    pub underlay: String,
    /// Peers that the leases name.
    pub peers: usize,
    /// Containers' veths here.
    pub ports: usize,
    /// Containers' addresses here.
    pub endpoints: usize,
    /// flannel masquerades, or the agent is to.
    pub masquerade: bool,
    /// The agent is to accept the overlay's packets where FORWARD drops.
    pub forward: bool,
    /// `--fast-path on`
    pub fast_path: bool,
    /// Where it is noted what flannel was.
    pub record: String,
}

impl Plan {
    /// The plan for moving over what was found.
    pub fn new(found: &Discovered, means: &Means) -> Self {
        let flannel = &found.flannel;
        let DeviceSpec { name, mtu, subnet, network, .. } = &means.spec;
        let port = flannel.device.port;
        let (device, mac) = (&flannel.device.name, found.mac);
        let direct: Vec<String> = flannel.direct_routes().map(|it| it.destination.to_string()).collect();
        let rules = flannel.rules.names();
        let veths = format!("attach to {} veths of containers", means.ports);
        let attaching = if means.fast_path {
            format!(
                "note connections that this host translates; {veths}, of which {} addresses are known: from here on the fast \
                 path carries them",
                means.endpoints
            )
        } else {
            format!("{veths}, which leave everything to the stack (--fast-path off)")
        };
        let kept = vec![
            format!("subnet {subnet}"),
            format!("VtepMAC {mac}"),
            format!("public IP {}", found.lease.public_ip),
            "bridges, containers, subnet.env".to_owned(),
        ];
        let mut steps = vec![
            format!("renew lease {} as it stands", found.lease.key()),
            format!("note what flannel is here in {}, for the way back", means.record),
            format!("make {name} (port {port}, MAC address {mac}, MTU {mtu}), down"),
            format!(
                "load the programs, which know {} peers; attach them to {} and {name}",
                means.peers, means.underlay
            ),
            attaching,
        ];
        if means.masquerade {
            steps.push("masquerade by a table of nftables of our own".to_owned());
        }
        if means.forward {
            steps.push("accept the overlay's packets where iptables' FORWARD drops".to_owned());
        }
        steps.push(format!(
            "{device} down; {name} up with {}/32 and the route to {network} (milliseconds without a way for what the \
             kernel's stack carries)",
            subnet.network()
        ));
        if !direct.is_empty() {
            steps.push(format!("remove flannel's plain routes: {}", list(&direct)));
        }
        steps.push(format!(
            "remove {device}, with {} routes, {} neighbours, {} forwarding entries",
            flannel.routes.len() - direct.len(),
            flannel.neighbours.len(),
            flannel.forwarding.len()
        ));
        if !rules.is_empty() {
            steps.push(format!("remove flannel's rules: {}", list(&rules)));
        }
        Self { kept, steps, notes: found.notes.clone() }
    }

    /// The plan for going back.
    pub fn back(device: &str, ours: &str, network: Ipv4Net, entries: usize, rules: &[String]) -> Self {
        let mut steps = vec![
            format!("make {device} as it was, with its addresses and forwarding entries, down"),
            format!("{ours} down; {device} up with {entries} neighbours and routes"),
        ];
        if !rules.is_empty() {
            steps.push(format!("put back flannel's rules: {}", list(rules)));
        }
        steps.push(format!("remove what carries {network} now: {ours}, programs, maps, rules"));
        Self { kept: vec!["subnet, VtepMAC and public IP".to_owned()], steps, notes: Vec::new() }
    }
}

/// Names, and how many more there are.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kept: {}", self.kept.join("; "))?;
        for (number, step) in self.steps.iter().enumerate() {
            write!(f, "\n{:>2}. {step}", number + 1)?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "\nnote: {note}"))
    }
}
