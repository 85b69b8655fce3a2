//! Agents that are killed, ended, replaced and started while packets are under way. `cargo xtask endure` does this for
//! long, and tests do it briefly.
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
    /// The agent as it is built now.
    pub present: PathBuf,
    /// An agent with other programs for the same map layout.
    pub program: PathBuf,
    /// An agent with another map layout.
    pub layout: PathBuf,
}

impl Binaries {
    /// Builds the two agents that stand for later versions of `present`.
    pub fn beside(present: PathBuf) -> Result<Self> {
        let program = project::build_next(Next::Program)?;
        Ok(Self { present, program, layout: project::build_next(Next::Layout)? })
    }
}

/// Two hosts with an etcd between them, and the connection that lasts through all rounds.
pub struct Endurance {
    binaries: Binaries,
    rate: u32,
    connection: Steady,
    members: Vec<Member>,
    _store: Store,
    _lab: Lab,
}

/// What became of the packets of one direction, in one round or in all rounds together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Direction {
    /// Packets sent.
    pub sent: u64,
    /// Packets that arrived.
    pub delivered: u64,
    /// Packets that never arrived.
    pub lost: u64,
    /// Packets that arrived again after their number had arrived already.
    pub duplicated: u64,
    /// Packets per second as they were sent. In a sum it is the rate of the slowest round.
    pub rate: u64,
    /// The longest time without any packet, in milliseconds.
    pub longest_gap_ms: u128,
}

/// The figures of one round, or of all rounds together.
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
    /// Starts the hosts, their agents with `options`, and the connection.
    pub fn start(lab: Options, binaries: Binaries, options: &[&str], rate: u32) -> Result<Self> {
        let lab = Lab::new(lab)?;
        let store = Store::etcd(&lab)?;
        let members = populate(&lab, &binaries.present, &store, options)?;
        learn(&members)?;
        let connection = Steady::start(&members[0].containers[1], &members[1].containers[1])?;
        Ok(Self { binaries, rate, connection, members, _store: store, _lab: lab })
    }

    /// Sends numbered packets in both directions, at least `least` in each. Meanwhile both hosts' agents are killed,
    /// ended and started; they are replaced by agents with other programs, and these by the present ones again; at last
    /// they are replaced by agents with another map layout, whose maps the present agent must refuse.
    ///
    /// The return to the present layout is `overlay down` and a fresh start. No packets are counted during it, but the
    /// connection survives it too.
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

        said("back to the present layout");
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

    /// Ends both agents by `ends`, waits for a moment in which only the kernel carries packets, and starts `binary`.
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

/// How long a round may wait for its packets on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn end(member: &mut Member) -> Result<()> {
    let status = member.end_agent()?;
    ensure!(status.success(), "the agent ended with {status}");
    Ok(())
}

/// Checks that the installed agent ends by itself, saying that the maps have a newer layout than it knows.
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

/// Waits until every container reaches its counterpart on the other host, and until all endpoints are learned, so that
/// the fast path carries what follows.
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
    /// Adds the figures of another round.
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

    /// Packets lost in both directions.
    pub fn lost(&self) -> u64 {
        self.directions.iter().map(|direction| direction.lost).sum()
    }

    /// Packets sent in both directions.
    pub fn sent(&self) -> u64 {
        self.directions.iter().map(|direction| direction.sent).sum()
    }
}
