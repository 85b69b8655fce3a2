//! `overlay status` shows what the agent says if it runs, and what the pinned maps say.
use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::{losses, output::say, same_host};
use crate::{
    agent::{
        control::{self, Request, Response},
        status::{Ipv6Status, Resync, ResyncKind, StateStatus, Status, StoreStatus},
    },
    cli::{
        check::features::{Feature, features},
        options::Show,
        table::table,
    },
    datapath::{
        links::{AttachMethod, InFront, Links},
        losses::{Loss, assess},
        state::Record,
        tables::{Counter, Tables},
        xdp::XdpLink,
    },
    host::{
        firewall::{RuleState, RuleStatus},
        netlink::Netlink,
    },
    model::{clock::unix_now, fast_path::FastPath, ingress::XdpMode},
    store::local_lease::{Alteration, LeaseState},
};

/// Everything that `overlay status` shows.
#[derive(Serialize)]
struct StatusReport {
    network: String,
    /// flannel's name of the backend, which says how packets travel between hosts.
    mode: String,
    tiers: Vec<Tier>,
    /// Others' programs that see packets before ours.
    in_front: Vec<InFront>,
    /// How the programs are attached at TC; `None` if they are not.
    attached_by: Option<AttachMethod>,
    /// Features that not every kernel has, and whether this one does.
    features: Vec<Feature>,
    /// The record that says to whom the pins belong.
    record: Option<Record>,
    /// What the agent says of itself; `None` if it does not run. Traffic does not need it.
    agent: Option<Status>,
    agent_error: Option<String>,
    counters: Vec<Counter>,
    /// What is lost where no program sees it.
    device_losses: Vec<Loss>,
    device_losses_error: Option<String>,
    peers: usize,
    endpoints: usize,
}

#[derive(Serialize)]
struct Tier {
    name: &'static str,
    in_use: bool,
    why: String,
}

/// How many programs in front of ours a line names.
const NAMED: usize = 3;

pub(super) async fn status(show: &Show) -> Result<()> {
    let paths = show.place.paths();
    let (agent, agent_error) = match ask(show, &Request::Status).await {
        Ok(Response::Status(status)) => (Some(*status), None),
        Ok(other) => (None, Some(format!("an answer that does not fit: {other:?}"))),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let record = paths.record().ok().flatten();
    let tables = Tables::open(&paths.pins);
    if tables.is_err() && agent.is_none() && record.is_none() {
        bail!(
            "there is no network {} on this host: no agent answers, and nothing is pinned in {}; `overlay agent` starts \
             one, --network, --state-dir and --bpf-root name another",
            paths.network,
            paths.pins.display()
        );
    }
    let tables = tables.context("read the network's pinned maps")?;
    let counters = tables.counters()?;
    let before = agent.as_ref().map(|agent| agent.lost_before.as_slice());
    let (device_losses, device_losses_error) = match losses::now(&paths.pins).await {
        Ok(now) => (assess(now, before), None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    // If this cannot be read, the rest is shown nevertheless.
    let in_use = AttachMethod::in_use(&paths.pins).ok().flatten();
    let attached_by = in_use.map(|(way, _)| way);
    let in_front = Links::in_front(&paths.pins).unwrap_or_default();
    let links = Netlink::open()?.links().await.unwrap_or_default();
    let report = StatusReport {
        network: paths.network,
        mode: record.as_ref().map_or("vxlan".to_owned(), |record| record.backend.clone()),
        tiers: tiers(
            tables.fast_path()?,
            agent.as_ref(),
            (attached_by, &in_front),
            &XdpLink::new(&paths.pins),
        ),
        in_front,
        attached_by,
        features: features(links.iter().find(|link| in_use.is_some_and(|(_, device)| link.index == device))),
        record,
        agent,
        agent_error,
        peers: tables.peers.entries()?.len(),
        endpoints: tables.endpoints.entries()?.len(),
        counters,
        device_losses,
        device_losses_error,
    };
    if show.json {
        say(serde_json::to_string_pretty(&report)?)?;
    } else {
        say(text(&report))?;
    }
    Ok(())
}

fn tiers(
    fast_path: FastPath,
    agent: Option<&Status>,
    (attached_by, in_front): (Option<AttachMethod>, &[InFront]),
    link: &XdpLink,
) -> Vec<Tier> {
    let is_on = fast_path != FastPath::Off;
    // The agent knows why, and only as long as what it knows is still so.
    let decided = agent.map(|agent| &agent.fast_path).filter(|decided| decided.effective == fast_path);
    let because = decided.map(|decided| decided.why.as_str()).filter(|why| !why.is_empty());
    let broken = agent.filter(|agent| !agent.datapath.attached);
    let why = match broken {
        _ if !is_on => format!("the fast path is off: {}", because.unwrap_or("the last agent decided so")),
        Some(agent) => agent.datapath.error.clone().unwrap_or_else(|| "the agent has just started".into()),
        None => {
            let by = attached_by.map(|way| format!("; attached by {way}")).unwrap_or_default();
            let since = match fast_path {
                FastPath::Established => format!(
                    "; a connection takes it once the stack has accepted both its directions{}",
                    because.map(|why| format!(", because of {why}")).unwrap_or_default()
                ),
                _ => String::new(),
            };
            let mut in_front: Vec<String> = in_front.iter().map(|one| format!("; BUT {one}")).collect();
            let rest = in_front.len().saturating_sub(NAMED);
            in_front.truncate(NAMED);
            if rest > 0 {
                in_front.push(format!("; and {rest} more of these, which `overlay check` names"));
            }
            let in_front = in_front.concat();
            format!("works on every interface, keeps GSO and GRO{by}{since}{in_front}")
        }
    };
    vec![
        xdp(agent, link),
        Tier { name: "tc", in_use: is_on && broken.is_none(), why },
        Tier { name: "stack", in_use: true, why: "carries what the tiers above leave".into() },
    ]
}

/// Describes the tier XDP: as the agent says if it runs, or else by the link that the last agent left pinned.
fn xdp(agent: Option<&Status>, link: &XdpLink) -> Tier {
    let left = || link.pinned().ok()?.into_iter().find_map(|ifindex| link.mode(ifindex));
    let used = agent.map_or_else(left, |agent| agent.datapath.ingress.xdp);
    let why = match (used, agent) {
        (Some(XdpMode::Redirect), Some(agent)) => format!(
            "redirects to {} of {} endpoints, whose veths take frames; TC delivers to the others",
            agent.datapath.xdp_targets, agent.datapath.endpoints
        ),
        (Some(mode), _) => mode.to_string(),
        (None, Some(agent)) => agent.datapath.ingress.why.clone(),
        (None, None) => "not attached".to_owned(),
    };
    Tier { name: "xdp", in_use: used.is_some(), why }
}

fn text(report: &StatusReport) -> String {
    let mut rows = vec![vec!["network".into(), format!("{}, mode {}", report.network, report.mode)]];
    let mut row = |name: &str, value: String| rows.push(vec![name.into(), value]);
    if let Some(record) = &report.record {
        // Only VXLAN has a VNI, which is never zero.
        let vni = |vni: u32| if vni == 0 { String::new() } else { format!(" (vni {vni})") };
        let of = report.agent.as_ref().map(|agent| format!(" of {}{}", agent.network, vni(agent.vni)));
        row("this host", format!("{}, subnet {}{}", record.public_ip, record.subnet, of.unwrap_or_default()));
        if let Some(ipv6) = report.agent.as_ref().and_then(|agent| agent.ipv6.as_ref()) {
            row("IPv6", ipv6_line(ipv6));
        }
    }
    for tier in &report.tiers {
        row(
            &format!("tier {}", tier.name),
            format!("{}: {}", if tier.in_use { "in use" } else { "not used" }, tier.why),
        );
    }
    for feature in report.features.iter().filter(|feature| feature.present == Some(false)) {
        row("kernel lacks", format!("{}; instead: {}", feature.name, feature.instead));
    }
    match &report.agent {
        None => row(
            "agent",
            format!(
                "not running ({}); traffic goes on",
                report.agent_error.as_deref().unwrap_or("no answer")
            ),
        ),
        Some(agent) => {
            row("agent", format!("running for {}", span(unix_now().saturating_sub(agent.started))));
            let store = &agent.store;
            row("store", format!("{}, revision {}", store.name, store.revision));
            row(
                "following",
                format!(
                    "{} for {}{}",
                    if store.following { "yes" } else { "NO" },
                    span(unix_now().saturating_sub(store.since)),
                    store.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default()
                ),
            );
            row("knowledge", knowledge(store));
            if let Some(remark) = &store.remark {
                row("store says", remark.clone());
            }
            row("lease", lease(agent));
            row("underlay", underlay(agent));
            row("peers", peers_line(agent));
            for skipped in agent.peers.skipped.iter().take(10) {
                let name = if skipped.is_ipv6_only { "lease without IPv6" } else { "lease skipped" };
                row(name, format!("{}: {}", skipped.key, skipped.why));
            }
            for failed in agent.peers.failed.iter().take(10) {
                row("peer failed", format!("{}: {}", failed.subnet, failed.why));
            }
            let datapath = &agent.datapath;
            row(
                "data path",
                format!(
                    "{}; {} ports, {} waiting, {} repaired, {} connections kept to the stack (counted every 30 s)",
                    match (&datapath.error, datapath.attached) {
                        (Some(error), _) => error.clone(),
                        (None, true) => "attached".into(),
                        (None, false) => "NOT attached".into(),
                    },
                    datapath.ports,
                    datapath.waiting,
                    datapath.repaired,
                    datapath.flows
                ),
            );
            row("masquerading", rule_line(&agent.rules.masquerade));
            row("forward rules", rule_line(&agent.rules.forward));
            for (name, value) in state_rows(&agent.state) {
                row(name, value);
            }
            for conflict in &agent.learned.conflicts {
                row(
                    "address conflict",
                    format!(
                        "{} is held by {}; {} claims it from {}",
                        conflict.address, conflict.holder, conflict.mac, conflict.claimant
                    ),
                );
            }
            for bridge in &agent.learned.bridges {
                row(
                    "bridge",
                    format!("{}, mtu {}, ports: {}", bridge.name, bridge.mtu, bridge.ports.join(" ")),
                );
                let is_used = report.tiers.iter().any(|tier| tier.name == "tc" && tier.in_use);
                row("same host", same_host::line(bridge, is_used));
            }
        }
    }
    row("in force", format!("{} peers, {} endpoints", report.peers, report.endpoints));
    let counters = report.counters.iter().map(|counter| {
        vec![
            counter.hook.into(),
            counter.reason.into(),
            counter.verdict.into(),
            counter.packets.to_string(),
            counter.bytes.to_string(),
        ]
    });
    format!(
        "{}\n\n{}\n\n{}\n",
        table(&["", ""], rows).trim_start_matches('\n'),
        table(&["hook", "reason", "verdict", "packets", "bytes"], counters),
        losses::text(&report.device_losses, report.device_losses_error.as_deref())
    )
}

/// What somebody has removed of what should outlive the agent, and what of it is missing still.
fn state_rows(state: &StateStatus) -> Vec<(&'static str, String)> {
    let put_back =
        |count: u64| (count > 0).then(|| format!("put back {count} times, because somebody removed them"));
    let pins = state.pins_error.clone().map(|error| format!("NOT all there: {error}"));
    let files = state.files_error.clone().map(|error| format!("NOT all there: {error}"));
    let rows = [
        ("state folder", state.error.clone()),
        ("pins", pins.or_else(|| put_back(state.pins_restored))),
        ("files", files.or_else(|| put_back(state.files_restored))),
    ];
    rows.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// How the agent came by what it knows of the store, and how old that is.
fn knowledge(store: &StoreStatus) -> String {
    let ago = |at: u64| format!("{} ago", span(unix_now().saturating_sub(at)));
    let came = match &store.resync {
        None => return "nothing was read yet".to_owned(),
        Some(Resync { kind: ResyncKind::Listed, why, at }) => format!("read {} ({why})", ago(*at)),
        Some(Resync { kind: ResyncKind::Resumed, why, at }) => format!("resumed {} ({why})", ago(*at)),
    };
    format!("{came}, heard of the store {}", ago(store.heard))
}

fn rule_line(rule: &RuleStatus) -> String {
    let state = match rule.state {
        RuleState::Off => "off",
        RuleState::Absent => "not looked after: there is no iptables on this host",
        RuleState::Unneeded => "not needed: no FORWARD chain of iptables drops by default",
        RuleState::Active => "in force",
        RuleState::Failed => "NOT in force",
    };
    let error = rule.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    let restored =
        if rule.restored == 0 { String::new() } else { format!("; put back {} times", rule.restored) };
    format!("{state}{error}{restored}")
}

fn ipv6_line(ipv6: &Ipv6Status) -> String {
    match (ipv6.public_ip, ipv6.subnet, &ipv6.why) {
        (Some(public_ip), Some(subnet), _) => format!("{public_ip}, subnet {subnet} of {}", ipv6.network),
        (_, _, why) => format!(
            "NONE of {}, this host takes part with IPv4 alone: {}",
            ipv6.network,
            why.as_deref().unwrap_or("its lease has no IPv6 subnet")
        ),
    }
}

fn underlay(agent: &Status) -> String {
    let underlay = &agent.underlay;
    let address = underlay.address.map(|address| format!(" with {address}")).unwrap_or_default();
    let error =
        underlay.error.as_ref().map(|why| format!(": NOT reached by other hosts: {why}")).unwrap_or_default();
    format!("{}{address}{error}", underlay.name)
}

fn lease(agent: &Status) -> String {
    let lease = &agent.lease;
    let altered = lease.alteration.as_ref();
    let state = match &lease.state {
        LeaseState::Held if altered.is_some_and(|it| it.stands) => {
            "ALTERED by somebody else, being written again".into()
        }
        LeaseState::Held => "held".into(),
        LeaseState::Missing => "MISSING, being claimed again".into(),
        LeaseState::Lost { to } => format!("LOST to {to}"),
    };
    let ends = match lease.expires {
        None => "a reservation, without end".into(),
        Some(at) => format!("ends in {}", span(at.saturating_sub(unix_now()))),
    };
    let error = lease.error.as_ref().map(|error| format!("; {error}")).unwrap_or_default();
    // What was put right long ago need not worry anybody any more.
    let recent = altered.filter(|it| it.stands || unix_now().saturating_sub(it.last) < AN_HOUR);
    let altered = recent.map(alteration).unwrap_or_default();
    format!("{}, {state}, {ends}{error}{altered}", lease.key)
}

const AN_HOUR: u64 = 60 * 60;

fn alteration(found: &Alteration) -> String {
    let Alteration { what, times, last, stands } = found;
    let often = if *times == 1 { "once".to_owned() } else { format!("{times} times") };
    let written = if *stands { "" } else { ", and written again" };
    format!(
        "; altered from outside {often}, last {} ago ({what}){written}: a flanneld that is started here does this \
         (`systemctl disable --now flanneld`), or another host with this public IP",
        span(unix_now().saturating_sub(*last))
    )
}

fn peers_line(agent: &Status) -> String {
    let peers = &agent.peers;
    let held = match peers.held.len() {
        0 => String::new(),
        held => format!(", {held} removals HELD BACK (`overlay peers --accept-deletions`)"),
    };
    format!("{} wanted, {} installed{held}", peers.wanted, peers.installed)
}

/// A duration in the form in which people say it.
fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

pub(super) async fn ask(show: &Show, request: &Request) -> Result<Response> {
    control::ask(&control::socket_path(&show.place.paths()), request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_of_this_host_is_shown_or_why_there_is_none() {
        let has = Ipv6Status {
            network: "fd00:244::/48".parse().unwrap(),
            subnet: "fd00:244:0:4b::/64".parse().ok(),
            public_ip: "fd99::1".parse().ok(),
            why: None,
        };
        assert_eq!(ipv6_line(&has), "fd99::1, subnet fd00:244:0:4b::/64 of fd00:244::/48");
        let lacks = Ipv6Status { subnet: None, public_ip: None, why: Some("eth0 has none".into()), ..has };
        assert_eq!(
            ipv6_line(&lacks),
            "NONE of fd00:244::/48, this host takes part with IPv4 alone: eth0 has none"
        );
    }
}
