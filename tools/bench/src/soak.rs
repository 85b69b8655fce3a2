//! `cargo xtask soak`: whether anything grows. Containers and peers come and go for hours under numbered packets and short
//! connections, samples of the agents and of the kernel are taken, and a line is fitted to each measure.
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use overlay_lab::{
    self as lab, Backend, Lab, Member, Numbered, NumberedReport, Store, command, interrupted, project,
    queue_overflows,
    random::{self, Random},
};

use self::{
    life::{LASTING, Life, RESTLESS},
    report::{Packets, Report, longest_interval},
    sample::{Sample, values},
    talk::Talk,
};

mod draw;
mod fit;
mod life;
mod plot;
mod report;
mod sample;
mod talk;

/// How long the soak lasts, and how much traffic there is.
#[derive(Args, Debug)]
pub struct SoakOptions {
    /// How long, from when everything is up.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=10_080))]
    minutes: u32,
    /// Numbered packets per second in each of two directions.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Short connections per second, on average.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Seconds between two samples [default: 10, and less in runs of minutes].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    every: Option<u32>,
    /// Draws what comes and goes. Without it, the clock gives one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Options of the agents: `--agent=--fast-path=off`. May be given several times.
    #[arg(long = "agent", value_name = "OPTION", allow_hyphen_values = true)]
    agent: Vec<String>,
    /// Prints the report as JSON at the end instead of the progress and the table.
    #[arg(long)]
    json: bool,
    /// The folder that the samples, the report and the plot are written to [default: target/soak].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// The packet filter of a host with containers: it looks at the state of connections, so under `--fast-path auto` each connection
/// begins on the stack, is tracked, and is promoted. That is the path that keeps most state.
const FILTER: &str = "table ip soak {
    chain forward {
        type filter hook forward priority 0;
        ct state invalid drop
        ct state established,related accept
    }
}";

/// The numbered streams end and begin anew after so long, so that the progress tells what was lost, and when.
const SEGMENT: Duration = Duration::from_secs(300);
/// How far samples are apart in a long run.
const RARELY: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(50);

/// Soaks, writes what was sampled, prints the report, and fails if something was lost or grows.
pub fn soak(options: &SoakOptions) -> Result<()> {
    // Before hours are spent on a run whose samples would be too few.
    options.every()?;
    let seed = options.seed.unwrap_or_else(random::seed);
    // Also beside JSON, and whatever happens: only the seed draws the same again.
    eprintln!("seed {seed}");
    soak_by(options, seed).with_context(|| format!("with --seed {seed}"))
}

fn soak_by(options: &SoakOptions, seed: u64) -> Result<()> {
    let overlay = project::build_release()?;
    let folder = options.out.clone().unwrap_or_else(|| project::target().join("soak"));
    fs::create_dir_all(&folder)?;
    let report = Soak::start(options, &overlay, &folder, seed)?.run()?;
    let text = serde_json::to_string_pretty(&report)?;
    fs::write(folder.join("report.json"), &text)?;
    plot::draw(&report, &folder.join("soak.svg"))?;
    if options.json {
        println!("{text}");
    } else {
        print!("{report}");
        println!("samples, report and plot are in {}", folder.display());
    }
    report.verdict()
}

impl SoakOptions {
    fn whole(&self) -> Duration {
        Duration::from_secs(u64::from(self.minutes) * 60)
    }

    /// How far samples are apart.
    fn every(&self) -> Result<Duration> {
        let (whole, longest) = (self.whole(), longest_interval(self.whole()));
        let every =
            self.every.map_or_else(|| (whole / 120).min(RARELY), |every| Duration::from_secs(every.into()));
        ensure!(
            every <= longest,
            "--every {}: in a run of {} minutes a sample is needed every {} s at least, so that a line can be fitted",
            every.as_secs(),
            self.minutes,
            longest.as_secs()
        );
        Ok(every)
    }
}

/// The numbered packets of some minutes.
struct Segment {
    streams: [Numbered; 2],
    /// How often the machine's queues had overflowed when it began.
    overflows: u64,
}

struct Soak<'a> {
    options: &'a SoakOptions,
    samples: Vec<Sample>,
    file: File,
    packets: Packets,
    talk: Talk,
    life: Life,
    members: Vec<Member>,
    store: Store,
    seed: u64,
    _lab: Lab,
}

impl<'a> Soak<'a> {
    /// Makes three hosts with an etcd, and starts everything but the numbered packets.
    fn start(options: &'a SoakOptions, overlay: &Path, folder: &Path, seed: u64) -> Result<Self> {
        say(options, "three hosts, etcd, containers, peers");
        // Written as they are taken, so that what was sampled is there whatever ends the run.
        let file = folder.join("samples.jsonl");
        let file = File::create(&file).with_context(|| format!("create {}", file.display()))?;
        let lab = Lab::new(lab::Options { hosts: 3, ..lab::Options::default() })?;
        for host in lab.hosts() {
            command::output(&mut host.namespace().command(&["nft", FILTER])?)?;
        }
        let mut store = Store::etcd(&lab)?;
        let agent: Vec<_> =
            ["--ip-masq"].into_iter().chain(options.agent.iter().map(String::as_str)).collect();
        let members = lab::populate_with(&lab, overlay, &store, Backend::Vxlan.config(), &agent)?;
        let mut random = Random::new(seed);
        let (lives, talks) = (Random::new(random.number()), Random::new(random.number()));
        let life = Life::start(&members, &mut store, lives)?;
        let talk = Talk::start(life.places.clone(), f64::from(options.connections), talks);
        let packets = Packets::default();
        Ok(Self { options, samples: Vec::new(), file, packets, talk, life, members, store, seed, _lab: lab })
    }

    fn run(mut self) -> Result<Report> {
        let (whole, every) = (self.options.whole(), self.options.every()?);
        let started = Instant::now();
        let (mut sample, mut border) = (started, started + SEGMENT);
        let mut segment = self.segment()?;
        while started.elapsed() < whole {
            let now = Instant::now();
            if now >= sample {
                sample += every;
                self.sample(started)?;
            }
            if let Some(what) = self.life.step(&mut self.members, &mut self.store)? {
                self.say(started, what);
            }
            if now >= border {
                border += SEGMENT;
                let ended = std::mem::replace(&mut segment, self.segment()?);
                self.end(ended)?;
                let (packets, connections) = (self.packets, self.talk.so_far());
                self.say(started, &format!("{packets}; {connections}"));
            }
            if self.talk.has_ended() {
                self.talk.finish()?;
                anyhow::bail!("the connections ended by themselves");
            }
            std::thread::sleep(TICK);
            ensure!(!interrupted(), "interrupted");
        }
        self.end(segment)?;
        self.life.settle(&mut self.members)?;
        for host in LASTING {
            self.members[host].wait_ready()?;
        }
        let connections = self.talk.finish()?;
        Ok(Report::new(self.seed, whole, self.packets, connections, self.life.events, &self.samples))
    }

    fn say(&self, started: Instant, what: &str) {
        let passed = started.elapsed().as_secs_f64() / 60.0;
        say(self.options, &format!("[{passed:5.1} of {} min] {what}", self.options.minutes));
    }

    /// One stream each way between the first two hosts.
    fn segment(&self) -> Result<Segment> {
        let overflows = queue_overflows()?;
        let [a, b] = LASTING.map(|host| &self.members[host].containers[0]);
        let streams = [Numbered::start(a, b, self.options.rate)?, Numbered::start(b, a, self.options.rate)?];
        Ok(Segment { streams, overflows })
    }

    fn end(&mut self, Segment { streams, overflows }: Segment) -> Result<()> {
        let reports = streams.map(Numbered::finish).into_iter().collect::<Result<Vec<NumberedReport>>>()?;
        self.packets.add(&reports, queue_overflows()? - overflows);
        Ok(())
    }

    /// Samples every host whose agent runs.
    fn sample(&mut self, started: Instant) -> Result<()> {
        for number in 0..self.members.len() {
            if number == RESTLESS && !self.life.restless_is_there() {
                continue;
            }
            let member = &mut self.members[number];
            if let Some(status) = member.agent()?.status()? {
                anyhow::bail!("an agent ended with {status}:\n{}", member.host.agent_log_tail());
            }
            let pid = member.agent()?.pid()?;
            let values = values(&member.host, pid, &mut self.life.counters[number])
                .with_context(|| format!("sample {}", member.host.name()))?;
            let seconds = started.elapsed().as_secs_f64();
            let sample = Sample { seconds, host: member.host.name(), values };
            writeln!(self.file, "{}", serde_json::to_string(&sample)?)?;
            self.samples.push(sample);
        }
        Ok(())
    }
}

fn say(options: &SoakOptions, what: &str) {
    if !options.json {
        eprintln!("{what}");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Given {
        #[command(flatten)]
        options: SoakOptions,
    }

    fn every(words: &str) -> Result<Duration> {
        Given::parse_from(["soak"].into_iter().chain(words.split(' '))).options.every()
    }

    #[test]
    fn samples_that_are_too_far_apart_for_a_line_are_refused() {
        assert_eq!(every("--minutes 90").unwrap(), RARELY);
        assert_eq!(every("--minutes 1").unwrap(), Duration::from_millis(500));
        assert_eq!(every("--minutes 1 --every 3").unwrap(), Duration::from_secs(3));
        let said = every("--minutes 1 --every 4").unwrap_err().to_string();
        assert!(said.starts_with("--every 4: in a run of 1 minutes a sample is needed every 3 s"), "{said}");
    }
}
