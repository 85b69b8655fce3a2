//! What the agent costs and how fast it is with many peers: a real agent on a host of the lab, a real etcd, and leases
//! of hosts that do not exist. It is measured from outside, by the maps and by /proc.
use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_common::ABI;
use serde::Serialize;

use overlay_lab::{self as lab, Agent, Lab, Store};

use leases::{Latencies, Leases};
pub use map::MapSize;
use map::Peers;
pub(crate) use map::memlock;
pub use process::Memory;
use process::cpu_time;
use samples::{Percentiles, milliseconds};

mod leases;
mod map;
pub mod peer;
mod process;
pub mod samples;

/// What is measured, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many other hosts there are.
    pub peers: u32,
    /// How many single changes are made.
    pub changes: u32,
    /// How many cold starts are made.
    pub starts: u32,
    /// How long the agent is watched at rest, and how long at a steady rate of changes.
    pub watch: Duration,
    /// How many changes there are per second at that rate.
    pub rate: u32,
}

impl Plan {
    /// The plan for figures that are recorded.
    pub const FULL: Self =
        Self { peers: 10_000, changes: 1000, starts: 5, watch: Duration::from_secs(10), rate: 1000 };
    /// The plan for a quick look, which takes 12 seconds and has the same quantities.
    pub const QUICK: Self = Self { changes: 100, starts: 2, watch: Duration::from_secs(3), ..Self::FULL };
}

/// The figures that were measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How many other hosts there are.
    pub peers: u32,
    /// Every cold start, in milliseconds.
    pub cold_starts: Vec<ColdStart>,
    /// The time from etcd's answer to the map entry, for all kinds of changes together.
    pub change: Percentiles,
    /// The time from the request to etcd, because some changes are in the map before etcd's answer arrives.
    pub change_from_asking: Percentiles,
    /// The time for a lease that is new.
    pub change_comes: Percentiles,
    /// The time for a lease whose addresses change.
    pub change_moves: Percentiles,
    /// The time for a lease that is deleted.
    pub change_leaves: Percentiles,
    /// The agent's memory after the last cold start.
    pub memory_at_rest: Memory,
    /// The agent's memory after all changes.
    pub memory_after_changes: Memory,
    /// The sizes of the network's maps.
    pub maps: Vec<MapSize>,
    /// CPU time at rest, in percent of one CPU.
    pub cpu_at_rest_percent: f64,
    /// CPU time while changes come steadily, in percent of one CPU.
    pub cpu_at_rate_percent: f64,
    /// How many changes came per second then.
    pub rate: f64,
    /// How long after etcd's last answer the maps showed all of them, in milliseconds.
    pub rate_behind_ms: f64,
}

/// Times in milliseconds from the command that starts the agent. Nothing is pinned then, and the host has no lease.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ColdStart {
    /// The time until the maps exist; the lease is acquired by then.
    pub maps_ms: f64,
    /// The time until the last peer is in the map.
    pub last_peer_ms: f64,
    /// The time from reading back what was in force to the last write, as the agent itself reports it.
    pub first_apply_ms: f64,
}

/// The switch, an etcd, and one host. When it is dropped, they end in this order.
struct Bed<'a> {
    agent: Option<Agent>,
    leases: Leases,
    store: Store,
    lab: Lab,
    binary: &'a Path,
}

/// Measures everything. `said` is told what is being done.
pub fn measure(binary: &Path, plan: &Plan, mut said: impl FnMut(&str)) -> Result<Report> {
    let lab = Lab::new(lab::Options { hosts: 1, ..lab::Options::default() })?;
    let mut store = Store::etcd(&lab)?;
    lab::configure(&lab, binary, &store, peer::CONFIG)?;
    let url = store.as_etcd()?.client_url();
    let leases = Leases { namespace: lab.switch().clone(), url };
    said(&format!("{} leases into etcd", plan.peers));
    leases.write(plan.peers)?;
    let mut bed = Bed { agent: None, leases, store, lab, binary };

    let mut cold_starts = Vec::new();
    for number in 1..=plan.starts {
        said(&format!("cold start {number} of {}", plan.starts));
        cold_starts.push(bed.cold_start(plan.peers)?);
    }
    let pid = bed.agent()?.pid()?;
    let memory_at_rest = Memory::of(pid)?;
    let maps = map::sizes(&bed.pins())?;

    said(&format!("{} s at rest", plan.watch.as_secs()));
    let (cpu_at_rest_percent, ()) = busy(pid, || {
        thread::sleep(plan.watch);
        Ok(())
    })?;

    said(&format!("{} changes, one at a time", plan.changes));
    let changed = bed.leases.one_by_one(bed.pins(), plan.peers, plan.changes);
    let Latencies { comes, moves, leaves, asked } = changed.with_context(|| bed.last_words())?;
    let all = [&comes[..], &moves, &leaves].concat();

    said(&format!("{} changes a second for {} s", plan.rate, plan.watch.as_secs()));
    let started = Instant::now();
    let changed = busy(pid, || bed.leases.steadily(bed.pins(), plan.peers, plan.rate, plan.watch));
    let (cpu_at_rate_percent, (made, behind)) = changed.with_context(|| bed.last_words())?;
    let rate = made as f64 / started.elapsed().as_secs_f64();

    ensure!(bed.agent()?.pid()? == pid && bed.agent()?.status()?.is_none(), "the agent ended meanwhile");
    Ok(Report {
        peers: plan.peers,
        cold_starts,
        change: Percentiles::of(all)?,
        change_from_asking: Percentiles::of(asked)?,
        change_comes: Percentiles::of(comes)?,
        change_moves: Percentiles::of(moves)?,
        change_leaves: Percentiles::of(leaves)?,
        memory_at_rest,
        memory_after_changes: Memory::of(pid)?,
        maps,
        cpu_at_rest_percent,
        cpu_at_rate_percent,
        rate,
        rate_behind_ms: milliseconds(behind),
    })
}

impl Bed<'_> {
    fn pins(&self) -> PathBuf {
        self.lab.host(0).bpf_root().join("overlay").join(format!("v{ABI}")).join("default")
    }

    fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("no agent runs")
    }

    fn last_words(&self) -> String {
        format!("the agent's last lines:\n{}", self.lab.host(0).agent_log_tail())
    }

    /// Removes what an earlier agent left, here and in etcd, and starts an agent.
    fn cold_start(&mut self, peers: u32) -> Result<ColdStart> {
        let host = self.lab.host(0).clone();
        if let Some(agent) = self.agent.take() {
            let (subnet, _) = agent.subnet()?;
            agent.terminate()?;
            host.overlay(self.binary, &["down"])?;
            let key = format!("/coreos.com/network/subnets/{}", subnet.replace('/', "-"));
            let deleted = self.store.as_etcd()?.ctl(&["del", &key])?;
            ensure!(deleted.trim() == "1", "the host's own lease {key} was not there");
        }
        // The tables must have space for later peers, too.
        let table_size = (peers + 1000).to_string();
        let options = self.store.arguments().iter().map(String::as_str).chain(["--max-peers", &table_size]);
        let options: Vec<_> = options.collect();

        let started = Instant::now();
        self.agent = Some(host.start_agent(self.binary, &options)?);
        let map = self.appear()?;
        let appeared = Instant::now();
        let filled = map.fill(peers)?;
        self.agent()?.wait_ready(Duration::from_secs(20))?;
        ensure!(map.count()? == peers as usize, "{} peers in the map, not {peers}", map.count()?);

        let status = host.overlay(self.binary, &["status", "--json"])?;
        let status: serde_json::Value = serde_json::from_str(&status).context("read the agent's status")?;
        let first = &status["agent"]["peers"]["first_apply"];
        ensure!(first["changes"] == peers, "the agent's first application was another one: {first}");
        let micros = first["micros"].as_u64().context("the agent's status has no first_apply")?;
        Ok(ColdStart {
            maps_ms: milliseconds(appeared - started),
            last_peer_ms: milliseconds(filled - started),
            first_apply_ms: micros as f64 / 1000.0,
        })
    }

    /// Waits until the agent has pinned its map of peers, and opens it.
    fn appear(&mut self) -> Result<Peers> {
        let pin = self.pins().join("peers");
        map::poll("the agent's maps", Duration::from_micros(200), || {
            let ended = self.agent()?.status()?;
            ensure!(ended.is_none(), "the agent ended; {}", self.last_words());
            Ok(pin.exists())
        })?;
        Peers::open(&self.pins())
    }
}

/// Does `work`, and returns the CPU time that the process used meanwhile, in percent of one CPU.
fn busy<T>(pid: u32, work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let (before, started) = (cpu_time(pid)?, Instant::now());
    let done = work()?;
    let used = cpu_time(pid)?.saturating_sub(before);
    Ok((used.as_secs_f64() / started.elapsed().as_secs_f64() * 100.0, done))
}
