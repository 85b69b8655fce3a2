//! `overlay adopt-flannel`: moves a host from flannel to the overlay in place, and back.
mod back;
mod over;

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::unistd::Uid;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{Opened, open};
use crate::{
    cli::options::AdoptFlannel,
    datapath::state::Paths,
    flannel::{
        daemon,
        discover::{DiscoverError, Expected, Sight, device_name, discover},
        plan::Plan,
        record::Record,
        rules::Rules,
        switch,
        toll::Toll,
    },
    host::{
        netlink::Netlink,
        underlay::{self, Underlay},
    },
    model::{
        backend::Mode,
        lease::{self, Lease},
        network::NetworkConfig,
    },
    store::{Snapshot, Store},
};

/// What the command says, for programs.
#[derive(Serialize)]
struct Report<'a> {
    /// The host was moved now.
    moved: bool,
    plan: Option<&'a Plan>,
    toll: Option<&'a Toll>,
    /// What to run next.
    next: Option<String>,
}

/// What is known before anything is done.
struct Site<S> {
    store: S,
    netlink: Netlink,
    paths: Paths,
    underlay: Underlay,
    public_ip: Ipv4Addr,
    network: NetworkConfig,
    mode: Mode,
    snapshot: Snapshot,
}

pub(super) async fn adopt(options: &AdoptFlannel) -> Result<()> {
    if !Uid::effective().is_root() {
        bail!("devices, rules and programs of the kernel are looked at and altered: run it as root");
    }
    match open(options.agent.store.choice().map_err(|error| anyhow!(error))?)? {
        Opened::Etcd(store) => with_store(*store, None, options).await,
        Opened::Directory { store, path, shared } => {
            with_store(store, (!shared).then_some(path.as_path()), options).await
        }
    }
}

async fn with_store(store: impl Store, private: Option<&Path>, options: &AdoptFlannel) -> Result<()> {
    let paths = options.agent.place.paths();
    let record = Record::read(&paths)?;
    if options.back {
        return back::back(store, options, paths, record).await;
    }
    let obstacle = obstacle()?;
    if record.as_ref().is_some_and(|record| !record.finished) {
        bail!(
            "an earlier move was cut off: `overlay adopt-flannel --back` makes the host flannel's again; then run this again"
        );
    }
    let mut site = Site::look(store, options, paths).await?;
    let expected = site.expected();
    let sight = site.sight(options).await?;
    let found = match discover(sight, &expected) {
        Err(DiscoverError::NoDevice { .. } | DiscoverError::NoRoute) if record.is_some() => {
            say(options, &Report { moved: false, plan: None, toll: None, next: None }, || {
                "nothing to adopt: this host was moved from flannel before; `--back` returns it".to_owned()
            });
            return Ok(());
        }
        found => found?,
    };
    let mut work = over::Work::prepare(&mut site, options, found).await?;
    if options.agent.dry_run {
        work.plan.notes.extend(obstacle);
        say(options, &Report { moved: false, plan: Some(&work.plan), toll: None, next: None }, || {
            work.plan.to_string()
        });
        return Ok(());
    }
    if let Some(obstacle) = obstacle {
        bail!(obstacle);
    }
    if !options.json {
        println!("{}", work.plan);
    }
    let masquerade = work.masquerade;
    let plan = work.plan.clone();
    let toll = over::carry_out(site, private, options, work).await?;
    let next = agent_line(std::env::args(), masquerade && !options.agent.ip_masq);
    say(
        options,
        &Report { moved: true, plan: Some(&plan), toll: Some(&toll), next: Some(next.clone()) },
        || {
            format!(
                "\nthis host is the overlay's; what was flannel's is gone\n{toll}\nnow start the agent: {next}"
            )
        },
    );
    Ok(())
}

/// A flanneld that runs here, and what to do about it. Asked again once the store has answered, which may take any time.
fn obstacle() -> Result<Option<String>> {
    let daemons = daemon::running().context("look for flanneld among the processes")?;
    Ok(daemons.first().map(|pid| {
        format!(
            "flanneld runs here (pid {pid}) and would put back what is removed: end it first (`systemctl stop flanneld`, or \
             whatever starts it); traffic goes on without it"
        )
    }))
}

impl<S: Store> Site<S> {
    async fn look(mut store: S, options: &AdoptFlannel, paths: Paths) -> Result<Self> {
        let netlink = Netlink::open()?;
        let underlay = underlay::choose(&netlink, &options.agent.underlay.choice()).await?;
        let public_ip = options.agent.underlay.public_ip.unwrap_or(underlay.address);
        let text =
            store.config().await?.with_context(|| format!("{} has no network config", store.name()))?;
        let network = NetworkConfig::parse(&text).with_context(|| format!("read from {}", store.name()))?;
        let mode = Mode::of(&network)?;
        if matches!(mode, Mode::Udp { .. }) {
            bail!(
                "flannel's udp backend leaves nothing to adopt: its device goes with flanneld. End flanneld, and start \
                 `overlay agent`, which finds the lease"
            );
        }
        let snapshot = store.snapshot().await?;
        Ok(Self { store, netlink, paths, underlay, public_ip, network, mode, snapshot })
    }

    fn expected(&self) -> Expected {
        Expected {
            network: self.network.network,
            mode: self.mode,
            underlay: self.underlay.clone(),
            public_ip: self.public_ip,
            leases: leases(&self.snapshot),
        }
    }

    async fn sight(&self, options: &AdoptFlannel) -> Result<Sight> {
        let subnet_env = std::fs::read_to_string(&options.agent.subnet_file).ok();
        let rules = Rules::find().await.context("look for flannel's rules")?;
        Ok(Sight::look(&self.netlink, self.device_name().as_deref(), rules, subnet_env).await?)
    }

    /// flannel's device, if its backend has one.
    fn device_name(&self) -> Option<String> {
        self.mode.vni().map(device_name)
    }

    /// Fails where `device` cannot be ours.
    async fn refuse_foreign(&self, device: &str) -> Result<()> {
        switch::refuse_foreign(&self.netlink, device, self.device_name().as_deref()).await
    }
}

/// From now on SIGTERM, SIGINT and SIGHUP (a terminal that went away, perhaps with the very network that is moved) end
/// nothing: half of a move is no state to be left in.
fn ignore_signals() -> Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        // The handler stays when this is dropped.
        drop(signal(kind).context("listen for signals")?);
    }
    Ok(())
}

/// What in the store is a lease.
fn leases(snapshot: &Snapshot) -> Vec<(String, Lease)> {
    let decode = |key: &str, value| lease::decode(key, value).ok().map(|lease| (key.to_owned(), lease));
    snapshot.entries.iter().filter_map(|entry| decode(&entry.key, &entry.value)).collect()
}

fn say(options: &AdoptFlannel, report: &Report<'_>, text: impl FnOnce() -> String) {
    if options.json {
        println!("{:#}", serde_json::json!(report));
    } else {
        println!("{}", text());
    }
}

/// The command that starts the agent with the options that this one was given. `masquerade` adds --ip-masq, in the place of
/// one that says otherwise.
fn agent_line(arguments: impl Iterator<Item = String>, masquerade: bool) -> String {
    const PASSWORD: &str = "--etcd-password";
    let mut words = vec!["overlay".to_owned(), "agent".to_owned()];
    let mut secret = false;
    for word in arguments.skip(1) {
        let (option, value) =
            word.split_once('=').map_or((&*word, None), |(option, value)| (option, Some(value)));
        match option {
            _ if secret => words.push("...".to_owned()),
            "adopt-flannel" | "--json" => {}
            "--ip-masq" if masquerade => {}
            PASSWORD if value.is_some() => words.push(format!("{PASSWORD}=...")),
            _ => words.push(word.clone()),
        }
        secret = !secret && word == PASSWORD;
    }
    if masquerade {
        words.push("--ip-masq".to_owned());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::environment;

    fn line(given: &str, masquerade: bool) -> String {
        let line = agent_line(given.split(' ').map(str::to_owned), masquerade);
        let parsed = environment::parse(line.split(' ').map(Into::into), |_| None);
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        line
    }

    #[test]
    fn the_agents_command_line_has_the_same_options_and_no_password() {
        let given = "overlay adopt-flannel --json --iface eth0 --etcd-password secret --etcd-username me";
        let expected = "overlay agent --iface eth0 --etcd-password ... --etcd-username me";
        assert_eq!(line(given, false), expected);
        assert_eq!(line(given, true), format!("{expected} --ip-masq"));
        let given = "overlay adopt-flannel --etcd-password=secret=1 --etcd-username=me";
        assert_eq!(line(given, false), "overlay agent --etcd-password=... --etcd-username=me");
        // A password that looks like something else.
        for secret in ["--json", "adopt-flannel", "--ip-masq", "--etcd-password"] {
            let given = format!("overlay adopt-flannel --etcd-password {secret} --etcd-username me");
            let line = agent_line(given.split(' ').map(str::to_owned), false);
            assert_eq!(line, "overlay agent --etcd-password ... --etcd-username me");
        }
    }

    #[test]
    fn masquerading_that_is_taken_over_is_said_once() {
        for no in ["--ip-masq=false", "--ip-masq=no"] {
            let given = format!("overlay adopt-flannel {no} --iface eth0");
            assert_eq!(line(&given, true), "overlay agent --iface eth0 --ip-masq");
            assert_eq!(line(&given, false), format!("overlay agent {no} --iface eth0"));
        }
        let given = "overlay adopt-flannel --ip-masq --iface eth0";
        assert_eq!(line(given, false), "overlay agent --ip-masq --iface eth0");
    }
}
