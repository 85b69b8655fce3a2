//! What a process costs according to /proc: memory and CPU time.
use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Memory of a process in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Resident memory, including mapped files (`VmRSS`).
    pub resident_kib: u64,
    /// The part of it that belongs to this process alone: heap and stacks (`RssAnon`).
    pub anonymous_kib: u64,
    /// The most memory that was ever resident (`VmHWM`).
    pub peak_kib: u64,
}

impl Memory {
    /// The memory of a process at this moment.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        Self::parse(&fs::read_to_string(&path).with_context(|| format!("read {path}"))?)
    }

    fn parse(status: &str) -> Result<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            number.with_context(|| format!("no {name} in a process's status"))
        };
        Ok(Self {
            resident_kib: field("VmRSS")?,
            anonymous_kib: field("RssAnon")?,
            peak_kib: field("VmHWM")?,
        })
    }
}

/// CPU time that all threads of a process have used so far, in user and kernel mode. It is from the scheduler's clock,
/// because the ticks of /proc/PID/stat are 10 ms each, which an idle agent uses in many seconds.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let folder = PathBuf::from(format!("/proc/{pid}/task"));
    let mut sum = Duration::ZERO;
    for thread in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        sum += parse_schedstat(&text).with_context(|| format!("read {}", path.display()))?;
    }
    Ok(sum)
}

/// The first of the three numbers is the time spent on a CPU (Documentation/scheduler/sched-stats.rst).
fn parse_schedstat(text: &str) -> Result<Duration> {
    let first = text.split_whitespace().next().context("it is empty")?;
    Ok(Duration::from_nanos(first.parse().with_context(|| format!("{first:?} is no time"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_lines_of_these_names() {
        let status =
            "Name:\toverlay\nVmPeak:\t  9 kB\nVmHWM:\t   30 kB\nVmRSS:\t   20 kB\nRssAnon:\t   10 kB\n";
        let memory = Memory { resident_kib: 20, anonymous_kib: 10, peak_kib: 30 };
        assert_eq!(Memory::parse(status).unwrap(), memory);
        assert!(Memory::parse("VmRSS:\t   20 kB\n").is_err());
    }

    #[test]
    fn the_first_number_of_schedstat_is_time_on_a_cpu() {
        assert_eq!(parse_schedstat("1500 7 9\n").unwrap(), Duration::from_nanos(1500));
        assert!(parse_schedstat("\n").is_err());
        assert!(parse_schedstat("x 1 2").is_err());
    }

    #[test]
    fn this_process_has_memory_and_uses_time() {
        let me = std::process::id();
        assert!(Memory::of(me).unwrap().resident_kib > 0);
        assert!(cpu_time(me).unwrap() > Duration::ZERO);
    }
}
