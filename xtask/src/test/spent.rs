//! What a process and its children have spent on CPUs, read between its end and the moment in which it is forgotten.
use std::{process::Child, time::Duration};

use anyhow::Result;
use nix::{
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::Pid,
};
use overlay_project::cpu::CpuTime;

/// What an ended child has spent, together with those of its children that it has waited for. `None` while it runs. The child
/// is not waited for, so that its status can still be asked for.
pub(super) fn when_ended(child: &Child) -> Result<Option<Duration>> {
    let pid = child.id();
    let how = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    if waitid(Id::Pid(Pid::from_raw(pid.try_into()?)), how)? == WaitStatus::StillAlive {
        return Ok(None);
    }
    Ok(Some(CpuTime::of(pid)?.whole()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

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
