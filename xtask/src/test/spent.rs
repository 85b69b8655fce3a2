//! What a process and its children have spent on CPUs, read between its end and the moment in which it is forgotten.
use std::{fs, process::Child, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::Pid,
};

/// Linux counts 100 of them in a second towards programs, on every architecture.
const TICK: Duration = Duration::from_millis(10);

/// What an ended child has spent, together with those of its children that it has waited for. `None` while it runs. The child
/// is not waited for, so that its status can still be asked for.
pub(super) fn when_ended(child: &Child) -> Result<Option<Duration>> {
    let pid = child.id();
    let how = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    if waitid(Id::Pid(Pid::from_raw(pid.try_into()?)), how)? == WaitStatus::StillAlive {
        return Ok(None);
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    of_stat(&stat).map(Some).with_context(|| format!("no times in {stat}"))
}

/// The sum of utime, stime, cutime and cstime in a process's `stat`, whose fields are in proc(5).
fn of_stat(stat: &str) -> Option<Duration> {
    // The second field is the program's name, which may have spaces and brackets.
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let times = behind_name.split(' ').skip(11).take(4);
    let ticks = times.map(|ticks| ticks.parse::<u32>().ok()).collect::<Option<Vec<_>>>()?;
    (ticks.len() == 4).then(|| TICK * ticks.iter().sum())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_tells_its_times_and_those_of_its_children() {
        let stat = "7 (a) b) Z 1 7 7 0 -1 4227084 0 0 0 0 150 20 3000 7 20 0 1 0 9 0 0";
        assert_eq!(of_stat(stat), Some(Duration::from_millis(31_770)));
        assert_eq!(of_stat("7 (a) Z 1 7"), None);
    }

    #[test]
    fn a_child_is_asked_once_it_has_ended_and_keeps_its_status() {
        let mut child = Command::new("sh")
            .args(["-c", "read line; exit 3"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(when_ended(&child).unwrap(), None);
        drop(child.stdin.take());
        while when_ended(&child).unwrap().is_none() {}
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}
