//! Tells step by step what a move will do, before it does anything.
use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

use super::{discover::Discovered, record::FlannelRecord};
use crate::{
    host::{device::DeviceSpec, netlink::ClassicTunnel},
    model::fast_path::AskedFastPath,
};

/// The plan of a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What stays as it is: by this other hosts know this one, or containers have it.
    pub kept: Vec<String>,
    /// What is done, in this order.
    pub steps: Vec<String>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// What the plan is made from, beside what was found.
#[derive(Clone, Debug)]
pub struct PlanInput {
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
    /// Connections from outside the overlay to other hosts' containers that this host translates.
    pub masqueraded: usize,
    /// Whether flannel masquerades, or the agent is to.
    pub masquerade: bool,
    /// Whether the agent is to accept the overlay's packets where FORWARD drops.
    pub forward: bool,
    /// Which packets the programs are to carry.
    pub fast_path: AskedFastPath,
    /// The file that records what flannel was.
    pub record: String,
}

impl Plan {
    /// The plan for moving over what was found.
    pub fn new(found: &Discovered, means: &PlanInput) -> Self {
        let flannel = &found.flannel;
        let DeviceSpec { name, mtu, subnet, network, .. } = &means.spec;
        let direct: Vec<String> = flannel.direct_routes().map(|it| it.destination.to_string()).collect();
        let rules = flannel.rules.names();
        let veths = format!("attach to {} veths of containers", means.ports);
        let attaching = if means.fast_path != AskedFastPath::Off {
            format!(
                "note connections that this host translates; {veths}, of which {} addresses are known: from here on the fast \
                 path carries them",
                means.endpoints
            )
        } else {
            format!("{veths}, which leave everything to the stack (--fast-path off)")
        };
        let mut kept = vec![format!("subnet {subnet}"), format!("public IP {}", found.lease.public_ip)];
        kept.extend(found.mac.map(|mac| format!("VtepMAC {mac}")));
        kept.push("bridges, containers, subnet.env".to_owned());
        let up = format!("with {} and the route to {network}", IpNet::from(subnet.network()));
        let load = format!(
            "load the programs, which know {} peers; attach them to {} and {name}",
            means.peers, means.underlay
        );
        let plain = match direct[..] {
            [] => None,
            _ => Some(format!("remove flannel's plain routes: {}", list(&direct))),
        };
        let rules_of_ours = [
            (means.masquerade, "masquerade by a table of nftables of our own"),
            (means.forward, "accept the overlay's packets where iptables' FORWARD drops"),
        ];
        let kept_translations = match means.masqueraded {
            0 => None,
            one_or_more => Some(format!(
                "keep the translation of {one_or_more} masqueraded connections to containers of other hosts, this host's own \
                 among them"
            )),
        };
        let rules_of_ours =
            rules_of_ours.iter().filter(|(wanted, _)| *wanted).map(|(_, step)| (*step).to_owned());
        let rules_of_ours = rules_of_ours.chain(kept_translations);
        let mut steps = vec![
            format!("renew lease {} as it stands", found.lease.key()),
            format!("note what flannel is here in {}, for the way back", means.record),
        ];
        if let Some(device) = &flannel.device {
            let ClassicTunnel { name: old, port, mac, .. } = device;
            steps.push(format!("make {name} (port {port}, MAC address {mac}, MTU {mtu}), down"));
            steps.extend([load, attaching]);
            steps.extend(rules_of_ours);
            steps.push(format!(
                "{old} down; {name} up {up} (milliseconds without a way for what the kernel's stack carries)"
            ));
            steps.extend(plain);
            steps.push(format!(
                "remove {old}, with {} routes, {} neighbours, {} forwarding entries",
                flannel.routes.len() - direct.len(),
                flannel.neighbours.len(),
                flannel.forwarding.len()
            ));
        } else {
            steps.extend([format!("make {name} (MTU {mtu}), up {up}"), load]);
            steps.extend(plain);
            steps.push(attaching);
            steps.extend(rules_of_ours);
        }
        if let Some(route) = &flannel.blackhole {
            steps
                .push(format!("replace flannel's blackhole route to {} by the overlay's", route.destination));
        }
        if !rules.is_empty() {
            steps.push(format!("remove flannel's rules: {}", list(&rules)));
        }
        Self { kept, steps, notes: found.notes.clone() }
    }

    /// The plan for going back.
    pub fn back(record: &FlannelRecord) -> Self {
        let FlannelRecord { tunnel, network, flannel, .. } = record;
        let (routes, rules) = (flannel.routes.len(), flannel.rules.names());
        let mut steps = match &flannel.device {
            Some(device) => vec![
                format!(
                    "make {} as it was, with {} neighbours and {} forwarding entries, down",
                    device.name,
                    flannel.neighbours.len(),
                    flannel.forwarding.len()
                ),
                format!("{tunnel} down; {} up with {routes} routes", device.name),
            ],
            None => vec![format!("put back {routes} routes")],
        };
        if !rules.is_empty() {
            steps.push(format!("put back flannel's rules: {}", list(&rules)));
        }
        steps.push(format!("remove what carries {network} now: {tunnel}, programs, maps, rules"));
        if let Some(route) = &flannel.blackhole {
            steps.push(format!("put back flannel's blackhole route to {}", route.destination));
        }
        Self { kept: vec!["subnet, VtepMAC, public IP".to_owned()], steps, notes: Vec::new() }
    }
}

/// Lists the first names, and says how many more there are.
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
