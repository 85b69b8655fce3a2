//! Agents that come and go while packets are on their way: what `cargo xtask endure` runs for long, and the tests briefly.
use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::{
    container::{Container, PingOptions},
    lab::Lab,
    member::{Member, Store, populate},
    numbered::{Numbered, NumberedReport, queue_overflows},
    options::Options,
    project::{self, Next},
    steady::{Steady, SteadyReport},
    wait::wait_until,
};

/// The agents that take turns.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The present one.
    pub present: PathBuf,
    /// With other programs on the same maps.
    pub program: PathBuf,
    /// With another map layout.
    pub layout: PathBuf,
}

impl Binaries {
    /// Builds those that come after the present one.
    pub fn beside(present: PathBuf) -> Result<Self> {
        let program = project::build_next(Next::Program)?;
        Ok(Self { present, program, layout: project::build_next(Next::Layout)? })
    }
}

/// Two hosts with an etcd between them, and what is on its way.
pub struct Endurance {
    binaries: Binaries,
    rate: u32,
    connection: Steady,
    members: Vec<Member>,
    _store: Store,
    _lab: Lab,
}

/// What became of the packets of one direction, in one round or all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Direction {
    /// Packets sent.
    pub sent: u64,
    /// Packets that arrived.
    pub delivered: u64,
    /// Packets that never arrived.
    pub lost: u64,
    /// Packets beyond the first of their number.
    pub duplicated: u64,
    /// Packets per second as sent; in a sum, of the slowest round.
    pub rate: u64,
    /// The longest time without any packet, in milliseconds.
    pub longest_gap_ms: u128,
}

/// One round, or all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Round {
    /// From the first host to the second, and back.
    pub directions: [Direction; 2],
    /// Packets that the hosts' programs dropped or answered meanwhile, by their counters, which outlive every agent.
    pub dropped: u64,
    /// Frames that this machine's CPUs threw away meanwhile because their queues were full, whoever sent them.
    pub machine_overflows: u64,
}

impl Endurance {
    /// Starts hosts and agents, the latter with `options`, and the connection.
    pub fn start(lab: Options, binaries: Binaries, options: &[&str], rate: u32) -> Result<Self> {
        let lab = Lab::new(lab)?;
        let store = Store::etcd(&lab)?;
        let members = populate(&lab, &binaries.present, &store, options)?;
        learn(&members)?;
        let connection = Steady::start(&members[0].containers[1], &members[1].containers[1])?;
        Ok(Self { binaries, rate, connection, members, _store: store, _lab: lab })
    }

    /// Packets in both directions, `least` of them in each at least, while both hosts' agents are killed, ended and
    /// started; replaced by one with other programs, and back; replaced by one with another map layout, in whose
    /// place the present one then refuses to start.
    ///
    /// The way back is `overlay down` and a fresh start: no packets are counted meanwhile. The connection survives that too.
    pub fn round(&mut self, least: u64, mut said: impl FnMut(&str)) -> Result<Round> {
        let (overflows, dropped) = (queue_overflows()?, self.dropped()?);
        let (a, b) = (self.container(0), self.container(1));
        let streams = [Numbered::start(&a, &b, self.rate)?, Numbered::start(&b, &a, self.rate)?];
        thread::sleep(Duration::from_millis(300));
        let Binaries { present, program, layout } = self.binaries.clone();

        said("kill -9");
        self.replace(&present, Member::kill_agent)?;
        said("SIGTERM");
        self.replace(&present, end)?;
        said("other programs");
        self.replace(&program, end)?;
        said("back");
        self.replace(&present, Member::kill_agent)?;
        said("another map layout");
        self.replace(&layout, end)?;
        said("the older agent refuses");
        for member in &mut self.members {
            end(member)?;
            member.install(&present);
            refuses(member)?;
            member.install(&layout);
            member.start_agent()?;
        }
        for member in &mut self.members {
            member.wait_ready()?;
        }

        let started = Instant::now();
        while streams.iter().any(|stream| stream.sent() < least) && started.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(50));
        }
        thread::sleep(Duration::from_millis(300));
        let [out, back] = streams.map(Numbered::finish);
        let directions = [Direction::from(out?), Direction::from(back?)];
        let dropped = self.dropped()?.checked_sub(dropped).context("counters went back")?;
        let round = Round { directions, dropped, machine_overflows: queue_overflows()? - overflows };

        said("the way back");
        for member in &mut self.members {
            end(member)?;
            member.overlay(&["down"])?;
            member.install(&present);
            member.start_agent()?;
        }
        for member in &mut self.members {
            member.wait_ready()?;
        }
        learn(&self.members)?;
        Ok(round)
    }

    /// Ends the connection and says what it carried.
    pub fn finish(self) -> Result<SteadyReport> {
        self.connection.finish().context("the TCP connection through all rounds")
    }

    fn dropped(&self) -> Result<u64> {
        self.members.iter().map(|member| Ok(member.counters()?.carried().dropped)).sum()
    }

    fn container(&self, host: usize) -> Container {
        self.members[host].containers[0].clone()
    }

    /// Ends both agents in that way, lets the kernel alone for a moment, and starts `binary`.
    fn replace(&mut self, binary: &std::path::Path, ends: fn(&mut Member) -> Result<()>) -> Result<()> {
        for member in &mut self.members {
            ends(member)?;
            member.install(binary);
        }
        thread::sleep(Duration::from_millis(100));
        for member in &mut self.members {
            member.start_agent()?;
        }
        self.members.iter_mut().try_for_each(Member::wait_ready)
    }
}

/// How long a round may wait for its packets, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn end(member: &mut Member) -> Result<()> {
    let status = member.end_agent()?;
    ensure!(status.success(), "the agent ended with {status}");
    Ok(())
}

/// The agent that is installed ends by itself, with the words for a layout that is newer than it.
fn refuses(member: &mut Member) -> Result<()> {
    member.start_agent()?;
    let mut ended = None;
    wait_until("an agent that is too old to end", Duration::from_secs(20), || {
        ended = member.agent()?.status()?;
        Ok(ended.is_some())
    })?;
    let (status, log) = (ended.context("its exit status")?, member.host.agent_log_tail());
    ensure!(
        status.code() == Some(1) && log.contains("of a map layout that this agent (layout"),
        "the older agent ended with {status}:\n{log}"
    );
    Ok(())
}

/// Every container reaches every other host's, by the fast path from then on.
fn learn(members: &[Member]) -> Result<()> {
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

impl From<NumberedReport> for Direction {
    fn from(report: NumberedReport) -> Self {
        Self {
            sent: report.sent,
            delivered: report.received,
            lost: report.lost,
            duplicated: report.duplicated,
            rate: report.rate,
            longest_gap_ms: report.longest_gap.as_millis(),
        }
    }
}

impl Round {
    /// Adds another round.
    pub fn add(&mut self, other: &Self) {
        for (sum, one) in self.directions.iter_mut().zip(&other.directions) {
            *sum = Direction {
                sent: sum.sent + one.sent,
                delivered: sum.delivered + one.delivered,
                lost: sum.lost + one.lost,
                duplicated: sum.duplicated + one.duplicated,
                rate: if sum.rate == 0 { one.rate } else { sum.rate.min(one.rate) },
                longest_gap_ms: sum.longest_gap_ms.max(one.longest_gap_ms),
            };
        }
        self.dropped += other.dropped;
        self.machine_overflows += other.machine_overflows;
    }

    /// Of both directions.
    pub fn lost(&self) -> u64 {
        self.directions.iter().map(|direction| direction.lost).sum()
    }

    /// Of both directions.
    pub fn sent(&self) -> u64 {
        self.directions.iter().map(|direction| direction.sent).sum()
    }
}
