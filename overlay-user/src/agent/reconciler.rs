//! The agent's loop: what the store says, into the data path. The only task that changes the data path.
mod inputs;
mod report;
mod state;

use std::time::Duration;

use anyhow::Context as _;
use log::{info, warn};
use tokio::time::{Instant, sleep, sleep_until};

pub use self::inputs::{Exit, Inputs};
use self::state::Local;
use crate::{
    agent::peers::Scope,
    datapath::{Datapath, DatapathError},
    store::{
        Follow as _, Origin, Store, StoreError,
        local_lease::{Kept, Own},
    },
};

/// Default of `--audit-interval`.
pub const AUDIT: Duration = Duration::from_secs(300);
/// First and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What the loop starts with.
#[derive(Debug)]
pub struct Setup {
    /// What this host is, and which leases concern it.
    pub scope: Scope,
    /// The own lease, acquired before.
    pub own: Own,
    /// How often everything is read back and compared, in both directions.
    pub audit: Duration,
    /// What an earlier agent, or the acquisition of the lease, heard of the store: another history later makes every
    /// removal suspect. `None` takes the first one seen.
    pub origin: Option<Origin>,
}

/// Why one round (snapshot, then changes) ended early.
enum Stop {
    Exit(Exit),
    Store(StoreError),
    Datapath(DatapathError),
    /// Somebody else wrote the own lease: only a new snapshot tells what holds.
    Outrun,
}

/// Runs until asked to stop. Fails only at the start, if what is in force cannot be read; afterwards every failure is
/// logged, shown in the status and tried again, and nothing is removed because of it.
pub async fn run(
    mut store: impl Store,
    datapath: impl Datapath,
    setup: Setup,
    inputs: Inputs,
) -> anyhow::Result<Exit> {
    let Setup { scope, mut own, audit, origin } = setup;
    let mut local =
        Local::new(datapath, scope, inputs, origin).context("read back what the data path has in force")?;
    local.names(&store.name());
    let mut pause = PAUSE.0;
    loop {
        let started = Instant::now();
        let ended = round(&mut store, &mut own, &mut local, audit).await;
        // A stream that lived was no failure in a row.
        if started.elapsed() > PAUSE.1 {
            pause = PAUSE.0;
        }
        match ended {
            Ok(()) => continue,
            Err(Stop::Exit(exit)) => return Ok(exit),
            Err(Stop::Outrun) => {
                info!("the own lease was written by somebody else: reading all leases again")
            }
            Err(Stop::Store(StoreError::Behind { store, oldest })) => {
                info!("{store} has compacted its history before revision {oldest}: reading all leases again");
            }
            Err(Stop::Store(error)) => {
                warn!("{error}; all peers stay, next try in {pause:?}");
                local.store_failed(&error);
            }
            Err(Stop::Datapath(error)) => {
                warn!("read back what the data path has in force: {error}; next try in {pause:?}");
                local.datapath_failed(&error);
            }
        }
        local.publish_lease(&own);
        if let Err(exit) = rest(&mut store, &mut own, &mut local, pause).await {
            return Ok(exit);
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// One snapshot and the changes after it, until the audit is due (`Ok`) or something ends it. Compaction, a closed
/// stream, a store that is back and the audit thus all take the same way: from a snapshot, with a difference both ways.
async fn round<D: Datapath>(
    store: &mut impl Store,
    own: &mut Own,
    local: &mut Local<D>,
    audit: Duration,
) -> Result<(), Stop> {
    let snapshot = local.meanwhile(store.snapshot()).await??;
    own.snapshot(&snapshot);
    local.reconcile(&snapshot)?;
    let mut changes = local.meanwhile(store.follow(snapshot.revision)).await??;
    local.following();
    let audit = sleep(audit);
    tokio::pin!(audit);
    while !local.resync_asked() {
        local.publish_lease(own);
        tokio::select! {
            batch = changes.next() => {
                let batch = batch?;
                own.change(&batch);
                local.change(&batch);
            }
            input = local.inputs.next() => local.handle(input)?,
            () = at(own.due()) => {
                if local.meanwhile(own.keep(store)).await? == Kept::Outrun {
                    return Err(Stop::Outrun);
                }
            }
            () = &mut audit => break,
        }
    }
    Ok(())
}

/// The pause after a failure. The own lease is kept meanwhile: what fails need not be the store, nor its writes.
async fn rest<D: Datapath>(
    store: &mut impl Store,
    own: &mut Own,
    local: &mut Local<D>,
    pause: Duration,
) -> Result<(), Exit> {
    let end = sleep(pause);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return Ok(()),
            // Outrun or not, the next round begins with a snapshot.
            () = at(own.due()) => {
                local.meanwhile(own.keep(store)).await?;
                local.publish_lease(own);
            }
            input = local.inputs.next() => local.handle(input)?,
        }
    }
}

/// Waits for a moment, or for ever.
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
