//! The differential fuzzer sends the same broken frames to our decapsulation and to the kernel's own VXLAN device. What
//! ours delivers, the kernel must deliver too, byte for byte. What only ours drops must be explained by a rule that was
//! written without looking at the programs, and the programs' counters must agree with it. Every frame must be counted
//! somewhere.
use std::{path::Path, time::Instant};

use anyhow::Result;

use self::{
    mutations::{Case, Cases},
    pinned::Pinned,
    report::finding,
    rules::fate,
    run::{MOST_FINDINGS, Run},
};

pub use self::{
    options::{FastPath, FuzzOptions, Ingress, Setup},
    report::{Finding, Report},
    table::Bench,
    twins::Nic,
};

mod account;
mod compare;
mod datagrams;
mod fate;
pub mod frames;
pub mod headers;
mod kernel_counters;
mod mutations;
mod options;
mod pinned;
mod report;
pub mod rows;
mod rules;
mod run;
pub mod table;
mod twins;
mod wire;
pub mod world;

/// Frames per comparison. The agent is asked for its counters once per comparison.
const BATCH: usize = 4096;

/// Fuzzes with the agent's binary at `overlay`.
pub fn fuzz(options: &FuzzOptions, overlay: &Path) -> Result<Report> {
    let started = Instant::now();
    let _pinned = Pinned::new()?;
    let seed = options.seed.unwrap_or_else(overlay_lab::random::seed);
    let mut run = Run::new(overlay, options.setup(), seed)?;
    let mut cases = Cases::new(seed);
    while run.report.frames < options.frames && run.report.differences.len() < MOST_FINDINGS {
        let left = usize::try_from(options.frames - run.report.frames)?.min(BATCH);
        let batch: Vec<_> = cases.by_ref().take(left).collect();
        let with_fates: Vec<_> = batch.into_iter().map(|case| (fate(case.nic, &case.frames), case)).collect();
        run.batch(&with_fates)?;
    }
    run.report.time = started.elapsed();
    Ok(run.report)
}

/// Sends the frames of named rows, one case after the other, and returns the findings.
pub fn replay(rows: &[rows::Row], setup: Setup, overlay: &Path) -> Result<Report> {
    let _pinned = Pinned::new()?;
    let mut run = Run::new(overlay, setup, 0)?;
    for row in rows {
        let case = Case { name: row.name.clone(), nic: row.nic, frames: row.frames.clone() };
        let fate = fate(case.nic, &case.frames);
        let said = fate.verdict();
        if said != row.verdict {
            let why = vec![format!("the row expects {}, the rules say {said}", row.verdict)];
            run.report.differences.push(finding(&fate, &case, why));
        }
        run.batch(&[(fate, case)])?;
    }
    Ok(run.report)
}
