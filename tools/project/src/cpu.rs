//! How long a process has run on CPUs.
use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

/// Linux counts 100 of them in a second towards programs, on every architecture.
const TICK: Duration = Duration::from_millis(10);

/// What a process has spent on CPUs, in user and in kernel mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTime {
    /// By the process itself, with all its threads.
    pub own: Duration,
    /// By those of its children that have ended and that it has waited for.
    pub children: Duration,
}

impl CpuTime {
    /// Reads what a process has spent so far.
    ///
    /// # Errors
    /// When there is no such process, not even one that nobody has waited for yet.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        Self::in_stat(&stat).with_context(|| format!("no times in {stat}"))
    }

    /// The process and its children together.
    pub fn whole(self) -> Duration {
        self.own + self.children
    }

    /// Reads utime, stime, cutime and cstime in a process's `stat`, whose fields are in proc(5).
    fn in_stat(stat: &str) -> Option<Self> {
        // The second field is the program's name, which may have spaces and brackets.
        let (_, behind_name) = stat.rsplit_once(") ")?;
        let mut times = behind_name.split(' ').skip(11).map(|ticks| ticks.parse::<u32>().ok());
        let mut next = || Some(TICK * times.next()??);
        Some(Self { own: next()? + next()?, children: next()? + next()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_its_times_and_those_of_its_children() {
        let stat = "7 (a) b) Z 1 7 7 0 -1 4227084 0 0 0 0 150 20 3000 7 20 0 1 0 9 0 0";
        let found = CpuTime::in_stat(stat).unwrap();
        assert_eq!((found.own.as_millis(), found.children.as_millis()), (1_700, 30_070));
        assert_eq!(found.whole(), Duration::from_millis(31_770));
        assert_eq!(CpuTime::in_stat("7 (a) Z 1 7"), None);
    }

    #[test]
    fn only_a_process_that_is_there_has_times() {
        CpuTime::of(std::process::id()).unwrap();
        // The kernel's process ids are smaller.
        CpuTime::of(u32::MAX).unwrap_err();
    }
}
