//! `cargo xtask demo`: containers on several hosts talk through the overlay, and what it shows is checked.
use std::{path::Path, time::Instant};

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use overlay_lab::{self as lab, Lab, Member, PingOptions, iperf3, project};

mod docker;

#[derive(Args)]
pub(crate) struct DemoOptions {
    /// How many hosts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=100))]
    hosts: u8,
    /// Where the hosts' leases are kept: a folder they share, or a real etcd.
    #[arg(long, value_enum, default_value_t = StoreKind::Dir)]
    store: StoreKind,
    /// How packets travel between the hosts.
    #[arg(long, value_enum, default_value_t = lab::Backend::Vxlan)]
    mode: lab::Backend,
    /// Where received packets are decapsulated: `tc`, `xdp` or `xdp-strip`.
    #[arg(long, default_value = "auto")]
    ingress: String,
    /// Leave the hosts running at the end.
    #[arg(long)]
    keep: bool,
    /// Two hosts with a real Docker daemon each, whose containers are on the overlay.
    #[arg(long, conflicts_with_all = ["hosts", "store"])]
    docker: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreKind {
    Dir,
    Etcd,
}

pub(crate) fn demo(options: &DemoOptions) -> Result<()> {
    if options.docker {
        return docker::demo(options.mode, &options.ingress, options.keep);
    }
    // The etcd ends with this command, so agents that stay would be left without a store.
    ensure!(!options.keep || options.store == StoreKind::Dir, "--keep goes with --store dir");
    let started = Instant::now();
    let step = |text: &str| println!("\n[{:5.1} s] {text}", started.elapsed().as_secs_f32());
    step("building the agent and its kernel programs");
    let overlay = project::build_overlay()?;
    step(&format!(
        "making {} hosts as network namespaces, each with an agent, a bridge, two containers",
        options.hosts
    ));
    let lab = Lab::new(lab::Options { hosts: options.hosts, keep: options.keep, ..lab::Options::default() })?;
    let shown = show(&lab, &overlay, options, &step);
    if shown.is_err() && !lab::interrupted() {
        for host in lab.hosts() {
            eprintln!("--- agent of {}:\n{}", host.name(), host.agent_log_tail());
        }
    } else if shown.is_ok() && options.keep {
        println!("\n{}", how_to_enter(&lab));
        lab.keep();
    }
    shown?;
    step("everything checked was as it must be");
    Ok(())
}

fn show(lab: &Lab, overlay: &Path, options: &DemoOptions, step: &dyn Fn(&str)) -> Result<()> {
    let store = match options.store {
        StoreKind::Dir => lab::Store::folder(lab),
        StoreKind::Etcd => lab::Store::etcd(lab)?,
    };
    let members = &mut populate(lab, overlay, &store, options.mode, &["--ingress", &options.ingress])?;
    step("pings from every container to every other");
    ping_matrix(members)?;
    step("one TCP stream of two seconds from the first host to the last");
    let (first, last) = (&members[0], &members[members.len() - 1]);
    let rate = iperf3(&first.containers[0], &last.containers[1], 2)?;
    println!("  {rate:.0} Mbit/s");
    ensure!(rate > 0.0, "the stream carried nothing");
    step("packets that each tier carried");
    carried(members)?;
    step(&format!("`overlay status` of {}", first.host.name()));
    println!("{}", first.overlay(&["status"])?.trim_end());
    for member in members {
        if let Some(status) = member.agent()?.status()? {
            bail!("the agent of {} did not last: {status}", member.host.name());
        }
    }
    Ok(())
}

/// Starts the agents of all hosts, and prints every host with its addresses and containers.
pub(crate) fn populate(
    lab: &Lab,
    overlay: &Path,
    store: &lab::Store,
    backend: lab::Backend,
    agent: &[&str],
) -> Result<Vec<Member>> {
    let members = lab::populate_with(lab, overlay, store, backend.config(), agent)?;
    for Member { host, subnet, mtu, .. } in &members {
        println!("  {}  underlay {}  subnet {subnet}  mtu {mtu}", host.name(), host.address());
    }
    Ok(members)
}

const PINGS: u32 = 2;

/// Prints the fastest round trip of every pair in milliseconds; fails if a ping was lost.
fn ping_matrix(members: &[Member]) -> Result<()> {
    let all: Vec<_> = members.iter().flat_map(|member| &member.containers).collect();
    let mut lost = Vec::new();
    println!("  fastest round trip in ms, columns in the order of the rows");
    for from in &all {
        let mut row = format!("  {:15}", from.address().to_string());
        for to in &all {
            if to.address() == from.address() {
                row += "      -";
                continue;
            }
            let options = PingOptions { count: PINGS, interval: 0.02, ..PingOptions::default() };
            let ping = from.ping(to.address(), options)?;
            match ping.fastest_ms.filter(|_| ping.complete()) {
                Some(time) => row += &format!(" {time:6.3}"),
                None => {
                    row += "   lost";
                    lost.push(format!("{} -> {}", from.address(), to.address()));
                }
            }
        }
        println!("{row}");
    }
    ensure!(lost.is_empty(), "pings lost: {}", lost.join(", "));
    println!("  all answered");
    Ok(())
}

/// Prints what each tier of each host carried. It fails if that is less than what was sent, or if anything was dropped.
fn carried(members: &[Member]) -> Result<()> {
    println!("  host    fast out     fast in   stack out    stack in     dropped");
    // Each of a host's two containers pinged two containers of every other host, and was pinged by them.
    let exchanges = 2 * 2 * 2 * u64::from(PINGS) * (members.len() as u64 - 1);
    for member in members {
        let (name, sum) = (member.host.name(), member.counters()?.carried());
        println!(
            "  {name:4}{:>12}{:>12}{:>12}{:>12}{:>12}",
            sum.fast_out, sum.fast_in, sum.stack_out, sum.stack_in, sum.dropped
        );
        let (sent, received) = (sum.fast_out + sum.stack_out, sum.fast_in + sum.stack_in);
        ensure!(sum.fast_out > 0 && sum.fast_in > 0, "the fast path of {name} carried nothing");
        ensure!(sent >= exchanges, "{name} counts {sent} packets sent, the pings alone were {exchanges}");
        ensure!(
            received >= exchanges,
            "{name} counts {received} packets received, the pings alone were {exchanges}"
        );
        ensure!(sum.dropped == 0, "{name} dropped {} packets", sum.dropped);
    }
    Ok(())
}

/// How to look around in a lab that stays.
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
