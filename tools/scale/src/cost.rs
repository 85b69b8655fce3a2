//! What etcd and the hosts cost: CPU time, memory, requests, bytes, and events of watches.
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use overlay_bench::agent::Memory;
use overlay_lab::{etcd::Etcd, http};
use overlay_project::cpu::CpuTime;
use serde::{Deserialize, Serialize};

/// How long etcd may take to show its metrics.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was used between two moments, by all members and by all hosts.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    /// The time between the two moments.
    pub seconds: f64,
    /// CPU time of all members.
    pub etcd_cpu_s: f64,
    /// CPU time of all hosts, which are this process.
    pub hosts_cpu_s: f64,
    /// Requests that etcd was asked, opened watches among them.
    pub requests: f64,
    /// Megabytes that etcd sent.
    pub sent_mb: f64,
    /// Changes that etcd sent to watches.
    pub events: f64,
    /// Resident memory of the largest member in the end, in MiB.
    pub etcd_mib: f64,
    /// Resident memory of all hosts in the end, in MiB. It is not known beside several members.
    pub hosts_mib: Option<f64>,
}

/// One member's counts so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    pid: u32,
    cpu_s: f64,
    requests: f64,
    sent_mb: f64,
    events: f64,
}

impl Counts {
    fn of(etcd: &Etcd) -> Result<Self> {
        let text = metrics(&etcd.client_url())?;
        Ok(Self {
            pid: etcd.pid(),
            cpu_s: cpu_s(etcd.pid())?,
            requests: sum(&text, "grpc_server_started_total")?,
            sent_mb: sum(&text, "etcd_network_client_grpc_sent_bytes_total")? / 1e6,
            events: sum(&text, "etcd_debugging_mvcc_events_total")?,
        })
    }

    /// What came since then. A process that was started meanwhile has counted from zero.
    fn since(self, before: Self) -> Self {
        let before = if before.pid == self.pid { before } else { Self::default() };
        Self {
            pid: self.pid,
            cpu_s: self.cpu_s - before.cpu_s,
            requests: self.requests - before.requests,
            sent_mb: self.sent_mb - before.sent_mb,
            events: self.events - before.events,
        }
    }

    fn add(&mut self, more: Self) {
        self.cpu_s += more.cpu_s;
        self.requests += more.requests;
        self.sent_mb += more.sent_mb;
        self.events += more.events;
    }
}

/// The counts at the beginning of something.
#[derive(Debug)]
pub(crate) struct Meter {
    started: Instant,
    members: Vec<Counts>,
    /// What processes have counted that have ended since.
    ended: Counts,
    hosts_cpu_s: f64,
}

impl Meter {
    pub(crate) fn start(members: &[Etcd]) -> Result<Self> {
        Ok(Self {
            started: Instant::now(),
            members: members.iter().map(Counts::of).collect::<Result<_>>()?,
            ended: Counts::default(),
            hosts_cpu_s: cpu_s(std::process::id())?,
        })
    }

    /// Keeps what a member has counted, since it is about to end.
    pub(crate) fn before_stop(&mut self, members: &[Etcd], member: usize) -> Result<()> {
        let now = Counts::of(&members[member])?;
        self.ended.add(now.since(self.members[member]));
        self.members[member] = now;
        Ok(())
    }

    /// What was used since then.
    pub(crate) fn read(&self, members: &[Etcd]) -> Result<Cost> {
        let (mut all, mut etcd_mib) = (self.ended, 0.0_f64);
        for (etcd, before) in members.iter().zip(&self.members) {
            all.add(Counts::of(etcd)?.since(*before));
            etcd_mib = etcd_mib.max(resident_mib(etcd.pid())?);
        }
        // Memory that fewer hosts had before stays with the process, and more hosts use it. With fewer hosts beside several members
        // it would be that of more hosts before.
        let hosts_mib = if members.len() == 1 { Some(resident_mib(std::process::id())?) } else { None };
        Ok(Cost {
            seconds: self.started.elapsed().as_secs_f64(),
            etcd_cpu_s: all.cpu_s,
            hosts_cpu_s: cpu_s(std::process::id())? - self.hosts_cpu_s,
            requests: all.requests,
            sent_mb: all.sent_mb,
            events: all.events,
            etcd_mib,
            hosts_mib,
        })
    }
}

fn cpu_s(pid: u32) -> Result<f64> {
    Ok(CpuTime::of(pid)?.own.as_secs_f64())
}

fn resident_mib(pid: u32) -> Result<f64> {
    Ok(Memory::of(pid)?.resident_kib as f64 / 1024.0)
}

fn metrics(url: &str) -> Result<String> {
    let answer = http::ask(url.trim_start_matches("http://"), "/metrics", PATIENCE)
        .context("ask for etcd's metrics")?;
    body(&answer).map(str::to_owned)
}

/// What an answer of HTTP says, if it was a success.
fn body(answer: &str) -> Result<&str> {
    let (head, body) = answer.split_once("\r\n\r\n").context("etcd's answer has no end of its head")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "etcd shows no metrics: {status}");
    Ok(body)
}

/// The sum of a metric over all its labels. A metric that is not there is an error: an etcd that does not count something has not
/// counted zero.
fn sum(text: &str, name: &str) -> Result<f64> {
    let of_name = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{'))
    };
    let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
    let values = text.lines().filter(of_name).map(|line| value(line).with_context(|| format!("read {line}")));
    let values = values.collect::<Result<Vec<_>>>()?;
    ensure!(!values.is_empty(), "this etcd does not count {name}");
    Ok(values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_no_other() {
        let text = "# HELP a x\na{b=\"c\"} 2\na{b=\"d\"} 3e+02\nab 7\n";
        assert_eq!(sum(text, "a").unwrap(), 302.0);
        assert_eq!(sum(text, "ab").unwrap(), 7.0);
    }

    #[test]
    fn a_metric_that_is_missing_or_no_number_is_not_zero() {
        assert_eq!(sum("a 2\n", "b").unwrap_err().to_string(), "this etcd does not count b");
        assert_eq!(sum("b{c=\"d\"} x\n", "b").unwrap_err().to_string(), "read b{c=\"d\"} x");
    }

    #[test]
    fn a_member_that_was_started_anew_counts_from_zero_and_what_it_had_counted_before_is_added() {
        let counts = |pid, requests| Counts { pid, requests, ..Counts::default() };
        assert_eq!(counts(1, 9.0).since(counts(1, 4.0)).requests, 5.0);
        assert_eq!(counts(2, 3.0).since(counts(1, 4.0)).requests, 3.0);
        let mut all = counts(0, 5.0);
        all.add(counts(2, 3.0));
        assert_eq!(all, counts(0, 8.0));
    }

    #[test]
    fn only_an_answer_with_the_status_200_has_metrics() {
        assert_eq!(body("HTTP/1.0 200 OK\r\nA: b\r\n\r\na 2\n").unwrap(), "a 2\n");
        let error = body("HTTP/1.0 404 Not Found\r\nA: b\r\n\r\na 2\n").unwrap_err();
        assert_eq!(error.to_string(), "etcd shows no metrics: HTTP/1.0 404 Not Found");
        body("").unwrap_err();
    }
}
