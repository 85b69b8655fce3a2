//! A run: every network and every measure, by turns.
use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;

use super::{
    jobs::{Figure, Group, Job},
    network::{Case, Network},
    options::{BenchOptions, Underlay, chosen},
    packets::{Load, Part, Until, send},
    peers::Crowd,
    plain_bridges::PlainBridges,
    progress::Progress,
    results::{Results, twin},
};
use overlay_lab::Host;

/// Names and numbers to compare: one, one a second time, and those of `numbers` that are larger.
fn with_twin(what: &str, numbers: &[u32]) -> Vec<(String, u32)> {
    let one = format!("1 {what}");
    let again = twin(&one);
    let more = numbers.iter().filter(|&&number| number > 1);
    let more = more.map(|&number| (format!("{number} {what}s"), number));
    [(one, 1), (again, 1)].into_iter().chain(more).collect()
}

/// The order in round `round`: forwards and backwards by turns, so that no network is always first, or always behind
/// the same other.
fn in_turn<T>(all: &[T], round: u32) -> impl Iterator<Item = &T> {
    let (forwards, backwards) = if round % 2 == 1 { (all, &all[..0]) } else { (&all[..0], all) };
    forwards.iter().chain(backwards.iter().rev())
}

/// What a run needs.
pub(super) struct Run<'a> {
    options: &'a BenchOptions,
    overlay: PathBuf,
    /// Path of overlay-frames.
    program: PathBuf,
    results: Results,
    progress: Progress,
}

impl<'a> Run<'a> {
    /// Prepares a run with these programs, whose results go into `results`.
    pub(super) fn new(
        options: &'a BenchOptions,
        overlay: PathBuf,
        program: PathBuf,
        results: Results,
    ) -> Self {
        Self { options, overlay, program, results, progress: Progress::new(0) }
    }

    /// Measures everything on each of these underlays.
    pub(super) fn over(mut self, underlays: &[Underlay]) -> Result<Results> {
        self.progress = Progress::new(self.samples() * underlays.len());
        for &underlay in underlays {
            self.compare_networks(underlay)?;
            self.compare_crowds(underlay)?;
        }
        Ok(self.results)
    }

    fn time(&self) -> Duration {
        Duration::from_millis(self.options.milliseconds.unwrap_or(if self.options.quick { 100 } else { 300 }))
    }

    fn cases(&self) -> Vec<Case> {
        let asked = chosen(&self.options.networks, Case::value_variants().to_vec());
        let near = self.options.groups().contains(&Group::SameHost);
        let basis: &[_] =
            if near { &[Case::Bare, Case::BareAgain, Case::Direct] } else { &[Case::Bare, Case::BareAgain] };
        let wanted = |case: &Case| asked.contains(case) || basis.contains(case);
        let beside = self.options.beside.is_some().then_some(Case::Beside);
        let twin = near.then_some(Case::DirectAgain);
        let altered = self.options.altered.is_some().then_some(Case::Altered);
        Case::value_variants()
            .iter()
            .copied()
            .filter(wanted)
            .chain(twin)
            .chain(beside)
            .chain(altered)
            .collect()
    }

    fn jobs(&self) -> Vec<Job> {
        self.options.groups().into_iter().flat_map(|group| Job::of(group, self.options.quick)).collect()
    }

    /// Numbers of flows with their names: one, one a second time, and larger ones.
    fn flows(&self) -> Vec<(String, u32)> {
        with_twin("flow", if self.options.quick { &[4096] } else { &[8, 64, 512, 4096] })
    }

    /// Numbers of peers with their names: one, one a second time, and larger ones.
    fn peers(&self) -> Vec<(String, u32)> {
        let all = &self.options.peers;
        let most: Vec<_> = all.iter().copied().max().into_iter().collect();
        with_twin("peer", if self.options.quick { &most } else { all })
    }

    /// How many samples one underlay takes, for the progress.
    fn samples(&self) -> usize {
        let groups = self.options.groups();
        let networks = self.cases().len();
        let flows = if groups.contains(&Group::Flows) { networks * self.flows().len() } else { 0 };
        let peers = if groups.contains(&Group::Peers) { 2 * self.peers().len() } else { 0 };
        self.results.rounds as usize * (self.jobs().len() * networks + flows + peers)
    }

    /// All networks exist at once, and take turns with each job in each round.
    fn compare_networks(&mut self, underlay: Underlay) -> Result<()> {
        let jobs = self.jobs();
        if jobs.is_empty() && !self.options.groups().contains(&Group::Flows) {
            return Ok(());
        }
        let mut networks = Vec::new();
        for case in self.cases() {
            eprintln!("{}: building {}", underlay.name(), case.name());
            let other = self.options.beside.as_ref().filter(|_| case == Case::Beside);
            // Without a slash in its name, a program would be looked for elsewhere.
            let other = other.map(|program| program.canonicalize()).transpose().context("--beside")?;
            let overlay = other.as_ref().unwrap_or(&self.overlay);
            let network = Network::build(case, overlay, &self.program, underlay == Underlay::WireLike)?;
            if let Some(command) = self.options.altered.as_ref().filter(|_| case == Case::Altered) {
                network.alter(command)?;
            }
            networks.push(network);
        }
        let (rounds, time) = (self.results.rounds, self.time());
        for job in jobs {
            let _bridges = job.is_near().then(|| PlainBridges::on(networks.iter())).transpose()?;
            let _napi = job.takes_frames_from_drivers().then(|| Napi::on(networks.iter())).transpose()?;
            for round in 1..=rounds {
                let what = format!("{}: {}, round {round}", underlay.name(), job.name());
                self.progress.next(&what, networks.len());
                for network in in_turn(&networks, round).filter(|network| job.is_of(network.case)) {
                    self.sample(underlay, job, network, time);
                }
            }
        }
        self.compare_flows(underlay, &networks)
    }

    /// Measures each network with one connection and with many, by turns.
    fn compare_flows(&mut self, underlay: Underlay, networks: &[Network]) -> Result<()> {
        if !self.options.groups().contains(&Group::Flows) {
            return Ok(());
        }
        let loads = self.flows();
        let (rounds, until) = (self.results.rounds, Until::Time(self.time()));
        for network in networks.iter().filter(|network| network.case != Case::DirectAgain) {
            let measure = format!("packets of 64 bytes by flows, {}", network.case.name());
            for round in 1..=rounds {
                let what = format!("{}: {measure}, round {round}", underlay.name());
                self.progress.next(&what, loads.len());
                for (name, flows) in in_turn(&loads, round) {
                    let load = Load { size: 64, flows: *flows, peers: None, until, statistics: false };
                    let rate = send(network, &self.program, Part::Whole, load);
                    let measured = self.results.measured(underlay.name(), &measure, "10^3/s", true);
                    measured.basis.clone_from(&loads[0].0);
                    measured
                        .add(name, rate.map(|sent| sent.rate() / 1e3).map_err(|error| format!("{error:#}")));
                }
            }
        }
        Ok(())
    }

    /// What the ratios of a job are taken to, if not to the bare route.
    fn basis(&self, job: Job) -> Option<Case> {
        match job {
            // None of these programs runs on the bare route.
            Job::Programs if self.options.beside.is_some() => Some(Case::Beside),
            Job::Programs => self.cases().contains(&Case::Floor).then_some(Case::Floor),
            _ if job.is_near() => Some(Case::Direct),
            _ => None,
        }
    }

    fn sample(&mut self, underlay: Underlay, job: Job, network: &Network, time: Duration) {
        let (case, basis) = (network.case.name(), self.basis(job));
        let mut add = |name: &str, unit, more_is_better, sample| {
            let measured = self.results.measured(underlay.name(), name, unit, more_is_better);
            if let Some(basis) = basis {
                basis.name().clone_into(&mut measured.basis);
            }
            measured.add(case, sample);
        };
        match job.run(network, &self.program, time) {
            Ok(figures) => {
                for Figure { name, unit, more_is_better, value } in figures {
                    add(&name, unit, more_is_better, Ok(value));
                }
            }
            Err(error) => {
                eprintln!("{case}: {error:#}");
                // Every figure of the job lacks this sample.
                for (name, unit, more_is_better) in job.figures() {
                    add(&name, unit, more_is_better, Err(format!("{error:#}")));
                }
            }
        }
    }

    /// Measures hosts with few peers and with many, by turns.
    fn compare_crowds(&mut self, underlay: Underlay) -> Result<()> {
        if !self.options.groups().contains(&Group::Peers) {
            return Ok(());
        }
        let mut crowds = Vec::new();
        for (name, count) in self.peers() {
            eprintln!("{}: building hosts with {name}", underlay.name());
            let wire_like = underlay == Underlay::WireLike;
            crowds.push((name, Crowd::build(&self.overlay, &self.program, wire_like, count)?));
        }
        let _napi = Napi::on(crowds.iter().map(|(_, crowd)| crowd.network()))?;
        let (rounds, until) = (self.results.rounds, Until::Time(self.time()));
        for part in [Part::Out, Part::In] {
            let measure = format!("packets of 64 bytes by peers, {}", part.name());
            for round in 1..=rounds {
                let what = format!("{}: {measure}, round {round}", underlay.name());
                self.progress.next(&what, crowds.len());
                for (name, crowd) in in_turn(&crowds, round) {
                    let rate = crowd.rate(&self.program, part, until);
                    let measured = self.results.measured(underlay.name(), &measure, "10^3/s", true);
                    measured.basis.clone_from(&crowds[0].0);
                    measured.add(name, rate.map(|rate| rate / 1e3).map_err(|error| format!("{error:#}")));
                }
            }
        }
        Ok(())
    }
}

/// Switches GRO, and with it NAPI, on at the receiving hosts' underlay devices, as every NIC has it. Without it a
/// veth's driver takes no frames.
struct Napi {
    switched: Vec<Host>,
}

impl Napi {
    fn on<'a>(networks: impl Iterator<Item = &'a Network>) -> Result<Self> {
        let mut napi = Self { switched: Vec::new() };
        for network in networks.filter(|network| !network.wire_like) {
            if let Some(host) = network.receiver() {
                host.exec("ethtool -K eth0 gro on")?;
                napi.switched.push(host.clone());
            }
        }
        Ok(napi)
    }
}

impl Drop for Napi {
    fn drop(&mut self) {
        for host in &self.switched {
            if let Err(error) = host.exec("ethtool -K eth0 gro off") {
                eprintln!("{}: {error:#}", host.name());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_always_there_twice() {
        let names =
            |numbers| with_twin("peer", numbers).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&[1, 1000]), ["1 peer", "1 peer again", "1000 peers"]);
        assert_eq!(names(&[]), ["1 peer", "1 peer again"]);
    }

    #[test]
    fn rounds_go_both_ways() {
        let order = |round| in_turn(&[1, 2, 3], round).copied().collect::<Vec<_>>();
        assert_eq!((order(1), order(2), order(3)), (vec![1, 2, 3], vec![3, 2, 1], vec![1, 2, 3]));
    }
}
