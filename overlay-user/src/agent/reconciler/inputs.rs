//! What reaches the loop besides the store: learned endpoints, requests, the order to end, and the ticks of the clock.
use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    agent::{control::Call, status::Status},
    model::change::{LocalChange, XdpTargetChange},
};

/// How often the loop shows that it lives; see [`crate::agent::health`].
const BEAT: Duration = Duration::from_secs(1);
/// How often stack flows are aged.
const FLOWS: Duration = Duration::from_secs(30);

/// How often the loop looks whether what should outlive the agent is still pinned, and whether the host's own devices have their
/// programs. The kernel tells nobody when that changes.
const PINS: Duration = Duration::from_secs(2);

/// What reaches the loop besides the store, and the place where the loop publishes its status.
#[derive(Debug)]
pub struct Inputs {
    local: mpsc::Receiver<Vec<LocalChange>>,
    xdp_targets: mpsc::Receiver<Vec<XdpTargetChange>>,
    control: mpsc::Receiver<Call>,
    shutdown: watch::Receiver<bool>,
    pub(super) status: watch::Sender<Status>,
    beat: Interval,
    flows: Interval,
    pins: Interval,
}

/// Why the loop ended. The data path keeps working in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The loop was asked to end.
    Shutdown,
    /// Nobody is left who could ask the loop to end.
    Abandoned,
}

/// One thing for the loop to do.
pub(super) enum Input {
    /// What the learner or the device keeper decided about endpoints and ports.
    Local(Vec<LocalChange>),
    /// Veths that take frames from XDP, or take them no longer.
    XdpTargets(Vec<XdpTargetChange>),
    Asked(Call),
    Beat,
    AgeFlows,
    KeepPins,
    End(Exit),
}

impl Inputs {
    /// Sets the inputs up. `local` brings what the learner and the device keeper decided, `control` brings requests of
    /// operators, and `true` on `shutdown` ends the loop.
    pub fn new(
        local: mpsc::Receiver<Vec<LocalChange>>,
        xdp_targets: mpsc::Receiver<Vec<XdpTargetChange>>,
        control: mpsc::Receiver<Call>,
        shutdown: watch::Receiver<bool>,
        status: watch::Sender<Status>,
    ) -> Self {
        let every = |period| {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        let (beat, flows, pins) = (every(BEAT), every(FLOWS), every(PINS));
        Self { local, xdp_targets, control, shutdown, status, beat, flows, pins }
    }

    /// The next thing to do. This is cancel-safe. The order to end comes first, whatever else is waiting.
    pub(super) async fn next(&mut self) -> Input {
        tokio::select! {
            biased;
            ended = self.shutdown.wait_for(|asked| *asked) => {
                Input::End(if ended.is_ok() { Exit::Shutdown } else { Exit::Abandoned })
            }
            _ = self.beat.tick() => Input::Beat,
            _ = self.pins.tick() => Input::KeepPins,
            Some(call) = self.control.recv() => Input::Asked(call),
            Some(changes) = self.local.recv() => Input::Local(changes),
            Some(changes) = self.xdp_targets.recv() => Input::XdpTargets(changes),
            _ = self.flows.tick() => Input::AgeFlows,
        }
    }
}
