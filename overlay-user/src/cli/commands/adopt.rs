//! `overlay adopt-flannel`: moves a host from flannel to the overlay in place, or back.
use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use nix::unistd::Uid;
use serde::Serialize;

use super::opened::{Opened, open};
use crate::{
    cli::options::AdoptFlannel,
    flannel::{
        discover::{DiscoverError, discover},
        disruption::Disruption,
        plan::Plan,
        record::FlannelRecord,
        site::{Site, ignore_signals, obstacle},
        to_flannel::{ending, of_leases, put_back},
        to_overlay,
    },
    host::{capabilities, netlink::Netlink, subnet_env},
    store::Store,
};

/// What the command prints for programs.
#[derive(Serialize)]
struct MoveReport<'a> {
    /// Whether the host was moved by this run.
    moved: bool,
    plan: Option<&'a Plan>,
    #[serde(rename = "toll")]
    disruption: Option<&'a Disruption>,
    /// What to run next.
    next: Option<String>,
}

pub(super) async fn adopt(options: &AdoptFlannel) -> Result<()> {
    if !Uid::effective().is_root() {
        bail!("devices, rules and programs of the kernel are looked at and altered: run it as root");
    }
    capabilities::require()?;
    match open(&options.agent.store)? {
        Opened::Etcd(store) => with_store(*store, None, options).await,
        Opened::Directory { store, path, shared } => {
            with_store(store, (!shared).then_some(path.as_path()), options).await
        }
    }
}

async fn with_store(store: impl Store, private: Option<&Path>, options: &AdoptFlannel) -> Result<()> {
    let asked = options.agent.options();
    let record = FlannelRecord::read(&asked.paths)?;
    if options.back {
        return back(store, options, record).await;
    }
    let obstacle = obstacle()?;
    if record.as_ref().is_some_and(|record| !record.finished) {
        bail!(
            "an earlier move was cut off: `overlay adopt-flannel --back` makes the host flannel's again; then run this again"
        );
    }
    let mut site = Site::look(store, &asked).await?;
    let expected = site.expected();
    let sight = site.sight(&asked).await?;
    if let Some(record) = &record
        && let Some(name) = site.leftover(&sight, &record.tunnel).await?
    {
        bail!(
            "this host was moved from flannel before. {name} is what a flanneld has left that was started since then, and that \
             could not have the port: `systemctl disable --now flanneld`, and `ip link delete {name}`"
        );
    }
    let found = match discover(sight, &expected) {
        Err(DiscoverError::Nothing(_)) if record.is_some() => {
            say(options, &MoveReport { moved: false, plan: None, disruption: None, next: None }, || {
                "nothing to adopt: this host was moved from flannel before; `--back` returns it".to_owned()
            });
            return Ok(());
        }
        found => found?,
    };
    let mut work = to_overlay::PreparedMove::prepare(&mut site, &asked, found).await?;
    if options.agent.dry_run {
        work.plan.notes.extend(obstacle);
        say(
            options,
            &MoveReport { moved: false, plan: Some(&work.plan), disruption: None, next: None },
            || work.plan.to_string(),
        );
        return Ok(());
    }
    if let Some(obstacle) = obstacle {
        bail!(obstacle);
    }
    if !options.json {
        println!("{}", work.plan);
    }
    let added: Vec<_> = [
        ("--ip-masq", work.masquerade && !options.agent.ip_masq),
        ("--ip-blackhole-route", work.blackhole && !options.agent.ip_blackhole_route),
    ]
    .into_iter()
    .filter_map(|(option, is_missing)| is_missing.then_some(option))
    .collect();
    let plan = work.plan.clone();
    let disruption = to_overlay::carry_out(site, private, &asked, work).await?;
    let next = agent_line(std::env::args(), &added);
    say(
        options,
        &MoveReport {
            moved: true,
            plan: Some(&plan),
            disruption: Some(&disruption),
            next: Some(next.clone()),
        },
        || {
            format!(
                "\nthis host is the overlay's; what was flannel's is gone\n{disruption}\nnow start the agent: {next}"
            )
        },
    );
    Ok(())
}

async fn back(store: impl Store, options: &AdoptFlannel, record: Option<FlannelRecord>) -> Result<()> {
    let asked = options.agent.options();
    let paths = &asked.paths;
    let record = match record {
        Some(record) => record,
        None => of_leases(&Site::look(store, &asked).await?, &asked).await?,
    };
    let flannel = &record.flannel;
    let mut plan = Plan::back(&record);
    plan.notes.extend(ending(&Netlink::open()?, &record).await?);
    let obstacle = obstacle()?;
    if options.agent.dry_run {
        plan.notes.extend(obstacle);
        say(options, &MoveReport { moved: false, plan: Some(&plan), disruption: None, next: None }, || {
            plan.to_string()
        });
        return Ok(());
    }
    if let Some(obstacle) = obstacle {
        bail!(obstacle);
    }
    std::fs::create_dir_all(&paths.state).with_context(|| format!("create {}", paths.state.display()))?;
    // A running agent would put back what is removed here.
    let lock = Arc::new(paths.lock().context("end the agent first")?);
    paths.uncover()?;
    if !options.json {
        println!("{plan}");
    }
    ignore_signals()?;
    let disruption = put_back(&Netlink::open()?, paths, &record, lock).await?;
    if let Some(text) = &flannel.subnet_env {
        // flannel's text is put back, because the agent's says whether the agent masqueraded, not whether flanneld did.
        subnet_env::replace(&asked.subnet_file, text.as_bytes())
            .with_context(|| format!("write {}", asked.subnet_file.display()))?;
    }
    let next = "flanneld".to_owned();
    say(
        options,
        &MoveReport { moved: true, plan: Some(&plan), disruption: Some(&disruption), next: Some(next) },
        || format!("\nthis host is flannel's again\n{disruption}\nnow start flanneld"),
    );
    Ok(())
}

fn say(options: &AdoptFlannel, report: &MoveReport<'_>, text: impl FnOnce() -> String) {
    if options.json {
        println!("{:#}", serde_json::json!(report));
    } else {
        println!("{}", text());
    }
}

/// The command that starts the agent with the options that this command was given. Those in `added` are added, in place of options
/// that say otherwise.
fn agent_line(arguments: impl Iterator<Item = String>, added: &[&str]) -> String {
    const PASSWORD: &str = "--etcd-password";
    let mut words = vec!["overlay".to_owned(), "agent".to_owned()];
    let mut secret = false;
    for word in arguments.skip(1) {
        let (option, value) =
            word.split_once('=').map_or((&*word, None), |(option, value)| (option, Some(value)));
        match option {
            _ if secret => words.push("...".to_owned()),
            "adopt-flannel" | "--json" => {}
            _ if added.contains(&option) => {}
            PASSWORD if value.is_some() => words.push(format!("{PASSWORD}=...")),
            _ => words.push(word.clone()),
        }
        secret = !secret && word == PASSWORD;
    }
    words.extend(added.iter().map(|option| (*option).to_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::environment;

    fn line(given: &str, added: &[&str]) -> String {
        let line = agent_line(given.split(' ').map(str::to_owned), added);
        let parsed = environment::parse(line.split(' ').map(Into::into), |_| None);
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        line
    }

    #[test]
    fn the_agents_command_line_has_the_same_options_and_no_password() {
        let given = "overlay adopt-flannel --json --iface eth0 --etcd-password secret --etcd-username me";
        let expected = "overlay agent --iface eth0 --etcd-password ... --etcd-username me";
        assert_eq!(line(given, &[]), expected);
        assert_eq!(line(given, &["--ip-masq"]), format!("{expected} --ip-masq"));
        let both = ["--ip-masq", "--ip-blackhole-route"];
        assert_eq!(line(given, &both), format!("{expected} --ip-masq --ip-blackhole-route"));
        let given = "overlay adopt-flannel --etcd-password=secret=1 --etcd-username=me";
        assert_eq!(line(given, &[]), "overlay agent --etcd-password=... --etcd-username=me");
        // The password may look like an option or a command.
        for secret in ["--json", "adopt-flannel", "--ip-masq", "--etcd-password"] {
            let given = format!("overlay adopt-flannel --etcd-password {secret} --etcd-username me");
            let line = agent_line(given.split(' ').map(str::to_owned), &[]);
            assert_eq!(line, "overlay agent --etcd-password ... --etcd-username me");
        }
    }

    #[test]
    fn masquerading_that_is_taken_over_is_said_once() {
        for no in ["--ip-masq=false", "--ip-masq=no"] {
            let given = format!("overlay adopt-flannel {no} --iface eth0");
            assert_eq!(line(&given, &["--ip-masq"]), "overlay agent --iface eth0 --ip-masq");
            assert_eq!(line(&given, &[]), format!("overlay agent {no} --iface eth0"));
        }
        let given = "overlay adopt-flannel --ip-masq --iface eth0";
        assert_eq!(line(given, &[]), "overlay agent --ip-masq --iface eth0");
    }
}
