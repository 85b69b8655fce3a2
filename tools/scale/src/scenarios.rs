//! What happens to the hosts, one thing after the other.
use std::{
    iter,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use overlay_lab::etcd::Etcd;

use crate::{
    cost::Meter,
    hosts::{self, Host},
    options::Plan,
    quiet::pass,
    requests,
    results::{Churn, Outcome, Results, Times},
    stage::{Replaced, Stage},
};

pub(crate) const COLD: &str = "cold start of all";
pub(crate) const IDLE: &str = "nothing happens";
pub(crate) const CHANGE: &str = "one lease comes";
pub(crate) const CHURN: &str = "1 % of the hosts replaced each minute";
pub(crate) const PARTITION: &str = "a tenth cut off";
pub(crate) const RESTART: &str = "restart of etcd";
pub(crate) const COMPACTION: &str = "restart and compaction";
pub(crate) const WIPE: &str = "etcd wiped";
pub(crate) const LEADER: &str = "another leader";
pub(crate) const MEMBER: &str = "restart of a member";
pub(crate) const MEMBERS: &str = "restart of all members";

/// How long after the last change stray peers would show.
const AFTERWARDS: Duration = Duration::from_millis(100);
/// How long an etcd is left alone after its start before it is measured what it takes without clients.
const STARTED: Duration = Duration::from_secs(10);
/// A host that is replaced later than this after it was due is replaced late.
const LATE: Duration = Duration::from_millis(100);

/// A number of hosts beside an etcd, and what happens to them.
pub(crate) struct Scenarios<'a> {
    plan: &'a Plan,
    stage: Stage,
    results: &'a mut Results,
}

/// What is measured of something that happens.
struct Running {
    scenario: &'static str,
    meter: Meter,
    /// How many hosts it concerns, if not all.
    concerned: Option<usize>,
    /// How many peers hosts have removed so far although their leases had not ended.
    lost: usize,
    churn: Option<Churn>,
}

impl<'a> Scenarios<'a> {
    /// Everything that happens to so many hosts beside one member; the costlier things only to the largest number.
    pub(crate) async fn beside_one(
        plan: &'a Plan,
        count: u32,
        is_largest: bool,
        results: &'a mut Results,
    ) -> Result<()> {
        let mut all = Self { plan, stage: Stage::set(1).await?, results };
        all.alone().await?;
        all.cold_start(count).await?;
        all.idleness().await?;
        all.changes().await?;
        all.restart(RESTART).await?;
        if is_largest {
            requests::measure(&mut all.stage, plan.requests, all.results).await?;
            all.partition().await?;
            all.restart(COMPACTION).await?;
            all.churn().await?;
            all.wipe().await?;
        }
        hosts::stop(all.stage.hosts).await;
        Ok(())
    }

    /// Everything that happens to so many hosts beside three members.
    pub(crate) async fn beside_three(plan: &'a Plan, count: u32, results: &'a mut Results) -> Result<()> {
        let mut all = Self { plan, stage: Stage::set(3).await?, results };
        all.cold_start(count).await?;
        all.idleness().await?;
        all.changes().await?;
        all.another_leader().await?;
        all.member_restarts().await?;
        all.restart(MEMBERS).await?;
        hosts::stop(all.stage.hosts).await;
        Ok(())
    }

    fn begin(&self, scenario: &'static str) -> Result<Running> {
        hosts::lost(&self.stage.hosts, None);
        let (hosts, members) = (self.stage.hosts.len(), self.stage.members.len());
        eprintln!(
            "{scenario}: {hosts} hosts, etcd has {members} member{}",
            if members == 1 { "" } else { "s" }
        );
        let meter = Meter::start(&self.stage.members)?;
        Ok(Running { scenario, meter, concerned: None, lost: 0, churn: None })
    }

    async fn end(&mut self, running: Running, times: &[Duration]) -> Result<()> {
        let cost = running.meter.read(&self.stage.members)?;
        tokio::time::sleep(AFTERWARDS).await;
        let lost_routes = running.lost + hosts::lost(&self.stage.hosts, None);
        let hosts = self.stage.hosts.len();
        let outcome = Outcome {
            members: self.stage.members.len(),
            hosts,
            concerned: running.concerned.unwrap_or(hosts),
            scenario: running.scenario.to_owned(),
            times: Times::of(times),
            cost,
            lost_routes,
            churn: running.churn,
        };
        let times = outcome.times.map_or(String::new(), |Times { p50, p99, all }| {
            format!("p50 {p50:.2} s, p99 {p99:.2} s, all {all:.2} s; ")
        });
        eprintln!(
            "    {times}etcd {:.2} s of CPU, {:.0} MiB; {:.1} requests per host, {:.1} MB, {:.0} events; hosts {:.1} s of CPU; \
             {} routes lost",
            cost.etcd_cpu_s,
            cost.etcd_mib,
            outcome.requests_per_host(),
            cost.sent_mb,
            cost.events,
            cost.hosts_cpu_s,
            outcome.lost_routes
        );
        self.results.outcomes.push(outcome);
        Ok(())
    }

    /// Stops a member, and keeps what it has counted.
    fn stop_member(&mut self, member: usize, running: &mut Running) -> Result<()> {
        running.meter.before_stop(&self.stage.members, member)?;
        self.stage.members[member].stop()
    }

    /// What etcd takes although it has no client.
    async fn alone(&mut self) -> Result<()> {
        if self.results.alone_cpu == 0.0 {
            pass("until an etcd without clients is at rest", STARTED.min(self.plan.idle)).await;
            let meter = Meter::start(&self.stage.members)?;
            pass("etcd has no clients", self.plan.idle / 2).await;
            let cost = meter.read(&self.stage.members)?;
            self.results.alone_cpu = cost.etcd_cpu_s / cost.seconds;
        }
        Ok(())
    }

    /// All hosts start at once, on an empty store.
    async fn cold_start(&mut self, count: u32) -> Result<()> {
        eprintln!("{count} hosts start");
        let (running, start) = (self.begin(COLD)?, Instant::now());
        self.stage.start_hosts(count).await?;
        let times = self.stage.until_all_agree(start, COLD).await?;
        self.end(running, &times).await
    }

    async fn idleness(&mut self) -> Result<()> {
        let (settle, idle) = self.plan.quiet(self.stage.hosts.len());
        pass("until signs of life are as usual", settle).await;
        let running = self.begin(IDLE)?;
        pass("nothing happens", idle).await;
        self.end(running, &[]).await
    }

    /// Leases of other hosts come, one after the other.
    async fn changes(&mut self) -> Result<()> {
        let running = self.begin(CHANGE)?;
        let mut times = Vec::new();
        for _ in 0..self.plan.changes {
            let start = self.stage.stranger().await?;
            times.extend(self.stage.until_all_agree(start, CHANGE).await?);
        }
        self.end(running, &times).await
    }

    /// All members end and are started again, which is when the times begin, after a time in which the pauses between tries grow. For [`COMPACTION`], etcd then
    /// loses the history of a change that nobody has heard of.
    async fn restart(&mut self, scenario: &'static str) -> Result<()> {
        let mut running = self.begin(scenario)?;
        for member in 0..self.stage.members.len() {
            self.stop_member(member, &mut running)?;
        }
        self.stage.until_none_follows().await?;
        pass("etcd stays away", self.plan.outage).await;
        let start = Instant::now();
        Etcd::restart_members(&mut self.stage.members)?;
        if scenario == COMPACTION {
            // A watch from the revision of the last compaction on is still possible, hence two.
            self.stage.stranger().await?;
            self.stage.stranger().await?;
            self.stage.compact()?;
        }
        let times = self.stage.until_all_agree(start, scenario).await?;
        self.end(running, &times).await
    }

    /// A tenth of the hosts is cut off from etcd. A lease comes meanwhile. The times are those of that tenth, from the end of the
    /// partition on.
    async fn partition(&mut self) -> Result<()> {
        let mut running = self.begin(PARTITION)?;
        running.concerned = Some(self.stage.cut().count());
        self.stage.close_door().await?;
        self.stage.stranger().await?;
        pass("a tenth stays cut off", self.plan.outage).await;
        let times = self.stage.open_door().await?;
        self.end(running, &times).await
    }

    /// Hosts go and their leases end, and others come. The times are those of the new ones, from their start on.
    async fn churn(&mut self) -> Result<()> {
        if self.plan.churn.is_zero() {
            return Ok(());
        }
        let count = self.stage.hosts.len();
        let minutes = self.plan.churn.as_secs_f64() / 60.0;
        let changes = ((count as f64 * minutes / 100.0).round() as u32).max(2);
        let mut running = self.begin(CHURN)?;
        let (begin, mut times, mut late) = (Instant::now(), Vec::new(), 0);
        for change in 0..changes {
            let due = begin + self.plan.churn * change / changes;
            late += u32::from(Instant::now() > due + LATE);
            tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
            // Any but a newcomer, which is put at the end.
            let Replaced { gone, lost, start } =
                self.stage.replace_host(change as usize % (count - 1)).await?;
            let (leases, newcomer) = (self.stage.leases()?, self.stage.hosts.last().context("a host")?);
            let agrees = |host: &Host| host.knows(newcomer.subnet) && host.agrees(&leases);
            times.extend(hosts::until(iter::once(newcomer), start, CHURN, agrees).await?);
            // One has gone and one has come: only who knows the newcomer and not the other one has heard of both.
            hosts::until(self.stage.hosts.iter(), start, CHURN, agrees).await?;
            running.lost += lost + hosts::lost(&self.stage.hosts, Some(gone));
        }
        eprintln!("    {late} of {changes} hosts were replaced late");
        running.churn = Some(Churn { changes, late });
        self.end(running, &times).await
    }

    /// etcd loses its data, and each host finds that its lease is gone. Meanwhile every removal is held back.
    async fn wipe(&mut self) -> Result<()> {
        let mut running = self.begin(WIPE)?;
        self.stop_member(0, &mut running)?;
        self.stage.until_none_follows().await?;
        pass("etcd stays away", self.plan.outage).await;
        let start = self.stage.restart_empty().await?;
        let times = self.stage.until_all_agree(start, WIPE).await?;
        self.end(running, &times).await
    }

    /// Another member becomes the leader. The times are those until a lease that comes right after that is everywhere.
    async fn another_leader(&mut self) -> Result<()> {
        let running = self.begin(LEADER)?;
        let start = Instant::now();
        Etcd::move_leader(&self.stage.members)?;
        self.stage.stranger().await?;
        let times = self.stage.until_all_agree(start, LEADER).await?;
        self.end(running, &times).await
    }

    /// A member ends. The times are those until a lease that comes right after that is everywhere, also at the hosts that have to
    /// turn to another member. Then the member is started again.
    async fn member_restarts(&mut self) -> Result<()> {
        let mut running = self.begin(MEMBER)?;
        running.concerned = Some(self.stage.hosts.iter().filter(|host| host.member == 1).count());
        let start = Instant::now();
        self.stop_member(1, &mut running)?;
        self.stage.stranger().await?;
        let times = self.stage.until_all_agree(start, MEMBER).await?;
        self.stage.members[1].restart()?;
        self.end(running, &times).await
    }
}
