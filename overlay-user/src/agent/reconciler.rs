//! The agent's loop: it makes the data path agree with the store. No other task changes the data path.
mod audit;
mod inputs;
mod knowledge;
mod report;
mod schedule;
mod state;

use std::time::Duration;

use anyhow::Context as _;
use log::{info, warn};
use tokio::time::{Instant, sleep_until};

pub use self::{
    inputs::{Exit, Inputs},
    schedule::{longest as longest_pause, rhythm},
};
use self::{
    schedule::{Pauses, Unread, longest},
    state::ReconcilerState,
};
use crate::{
    agent::{origin::Noted, peers::Scope, status::ResyncKind},
    datapath::{Datapath, DatapathError},
    store::{
        Follow as _, Store, StoreError,
        drained::Drained,
        local_lease::{LeaseKeeper, LeaseWrite},
    },
};

/// Default of `--audit-interval`.
pub const AUDIT: Duration = Duration::from_secs(300);
/// What the loop starts with.
#[derive(Debug)]
pub struct Setup {
    /// What this host is, and which leases concern it.
    pub scope: Scope,
    /// The local lease, acquired before the loop starts.
    pub lease: LeaseKeeper,
    /// How often what is in force is read back and compared with the leases, in both directions. The store is asked far less
    /// often, in proportion to this.
    pub audit: Duration,
    /// What an earlier agent, or the acquisition of the lease, heard of the store, and which removals it held back. If the store
    /// shows another history later, every removal is suspect. With `None`, the first history that is seen is trusted.
    pub origin: Option<Noted>,
}

/// Why one round (what is known, then changes) ended early.
enum Stop {
    Exit(Exit),
    Store(StoreError),
    Datapath(DatapathError),
    /// Somebody else wrote the local lease, so that only a new look tells what holds.
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
    let mut state = ReconcilerState::new(datapath, scope, inputs, origin, audit)
        .context("read back what the data path has in force")?;
    state.names(&store.name());
    let mut pauses = Pauses::default();
    let mut why = String::new();
    loop {
        let started = Instant::now();
        let ended = round(&mut store, &mut lease, &mut state, &why).await;
        // A round that lasted longer than the longest pause was a success, so the failures in a row are counted anew.
        if started.elapsed() > longest(state.hosts()) {
            pauses.reset();
        }
        let Err(stop) = ended else { continue };
        let mut pause = pauses.next(state.hosts());
        match stop {
            Stop::Exit(exit) => return Ok(exit),
            Stop::Outrun => {
                info!("the local lease was written by somebody else: looking at it again");
                "somebody else wrote the local lease".clone_into(&mut why);
            }
            Stop::Store(error @ (StoreError::Behind { .. } | StoreError::Overrun { .. })) => {
                // Every host may have to read all leases now, which costs the store much.
                pause += Pauses::long(state.hosts());
                info!("{error}: reading all leases again in {pause:?}");
                state.store_failed(&error);
                state.unread = Some(Unread::at_once(error.to_string()));
            }
            Stop::Store(error) => {
                warn!("{error}; all peers stay, next try in {pause:?}");
                state.store_failed(&error);
                why = error.to_string();
            }
            Stop::Datapath(error) => {
                warn!("read back what the data path has in force: {error}; next try in {pause:?}");
                state.datapath_failed(&error);
                why = error.to_string();
            }
        }
        state.publish_lease(&lease);
        let end = Instant::now() + pause;
        if let Err(exit) = rest(&mut store, &mut lease, &mut state, |_| Some(end)).await {
            return Ok(exit);
        }
    }
}

/// Makes sure that what is known continues in the store, or reads all leases, and follows the changes after that until all leases
/// are due to be read again (`Ok`) or something ends the round. After a compaction, a closed stream or an unreachable store the
/// loop therefore always goes on in the same way.
async fn round<D: Datapath>(
    store: &mut impl Store,
    lease: &mut LeaseKeeper,
    state: &mut ReconcilerState<D>,
    why: &str,
) -> Result<(), Stop> {
    if state.unread.is_none() {
        tally(store, lease, state).await?;
    }
    rest(store, lease, state, |state| state.unread.as_ref().map(|unread| unread.due)).await?;
    match state.unread.clone() {
        Some(unread) => list(store, lease, state, unread.why).await?,
        None => {
            if !state.readable {
                state.audit()?;
            }
            state.resynchronised(ResyncKind::Resumed, why.to_owned());
        }
    }
    let known = state.history.revision().unwrap_or_default();
    let changes = state.meanwhile(store.follow(known)).await??;
    let mut changes = Drained::new(changes, store.name());
    state.following();
    while state.unread.is_none() {
        state.publish_lease(lease);
        state.remarked(store.remark());
        let (maps, tally_due, listing) = (state.schedule.maps, state.schedule.tally, state.schedule.listing);
        let compare = state.compare_by();
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
            () = sleep_until(maps) => state.audit()?,
            () = sleep_until(tally_due) => tally(store, lease, state).await?,
            // What waits may be of an earlier revision than the count.
            () = at(compare) => if !changes.is_waiting() {
                state.compare();
            },
            // The schedule has spread the hosts already.
            () = sleep_until(listing) => state.unread = Some(Unread::at_once("it is done now and then")),
        }
    }
    Ok(())
}

/// Asks the store how many keys it has, and for two of them, which tells whether what is known still holds.
async fn tally<D: Datapath>(
    store: &mut impl Store,
    lease: &mut LeaseKeeper,
    state: &mut ReconcilerState<D>,
) -> Result<(), Stop> {
    let keys = state.witnesses(lease.key());
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let tally = state.meanwhile(store.tally(&keys)).await??;
    lease.look(tally.entries.first().and_then(Option::as_ref), tally.origin.revision);
    state.tallied(lease.key(), &tally);
    Ok(())
}

/// Reads all leases, and brings the data path to what they say.
async fn list<D: Datapath>(
    store: &mut impl Store,
    lease: &mut LeaseKeeper,
    state: &mut ReconcilerState<D>,
    why: String,
) -> Result<(), Stop> {
    let cheap = match state.history.revision() {
        Some(known) => {
            let snapshot = state.meanwhile(store.cheap_snapshot()).await??;
            // A part of the store that lags behind proves nothing. Only the newest state can contradict what is known.
            let current = snapshot.revision >= known.max(lease.modified());
            Some(snapshot).filter(|snapshot| current && state.history.goes_on_in(snapshot))
        }
        None => None,
    };
    let snapshot = match cheap {
        Some(snapshot) => snapshot,
        None => state.meanwhile(store.snapshot()).await??,
    };
    lease.snapshot(&snapshot);
    state.reconcile(&snapshot)?;
    state.resynchronised(ResyncKind::Listed, why);
    Ok(())
}

/// Pauses after a failure, or before all leases are read, until the moment that `until` names, which an input may alter. The
/// local lease is kept meanwhile, since what failed need not be the store, and the store may still take writes.
async fn rest<D: Datapath>(
    store: &mut impl Store,
    lease: &mut LeaseKeeper,
    state: &mut ReconcilerState<D>,
    until: impl Fn(&ReconcilerState<D>) -> Option<Instant>,
) -> Result<(), Exit> {
    loop {
        let Some(end) = until(state).filter(|end| *end > Instant::now()) else { return Ok(()) };
        tokio::select! {
            () = sleep_until(end) => {}
            // Whether somebody else wrote the lease does not matter here: what follows looks at its key anyway, by a tally or by
            // reading all.
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
