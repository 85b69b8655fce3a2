//! The agent's loop: it makes the data path agree with the store. No other task changes the data path.
mod inputs;
mod report;
mod state;

use std::time::Duration;

use anyhow::Context as _;
use log::{info, warn};
use tokio::time::{Instant, sleep, sleep_until};

pub use self::inputs::{Exit, Inputs};
use self::state::ReconcilerState;
use crate::{
    agent::peers::Scope,
    datapath::{Datapath, DatapathError},
    store::{
        Follow as _, Origin, Store, StoreError,
        local_lease::{LeaseKeeper, LeaseWrite},
    },
};

/// Default of `--audit-interval`.
pub const AUDIT: Duration = Duration::from_secs(300);
/// The first and the longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What the loop starts with.
#[derive(Debug)]
pub struct Setup {
    /// What this host is, and which leases concern it.
    pub scope: Scope,
    /// The local lease, acquired before the loop starts.
    pub lease: LeaseKeeper,
    /// How often everything is read back and compared, in both directions.
    pub audit: Duration,
    /// What an earlier agent, or the acquisition of the lease, heard of the store. If the store shows another history later,
    /// every removal is suspect. With `None`, the first history that is seen is trusted.
    pub origin: Option<Origin>,
}

/// Why one round (snapshot, then changes) ended early.
enum Stop {
    Exit(Exit),
    Store(StoreError),
    Datapath(DatapathError),
    /// Somebody else wrote the local lease, so that only a new snapshot tells what holds.
    Outrun,
}

/// Runs until it is asked to stop. It fails only at the start, if what is in force cannot be read. Afterwards every failure is
/// logged, shown in the status and tried again, and nothing is removed because of it.
pub async fn run(
    mut store: impl Store,
    datapath: impl Datapath,
    setup: Setup,
    inputs: Inputs,
) -> anyhow::Result<Exit> {
    let Setup { scope, mut lease, audit, origin } = setup;
    let mut state = ReconcilerState::new(datapath, scope, inputs, origin)
        .context("read back what the data path has in force")?;
    state.names(&store.name());
    let mut pause = PAUSE.0;
    loop {
        let started = Instant::now();
        let ended = round(&mut store, &mut lease, &mut state, audit).await;
        // A round that lasted longer than the longest pause was a success, so the failures in a row are counted anew.
        if started.elapsed() > PAUSE.1 {
            pause = PAUSE.0;
        }
        match ended {
            Ok(()) => continue,
            Err(Stop::Exit(exit)) => return Ok(exit),
            Err(Stop::Outrun) => {
                info!("the local lease was written by somebody else: reading all leases again")
            }
            Err(Stop::Store(StoreError::Behind { store, oldest })) => {
                info!("{store} has compacted its history before revision {oldest}: reading all leases again");
            }
            Err(Stop::Store(error)) => {
                warn!("{error}; all peers stay, next try in {pause:?}");
                state.store_failed(&error);
            }
            Err(Stop::Datapath(error)) => {
                warn!("read back what the data path has in force: {error}; next try in {pause:?}");
                state.datapath_failed(&error);
            }
        }
        state.publish_lease(&lease);
        if let Err(exit) = rest(&mut store, &mut lease, &mut state, pause).await {
            return Ok(exit);
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Takes one snapshot and follows the changes after it, until the audit is due (`Ok`) or something ends the round. After a
/// compaction, a closed stream, an unreachable store or an audit, the loop therefore always goes on in the same way: from a
/// snapshot, with a difference in both directions.
async fn round<D: Datapath>(
    store: &mut impl Store,
    lease: &mut LeaseKeeper,
    state: &mut ReconcilerState<D>,
    audit: Duration,
) -> Result<(), Stop> {
    let snapshot = state.meanwhile(store.snapshot()).await??;
    lease.snapshot(&snapshot);
    state.reconcile(&snapshot)?;
    let mut changes = state.meanwhile(store.follow(snapshot.revision)).await??;
    state.following();
    let audit = sleep(audit);
    tokio::pin!(audit);
    while !state.resync_asked() {
        state.publish_lease(lease);
        tokio::select! {
            batch = changes.next() => {
                let batch = batch?;
                lease.change(&batch);
                state.change(&batch);
            }
            input = state.inputs.next() => state.handle(input)?,
            () = at(lease.due()) => {
                if state.meanwhile(lease.keep(store)).await? == LeaseWrite::Outrun {
                    return Err(Stop::Outrun);
                }
            }
            () = &mut audit => break,
        }
    }
    Ok(())
}

/// Pauses after a failure. The local lease is kept meanwhile, since what failed need not be the store, and the store may still
/// take writes.
async fn rest<D: Datapath>(
    store: &mut impl Store,
    lease: &mut LeaseKeeper,
    state: &mut ReconcilerState<D>,
    pause: Duration,
) -> Result<(), Exit> {
    let end = sleep(pause);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return Ok(()),
            // Whether somebody else wrote the lease does not matter here, because the next round begins with a snapshot anyway.
            () = at(lease.due()) => {
                state.meanwhile(lease.keep(store)).await?;
                state.publish_lease(lease);
            }
            input = state.inputs.next() => state.handle(input)?,
        }
    }
}

/// Waits until `moment`, or for ever if there is none.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

impl From<Exit> for Stop {
    fn from(exit: Exit) -> Self {
        Self::Exit(exit)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<DatapathError> for Stop {
    fn from(error: DatapathError) -> Self {
        Self::Datapath(error)
    }
}
