//! `cargo xtask demo`: containers on several hosts talk through the overlay, and what it shows is checked.
use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use xtask::{
    lab::{self, Agent, Container, Host, Lab, PingOptions, iperf3},
    project, setup,
};

mod status;

#[derive(Args)]
pub(crate) struct Options {
    /// How many hosts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=100))]
    hosts: u8,
    /// Where the hosts' leases are kept: a folder they share, or a real etcd.
    #[arg(long, value_enum, default_value_t = Store::Dir)]
    store: Store,
    /// Leave the hosts running at the end.
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Store {
    Dir,
    Etcd,
}

/// A host with its agent and its containers.
pub(crate) struct Populated {
    host: Host,
    agent: Agent,
    containers: Vec<Container>,
}

pub(crate) fn demo(options: &Options) -> Result<()> {
    let started = Instant::now();
    let step = |text: &str| println!("\n[{:5.1} s] {text}", started.elapsed().as_secs_f32());
    setup::setup()?;
    step("building the agent and its kernel programs");
    let overlay = project::build_overlay()?;
    step(&format!(
        "making {} hosts as network namespaces, each with an agent, a bridge, two containers",
        options.hosts
    ));
    let lab = Lab::new(lab::Options {
        hosts: options.hosts,
        keep: options.keep,
        ..lab::Options::default()
    })?;
    let shown = show(&lab, &overlay, options, &step);
    if shown.is_err() {
        for host in lab.hosts() {
            eprintln!("--- agent of {}:\n{}", host.name(), host.agent_log_tail());
        }
    } else if options.keep {
        println!("\n{}", how_to_enter(&lab));
        lab.keep();
    }
    shown?;
    step("everything checked was as it must be");
    Ok(())
}

fn show(lab: &Lab, overlay: &Path, options: &Options, step: &dyn Fn(&str)) -> Result<()> {
    let mut hosts = populate(lab, overlay, options.store)?;
    step("pings from every container to every other");
    ping_matrix(&hosts)?;
    step("one TCP stream of two seconds from the first host to the last");
    let (first, last) = (&hosts[0], &hosts[hosts.len() - 1]);
    let rate = iperf3(&first.containers[0], &last.containers[1], 2)?;
    println!("{rate:.0} Mbit/s");
    ensure!(rate > 0.0, "the stream carried nothing");
    step("packets each tier carried, by host and direction");
    carried(&hosts, overlay)?;
    step(&format!("`overlay status` of {}", first.host.name()));
    println!("{}", first.host.overlay(overlay, &["status"])?.trim_end());
    for Populated { host, agent, .. } in &mut hosts {
        if let Some(status) = agent.status()? {
            bail!("the agent of {} did not last: {status}", host.name());
        }
    }
    Ok(())
}

/// Starts an agent on every host and gives each two containers in the subnet it leased.
pub(crate) fn populate(lab: &Lab, overlay: &Path, store: Store) -> Result<Vec<Populated>> {
    const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    let arguments = match store {
        Store::Dir => vec![
            "--store-dir".to_owned(),
            lab.folder().join("store").display().to_string(),
        ],
        Store::Etcd => bail!("the store etcd is not there yet"),
    };
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let first = lab.host(0);
    first.overlay(
        overlay,
        &[&["config", "set"], arguments.as_slice(), &[CONFIG]].concat(),
    )?;
    let agents = lab
        .hosts()
        .iter()
        .map(|host| host.start_agent(overlay, &arguments))
        .collect::<Result<Vec<_>>>()?;
    lab.hosts()
        .iter()
        .zip(agents)
        .map(|(host, agent)| give_containers(host, agent))
        .collect()
}

fn give_containers(host: &Host, mut agent: Agent) -> Result<Populated> {
    agent.wait_ready(Duration::from_secs(20))?;
    let (subnet, mtu) = agent.subnet()?;
    host.add_bridge(&subnet, mtu)?;
    let containers = [("a", 2), ("b", 3)]
        .iter()
        .map(|(name, last)| host.add_container(name, &subnet, *last, mtu))
        .collect::<Result<Vec<_>>>()?;
    println!(
        "  {}  underlay {}  subnet {subnet}  mtu {mtu}",
        host.name(),
        host.address()
    );
    Ok(Populated {
        host: host.clone(),
        agent,
        containers,
    })
}

/// Prints the fastest round trip of every pair in milliseconds; fails if a ping was lost.
fn ping_matrix(hosts: &[Populated]) -> Result<()> {
    let all: Vec<_> = hosts.iter().flat_map(|host| &host.containers).collect();
    let mut silent = Vec::new();
    for from in &all {
        let mut row = format!("  {:15}", from.address().to_string());
        for to in all.iter().filter(|to| to.address() != from.address()) {
            // The first ping resolves addresses on both bridges; what counts is the way itself.
            let options = PingOptions {
                count: 2,
                interval: 0.02,
                ..PingOptions::default()
            };
            let ping = from.ping(to.address(), options)?;
            row += &match ping.fastest_ms {
                Some(time) if ping.complete() => format!(" {time:6.3}"),
                _ => "   lost".to_owned(),
            };
            if !ping.complete() {
                silent.push(format!("{} -> {}", from.address(), to.address()));
            }
        }
        println!("{row}");
    }
    ensure!(silent.is_empty(), "pings lost: {}", silent.join(", "));
    println!("  all answered (fastest round trip in ms)");
    Ok(())
}

/// Prints who carried how much; fails if the kernel programs carried nothing.
fn carried(hosts: &[Populated], overlay: &Path) -> Result<()> {
    println!(
        "  {:6}{:>16}{:>16}{:>16}",
        "host", "out, fast path", "in, fast path", "left to others"
    );
    for Populated { host, .. } in hosts {
        let answer = host.overlay(overlay, &["status", "--json"])?;
        let carried = status::carried(&answer).with_context(|| format!("the status of {}", host.name()))?;
        println!(
            "  {:6}{:>16}{:>16}{:>16}",
            host.name(),
            carried.out,
            carried.r#in,
            carried.other
        );
        ensure!(carried.out > 0, "the fast path of {} sent nothing", host.name());
        ensure!(
            carried.r#in > 0,
            "the fast path of {} received nothing",
            host.name()
        );
    }
    Ok(())
}

/// For a lab that stays.
pub(crate) fn how_to_enter(lab: &Lab) -> String {
    let name = lab.name();
    format!(
        "enter a host:         nsenter --net=/run/netns/{name}-h1\n\
         enter a container:    nsenter --net=/run/netns/{name}-h1-a\n\
         pinned maps of h1:    ls -R {}\n\
         remove it all:        cargo xtask lab down",
        lab.host(0).bpf_root().display()
    )
}
