//! How the local lease stands, as the agent's status shows it.
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How the local lease stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// The lease's key below `<prefix>/subnets/`.
    pub key: String,
    /// Whether the store holds it for this host, as far as is known.
    pub state: LeaseState,
    /// When the lease ends unless it is renewed; `None` for a reservation.
    pub expires: Option<u64>,
    /// The same moment by the monotonic clock, by which the agent itself judges: the time of day may be set meanwhile.
    #[serde(skip)]
    pub ends: Option<Instant>,
    /// When the agent will renew it.
    pub renews: Option<u64>,
    /// What the last failed renewal or claim said.
    pub error: Option<String>,
    /// What somebody else has written into it. Earlier agents leave it out.
    #[serde(default)]
    pub alteration: Option<Alteration>,
}

/// What somebody else has written into this host's lease, since the agent started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alteration {
    /// What the last alteration was, in words.
    pub what: String,
    /// How often that happened.
    pub times: u64,
    /// When it last happened.
    pub last: u64,
    /// Whether the store still says so. If not, the lease was written again.
    pub stands: bool,
}

/// Who holds this host's key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// This host.
    #[default]
    Held,
    /// Nobody. It was deleted or has expired, and is being claimed again.
    Missing,
    /// Another host. The subnet cannot change under running containers, so traffic goes on, and the key is claimed again
    /// when it becomes free.
    Lost {
        /// What the key says about who holds it.
        to: String,
    },
}
