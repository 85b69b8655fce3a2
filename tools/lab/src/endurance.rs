//! Agents that are killed, ended, replaced and started while packets are under way, and faults between that. `cargo xtask endure`
//! does this for long, and tests do it briefly.
use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

pub use self::{
    fault::{Deck, Fault},
    figures::{Direction, Harm, Round, Struck, Sum},
};
use self::{
    look::{is_on_stack, learn},
    strike::{Blow, Interval, Target},
};
use crate::{
    container::Container,
    lab::Lab,
    member::{Member, Store, populate},
    numbered::{Numbered, queue_overflows},
    options::Options,
    project::{self, Next},
    steady::{Steady, SteadyReport},
    wait::wait_until,
};

mod clock;
mod fault;
mod figures;
mod look;
mod strike;

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
    deck: Deck,
    /// Whether the agents have no options, so that the fast path must carry everything.
    is_default: bool,
    connection: Steady,
    members: Vec<Member>,
    store: Store,
    _lab: Lab,
}

impl Endurance {
    /// Starts the hosts, their agents with `options`, and the connection. Each round takes faults from `deck`.
    pub fn start(lab: Options, binaries: Binaries, options: &[&str], rate: u32, deck: Deck) -> Result<Self> {
        let lab = Lab::new(lab)?;
        let store = Store::etcd(&lab)?;
        let mut members = populate(&lab, &binaries.present, &store, options)?;
        if deck.has(Fault::Clock) {
            clock::give(&mut members, &lab.folder())?;
            for member in &mut members {
                member.kill_agent()?;
                member.restart_agent()?;
            }
        }
        learn(&members)?;
        let connection = Steady::start(&members[0].containers[1], &members[1].containers[1])?;
        Ok(Self {
            binaries,
            rate,
            deck,
            is_default: options.is_empty(),
            connection,
            members,
            store,
            _lab: lab,
        })
    }

    /// Sends numbered packets in both directions, at least `least` in each if the machine sends them soon enough; the figures tell by
    /// how much that was missed. Meanwhile both hosts' agents are killed, ended and started; they are replaced by agents with other
    /// programs, and these by the present ones again; at last they are replaced by agents with another map layout, whose maps the
    /// present agent must refuse. Before each of these, and at the end, the deck's next fault is struck.
    ///
    /// The return to the present layout is `overlay down` and a fresh start. No packets are counted during it, but the
    /// connection survives it too.
    pub fn round(&mut self, least: u64, mut said: impl FnMut(&str)) -> Result<Round> {
        let (overflows, dropped) = (queue_overflows()?, self.dropped()?);
        let (a, b) = (self.container(0), self.container(1));
        let streams = [Numbered::start(&a, &b, self.rate)?, Numbered::start(&b, &a, self.rate)?];
        thread::sleep(Duration::from_millis(300));
        let Binaries { present, program, layout } = self.binaries.clone();
        let mut blows: Vec<Blow> = Vec::new();
        let mut fault = |endurance: &mut Self, said: &mut dyn FnMut(&str)| -> Result<()> {
            let must_be_fast = endurance.is_default && !blows.iter().any(|blow| blow.fault.leaves_to_stack());
            blows.extend(endurance.fault(&streams, must_be_fast, said)?);
            Ok(())
        };

        fault(self, &mut said)?;
        said("kill -9");
        self.replace(&present, Member::kill_agent)?;
        fault(self, &mut said)?;
        said("SIGTERM");
        self.replace(&present, end)?;
        fault(self, &mut said)?;
        said("other programs");
        self.replace(&program, end)?;
        fault(self, &mut said)?;
        said("back");
        self.replace(&present, Member::kill_agent)?;
        fault(self, &mut said)?;
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
        fault(self, &mut said)?;

        let started = Instant::now();
        while streams.iter().any(|stream| stream.sent() < least) && started.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(50));
        }
        thread::sleep(Duration::from_millis(300));
        let mut round = count(streams, blows, least)?;
        round.dropped = self.dropped()?.checked_sub(dropped).context("counters went back")?;
        round.machine_overflows = queue_overflows()? - overflows;

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

    /// Strikes the next fault, if there is one.
    fn fault(
        &mut self,
        streams: &[Numbered; 2],
        must_be_fast: bool,
        said: &mut dyn FnMut(&str),
    ) -> Result<Option<Blow>> {
        let Some(fault) = self.deck.draw() else { return Ok(None) };
        said(&format!("fault: {fault:?}"));
        let on_stack = is_on_stack(&self.members)?;
        // Losses are excused where overlay0 is harmed and the stack carries the packets. A fast path that carries nothing would get
        // that excuse for what it is there to prevent.
        ensure!(
            !(on_stack && must_be_fast),
            "the stack carries the packets, though nothing kept the fast path"
        );
        let Self { members, store, deck, .. } = self;
        let random = &mut deck.random;
        let target = Target { members, store, streams, random, on_stack, harms: Vec::new() };
        let blow = target.strike(fault).with_context(|| {
            let logs = self
                .members
                .iter()
                .map(|member| format!("{}:\n{}", member.host.name(), member.host.agent_log_tail()));
            format!(
                "after the fault {fault:?}; the agents' last lines:\n{}",
                logs.collect::<Vec<_>>().join("\n")
            )
        })?;
        let carrier = if on_stack { "the stack" } else { "the fast path" };
        let mended = blow.mended.as_secs_f32();
        said(&format!(
            "{} while {carrier} carried the packets; all is well again after {mended:.1} s",
            blow.what
        ));
        Ok(Some(blow))
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

/// Ends the streams, and counts what is missing: apart what was sent while a fault cut the path.
fn count(streams: [Numbered; 2], blows: Vec<Blow>, least: u64) -> Result<Round> {
    let cuts: Vec<&Interval> =
        blows.iter().flat_map(|blow| &blow.harms).filter(|harm| harm.cuts_path).collect();
    let mut missing = Vec::new();
    let mut round = Round::default();
    for (at, stream) in streams.into_iter().enumerate() {
        let numbers: Vec<_> = cuts.iter().map(|cut| cut.from[at]..cut.to[at]).collect();
        let (report, lost) = stream.finish_apart(&numbers)?;
        round.directions[at] = Direction::new(report, lost.iter().sum(), least);
        missing.push(lost);
    }
    let mut lost = (0..cuts.len()).map(|index| [missing[0][index], missing[1][index]]);
    for blow in &blows {
        let harms = blow.harms.iter().map(|harm| Harm {
            what: harm.what,
            lasted_ms: harm.lasted.as_millis(),
            limit_ms: harm.limit.as_millis(),
            cuts_path: harm.cuts_path,
            lost: if harm.cuts_path { lost.next().unwrap_or_default() } else { [0; 2] },
        });
        round.faults.push(Struck {
            fault: blow.fault,
            what: blow.what.clone(),
            on_stack: blow.on_stack,
            mended_ms: blow.mended.as_millis(),
            harms: harms.collect(),
        });
    }
    Ok(round)
}

/// How long a round may wait for its packets on a busy machine. What is missing then is in its figures.
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
