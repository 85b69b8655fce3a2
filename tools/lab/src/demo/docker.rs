//! `cargo xtask demo --docker`: containers of two real Docker daemons talk through the overlay, and the command checks
//! what it shows.
use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use overlay_lab::{self as lab, Docker, DockerContainer, Lab, Member, leaks, project, wait_until};

/// How long anything may take that should happen soon.
const SOON: Duration = Duration::from_secs(20);
/// The host's port at which the first container's port 80 is published.
const PORT: u16 = 8000;

pub(crate) fn demo(mode: lab::Backend, ingress: &str, keep: bool) -> Result<()> {
    let started = Instant::now();
    let step = |text: &str| println!("\n[{:5.1} s] {text}", started.elapsed().as_secs_f32());
    step("building the agent and its kernel programs");
    let overlay = project::build_overlay()?;
    step("making two hosts as network namespaces, each with an agent");
    let lab = Lab::new(lab::Options { keep, ..lab::Options::default() })?;
    let name = lab.name().to_owned();
    let shown = show(&lab, &overlay, (mode, ingress), &step);
    if shown.is_err() && !lab::interrupted() {
        for host in lab.hosts() {
            eprintln!("--- agent of {}:\n{}", host.name(), host.agent_log_tail());
        }
    }
    if shown.is_ok() && keep {
        let folder = lab.host(0).folder().display().to_string();
        println!(
            "\nenter a host:         nsenter --net=/run/netns/{name}-h1\n\
             its Docker:           DOCKER_HOST=unix://{folder}/docker/socket docker ps\n\
             remove it all:        cargo xtask lab down {name}"
        );
        lab.keep();
        return Ok(());
    }
    step("cleaning up");
    drop(lab);
    shown?;
    let left = leaks(&name);
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    step("everything checked was as it must be");
    Ok(())
}

fn show(lab: &Lab, overlay: &Path, (mode, ingress): (lab::Backend, &str), step: &dyn Fn(&str)) -> Result<()> {
    let store = lab::Store::folder(lab);
    lab::configure(lab, overlay, &store, mode.config())?;
    let mut members = Vec::new();
    for host in lab.hosts() {
        let member = Member::join(host, overlay, &store, &["--ip-masq", "--ingress", ingress])?;
        println!(
            "  {}  underlay {}  subnet {}  mtu {}",
            host.name(),
            host.address(),
            member.subnet,
            member.mtu
        );
        members.push(member);
    }
    step("starting a Docker daemon on each, with what `overlay docker-opts` says");
    let mut dockers = Vec::new();
    for member in &members {
        // Docker switches forwarding on itself if it is off, and then has iptables' chain FORWARD drop packets by
        // default. The demo must work on such a host too.
        member.host.namespace().sysctl("ipv4/ip_forward", "0")?;
        println!("  {}  dockerd {}", member.host.name(), member.docker_options()?.join(" "));
        dockers.push(member.start_docker()?);
    }
    step("starting a container on each; the first publishes a port");
    let (web, asks) = (dockers[0].run("web", &format!("--publish {PORT}:80"))?, dockers[1].run("asks", "")?);
    for (member, docker) in members.iter().zip(&dockers) {
        println!("  {}  {}", member.host.name(), containers(docker)?.trim_end());
    }
    step("pings from either container to the other");
    wait_until("the first answer", SOON, || Ok(asks.reaches(web.address())))?;
    for (from, to) in [(&asks, &web), (&web, &asks)] {
        from.ping(to.address(), 5)?;
        println!("  {} -> {}: all answered", from.address(), to.address());
    }
    for (member, container) in members.iter().zip([&web, &asks]) {
        learned(member, container)?;
    }
    println!("  the agents have learned them, by no plugin:");
    println!("{}", indented(&members[0].overlay(&["endpoints"])?));
    step("pages from the first container to the second, on the other host");
    let before = carried(&members)?;
    for (target, from) in [
        ("at its own address", web.address().to_string()),
        ("by the port published at the overlay's .1", format!("{}:{PORT}", gateway(&web))),
        (
            "by the port published at the host's underlay address",
            format!("{}:{PORT}", members[0].host.address()),
        ),
    ] {
        ensure!(asks.fetch(&from)? == "a page\n", "http://{from} is another page");
        asks.download(&from)?;
        println!(
            "  http://{from}: {target}; its server heard {}",
            asks.fetch(&format!("{from}/cgi-bin/who"))?
        );
    }
    ensure!(
        asks.fetch(&format!("{}/cgi-bin/who", web.address()))? == asks.address().to_string(),
        "the server does not hear the container that asks"
    );
    step("packets that each tier carried meanwhile");
    table(&members, &before)?;
    step("the first container stops");
    web.stop()?;
    wait_until("no endpoint", SOON, || Ok(!endpoints(&members[0])?.contains(&web.address().to_string())))?;
    println!("  its endpoint is gone from {}", members[0].host.name());
    for member in &mut members {
        if let Some(status) = member.agent()?.status()? {
            bail!("the agent of {} did not last: {status}", member.host.name());
        }
    }
    Ok(())
}

fn containers(docker: &Docker) -> Result<String> {
    Ok(docker.docker("ps --format {{.Names}}|{{.Status}}|{{.Ports}}")?.replace('|', "  "))
}

fn endpoints(member: &Member) -> Result<String> {
    member.overlay(&["endpoints"])
}

fn learned(member: &Member, container: &DockerContainer) -> Result<()> {
    let address = container.address().to_string();
    wait_until(&format!("the endpoint {address}"), SOON, || {
        Ok(endpoints(member)?.lines().any(|line| line.split_whitespace().next() == Some(&address)))
    })
}

/// The address of docker0.
fn gateway(container: &DockerContainer) -> std::net::Ipv4Addr {
    let [a, b, c, _] = container.address().octets();
    [a, b, c, 1].into()
}

fn carried(members: &[Member]) -> Result<Vec<lab::Carried>> {
    members.iter().map(|member| Ok(member.counters()?.carried())).collect()
}

/// Prints what each tier carried since `before`. It fails if the fast path carried nothing, or if anything was dropped.
fn table(members: &[Member], before: &[lab::Carried]) -> Result<()> {
    println!("  host    fast out     fast in   stack out    stack in     dropped");
    for ((member, before), now) in members.iter().zip(before).zip(carried(members)?) {
        let name = member.host.name();
        let (fast_out, fast_in) = (now.fast_out - before.fast_out, now.fast_in - before.fast_in);
        println!(
            "  {name:4}{fast_out:>12}{fast_in:>12}{:>12}{:>12}{:>12}",
            now.stack_out - before.stack_out,
            now.stack_in - before.stack_in,
            now.dropped
        );
        ensure!(fast_out > 0 && fast_in > 0, "the fast path of {name} carried nothing");
        ensure!(now.dropped == 0, "{name} dropped {} packets", now.dropped);
    }
    Ok(())
}

fn indented(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
