//! A thread that stays on one CPU.
use anyhow::Result;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

/// Keeps this thread on one CPU while it lives. Every stage of a frame's path is a queue of the CPU that sent it, so
/// the order of frames tells when all are done.
#[derive(Debug)]
pub(crate) struct Pinned(CpuSet);

impl Pinned {
    /// Pins the thread from now on.
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
        // This was only needed for the order of frames, so it does no harm if the thread stays pinned.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}
