//! How hosts look from outside: what is pinned, which devices and links there are, which tier carries packets, and whether agents and
//! containers hear of each other.
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    container::PingOptions,
    counters::Carried,
    host::Host,
    interrupt::check_interrupted,
    member::{Member, Store},
    numbered::Numbered,
    wait::wait_until,
};

/// How long an agent or a container may take to hear of another on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a host's agents pin, with one folder for each layout.
pub(super) fn pins(host: &Host) -> PathBuf {
    host.bpf_root().join("overlay")
}

/// The pins of a host, relative to that folder.
pub(super) fn pinned(host: &Host) -> BTreeSet<PathBuf> {
    let top = pins(host);
    let (mut found, mut open) = (BTreeSet::new(), vec![top.clone()]);
    while let Some(folder) = open.pop() {
        // It may be removed, or not be there yet.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                _ => found.extend(entry.path().strip_prefix(&top).ok().map(Path::to_owned)),
            }
        }
    }
    found
}

/// The folders of the layouts.
pub(super) fn layouts(host: &Host) -> Vec<PathBuf> {
    fs::read_dir(pins(host)).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// How the pins of a host differ from those of `before`.
pub(super) fn missing(host: &Host, before: &BTreeSet<PathBuf>) -> String {
    let now = pinned(host);
    let list = |paths: Vec<&PathBuf>| {
        paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    };
    let (lacks, more) = (list(before.difference(&now).collect()), list(now.difference(before).collect()));
    format!("{}: missing {lacks}; more than before {more}", host.name())
}

/// Index of overlay0, as `ip` prints it.
pub(super) fn device(host: &Host) -> Result<String> {
    let line = host.exec("ip -o link show dev overlay0")?;
    Ok(line.split(':').next().unwrap_or_default().to_owned())
}

/// Id of a pinned link, if it is there.
pub(super) fn link_id(host: &Host, path: &Path) -> Option<u64> {
    let shown = host.exec(&format!("bpftool -j link show pinned {}", path.display())).ok()?;
    serde_json::from_str::<serde_json::Value>(&shown).ok()?["id"].as_u64()
}

/// Whether the kernel's stack carries the numbered packets now, rather than the fast path: under every `--fast-path` but `on`, or
/// `auto` without a reason, because nobody answers them; or after the underlay was cut, because what had no path then was left to
/// the stack, and a connection that the stack has seen in one direction alone stays there.
pub(super) fn is_on_stack(members: &[Member]) -> Result<bool> {
    let carried =
        || members.iter().map(|member| Ok(member.counters()?.carried())).collect::<Result<Vec<_>>>();
    let before = carried()?;
    thread::sleep(Duration::from_millis(200));
    Ok(before.iter().zip(&carried()?).any(|(before, after)| stack_carries(before, after)))
}

/// Whether the stack of a host has carried a stream in either direction meanwhile. Each direction is looked at alone: where the
/// receiving host's program was detached, the packets leave their host by the fast path and still arrive through overlay0.
fn stack_carries(before: &Carried, after: &Carried) -> bool {
    let out = (after.stack_out - before.stack_out, after.fast_out - before.fast_out);
    let into = (after.stack_in - before.stack_in, after.fast_in - before.fast_in);
    // What else there is, such as a ping, is much less than a stream.
    [out, into].into_iter().any(|(stack, fast)| stack > fast / 10 + 10)
}

/// Waits until every container reaches its counterpart on the other host, and until all endpoints are learned, so that
/// the fast path carries what follows.
pub(super) fn learn(members: &[Member]) -> Result<()> {
    let once = PingOptions { count: 1, timeout: 0.5, ..PingOptions::default() };
    for (here, there) in [(0, 1), (1, 0)] {
        for (from, to) in members[here].containers.iter().zip(&members[there].containers) {
            wait_until("containers that answer", Duration::from_secs(20), || {
                Ok(from.ping(to.address(), once)?.complete())
            })?;
        }
    }
    for member in members {
        wait_until("endpoints that are learned", Duration::from_secs(20), || {
            let listed = member.overlay(&["endpoints", "--json"])?;
            Ok(member.containers.iter().all(|one| listed.contains(&format!("\"{}\"", one.address()))))
        })?;
    }
    Ok(())
}

/// Waits until the containers reach each other, and until numbered packets arrive again. A ping alone says little of them: it is
/// a new connection, which the fast path may carry while the stack, which carries them, has no path yet.
pub(super) fn reach(members: &[Member], streams: &[Numbered]) -> Result<()> {
    let once = PingOptions { count: 1, timeout: 0.3, ..PingOptions::default() };
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (&members[from].containers[0], &members[to].containers[0]);
        wait_until("an answer", PATIENCE, || Ok(from.ping(to.address(), once)?.complete()))?;
    }
    streams.iter().try_for_each(|stream| stream.flow(PATIENCE))
}

/// Waits until the agents have heard of a host that comes, and of its end.
pub(super) fn follow(members: &[Member], store: &mut Store) -> Result<()> {
    // Agents choose subnets below 10.244.64.0.
    const SUBNET: &str = "10.244.250.0";
    const VALUE: &str = r#"{"PublicIP":"172.16.0.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:fa"}}"#;
    let key = format!("/coreos.com/network/subnets/{SUBNET}-24");
    for comes in [true, false] {
        let done = if comes { ["put", &key, VALUE].to_vec() } else { ["del", &key].to_vec() };
        // An etcd that hung or has just begun may refuse for a moment, and so it may on a busy machine.
        let (asked, etcd) = (Instant::now(), store.as_etcd()?);
        while let Err(error) = etcd.ctl(&done) {
            ensure!(asked.elapsed() < PATIENCE, "etcd refuses for too long: {error:#}");
            check_interrupted()?;
        }
        for member in members {
            let what = if comes { "a new peer" } else { "a peer's end" };
            wait_until(
                what,
                PATIENCE,
                || Ok(member.overlay(&["peers", "--json"])?.contains(SUBNET) == comes),
            )
            .with_context(|| member.host.name())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_on_the_stack_is_seen_in_either_direction_and_a_ping_is_none() {
        let before = Carried { fast_out: 7, fast_in: 7, stack_out: 900, stack_in: 900, dropped: 0 };
        let fast = Carried { fast_out: 10_007, fast_in: 10_007, ..before };
        assert!(!stack_carries(&before, &Carried { stack_out: 910, stack_in: 910, ..fast }));
        assert!(stack_carries(&before, &Carried { stack_out: 10_900, fast_out: 7, ..fast }));
        // The other host's packets leave it by the fast path, and arrive here through overlay0.
        assert!(stack_carries(&before, &Carried { stack_in: 10_900, fast_in: 7, ..fast }));
    }
}
