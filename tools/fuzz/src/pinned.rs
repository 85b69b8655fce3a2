//! A thread that stays on one CPU.
use anyhow::Result;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

/// This thread on one CPU, while it lives: every stage of a frame's way is a queue of the CPU that sent it, so that order
/// tells when all is done.
#[derive(Debug)]
pub(crate) struct Pinned(CpuSet);

impl Pinned {
    /// From now on.
    pub(crate) fn new() -> Result<Self> {
        let before = sched_getaffinity(Pid::from_raw(0))?;
        let mut one = CpuSet::new();
        one.set(sched_getcpu()?)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It only was for order; nothing is lost if it stays.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}
