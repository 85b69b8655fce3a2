//! The options of `cargo xtask scale`.
use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use clap::Args;
use overlay_user::store::etcd::silence;

/// How the hosts are run.
#[derive(Args, Debug)]
pub struct ScaleOptions {
    /// Numbers of hosts beside an etcd of one member, one after the other, from few to many.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "500,1000,2000",
          value_parser = clap::value_parser!(u32).range(10..=20_000))]
    hosts: Vec<u32>,
    /// Number of hosts beside an etcd of three members, 10 at least; 0 leaves that out.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = none_or_some)]
    cluster_hosts: u32,
    /// How long nothing happens, to measure what hosts cost that have nothing to do. It is longer with very many hosts, until each
    /// has asked etcd for a sign of life.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    idle_seconds: u64,
    /// How long each minute one host in a hundred goes and another comes; 0 leaves that out.
    #[arg(long, value_name = "MINUTES", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=1440))]
    churn_minutes: u64,
    /// Few hosts and seconds only: shows that everything works, not what it costs.
    #[arg(long)]
    quick: bool,
    /// Prints the results as JSON in place of the tables.
    #[arg(long)]
    pub(crate) json: bool,
    /// The folder that results and plots are written to [default: target/scale].
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
    /// Runs nothing; writes tables and plots of the run that wrote this file anew.
    #[arg(long, value_name = "RESULTS.json")]
    pub(crate) draw: Option<PathBuf>,
}

/// What is run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) quick: bool,
    /// Numbers of hosts beside one member.
    pub(crate) hosts: Vec<u32>,
    /// Beside three members.
    pub(crate) cluster_hosts: u32,
    /// How long nothing happens, at least.
    pub(crate) idle: Duration,
    pub(crate) churn: Duration,
    /// How long etcd, or the way to it, is gone: long enough for the pauses between tries to grow.
    pub(crate) outage: Duration,
    /// How many leases come one at a time.
    pub(crate) changes: u32,
    /// How many times each kind of request is made to find out what one costs.
    pub(crate) requests: u32,
}

/// As many hosts as beside one member, or none.
fn none_or_some(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count @ (0 | 10..=20_000)) => Ok(count),
        _ => Err("neither 0 nor a number from 10 to 20000".to_owned()),
    }
}

impl Plan {
    /// How long so many hosts have to be left alone before it can be measured what they cost, and for how long that is then done.
    ///
    /// Each change has every host draw anew after which silence it asks etcd for a sign of life, from the second half of a limit, and
    /// so does each sign of life. So they ask in waves, which flatten. A time as long as the limit that begins five sixths of the
    /// limit after the last change has as many of these requests as it has in the long run.
    pub(crate) fn quiet(&self, hosts: usize) -> (Duration, Duration) {
        if self.quick {
            return (self.idle, self.idle);
        }
        let limit = silence::limit(hosts);
        (limit / 6 * 5, self.idle.max(limit))
    }
}

impl ScaleOptions {
    /// What to run.
    ///
    /// # Errors
    /// If the numbers of hosts do not grow: a second run with the same number would not be told from the first, and memory that
    /// more hosts had before would count as that of fewer.
    pub(crate) fn plan(&self) -> Result<Plan> {
        ensure!(
            self.hosts.is_sorted_by(|one, next| one < next),
            "--hosts takes numbers that grow, each of them once"
        );
        if self.quick {
            return Ok(Plan {
                quick: true,
                hosts: vec![12, 24],
                cluster_hosts: 12,
                idle: Duration::from_secs(1),
                churn: Duration::from_secs(1),
                outage: Duration::from_millis(300),
                changes: 2,
                requests: 10,
            });
        }
        Ok(Plan {
            quick: false,
            hosts: self.hosts.clone(),
            cluster_hosts: self.cluster_hosts,
            idle: Duration::from_secs(self.idle_seconds),
            churn: Duration::from_secs(60 * self.churn_minutes),
            outage: Duration::from_secs(15),
            changes: 20,
            requests: 500,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        options: ScaleOptions,
    }

    #[test]
    fn numbers_that_make_no_run_are_refused() {
        let given = |words: &str| Arguments::try_parse_from(["scale"].into_iter().chain(words.split(' ')));
        for words in ["--hosts 9", "--cluster-hosts 9", "--cluster-hosts 20001", "--idle-seconds 0"] {
            assert!(given(words).is_err(), "{words}");
        }
        for words in ["--hosts 500,500", "--hosts 1000,500"] {
            given(words).unwrap().options.plan().unwrap_err();
        }
        let plan =
            given("--hosts 10,20 --cluster-hosts 0 --churn-minutes 0").unwrap().options.plan().unwrap();
        assert_eq!((plan.hosts, plan.cluster_hosts, plan.churn), (vec![10, 20], 0, Duration::ZERO));
    }

    #[test]
    fn a_quiet_time_has_as_many_signs_of_life_as_it_has_in_the_long_run() {
        let plan = |seconds| Plan {
            quick: false,
            hosts: Vec::new(),
            cluster_hosts: 0,
            idle: Duration::from_secs(seconds),
            churn: Duration::ZERO,
            outage: Duration::ZERO,
            changes: 0,
            requests: 0,
        };
        // How many hosts ask at each moment, of one that heard of the last change at the moment zero. The limit has 600 moments.
        let mut asking = vec![1.0];
        for moment in 1..4000_usize {
            let before = moment.saturating_sub(600)..=moment.saturating_sub(300);
            let share: f64 = if moment < 300 { 0.0 } else { asking[before].iter().sum() };
            asking.push(share / 301.0);
        }
        for (hosts, seconds) in [(12, 1), (200, 60), (500, 60), (700, 60), (1000, 60), (2000, 60), (3000, 60)]
        {
            let (settle, idle) = plan(seconds).quiet(hosts);
            let moment = |time: Duration| {
                (time.as_secs_f64() / silence::limit(hosts).as_secs_f64() * 600.0).round() as usize
            };
            let signs: f64 = asking[moment(settle)..moment(settle + idle)].iter().sum();
            let usual = idle.as_secs_f64() / silence::mean(hosts).as_secs_f64();
            assert!(
                (signs / usual - 1.0).abs() < 0.04,
                "{hosts} hosts: {signs} signs of life, usually {usual}"
            );
        }
    }
}
