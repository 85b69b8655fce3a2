//! Containers' ports that have just appeared. A kernel without TCX needs a clsact qdisc at a port, which takes the only place for
//! an ingress qdisc; CNI's plugin `bandwidth` makes one right after the port, and fails if the place is taken. So a new port is
//! left to the stack for a moment, in which others may take the place.
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::DatapathError;

/// How long a new port is left to the stack. The plugins that make the port and limit it run one right after the other.
const PATIENCE: Duration = Duration::from_secs(3);

/// The ports by interface index, and when they were first to get programs. None for those that were there before.
#[derive(Debug, Default)]
pub(super) struct Newcomers(BTreeMap<u32, Option<Instant>>);

impl Newcomers {
    /// All interfaces but these will be new.
    pub(super) fn besides(present: &[u32]) -> Self {
        Self(present.iter().map(|ifindex| (*ifindex, None)).collect())
    }

    /// Whether the port has been there for long enough.
    ///
    /// # Errors
    /// [`DatapathError::Early`] if it has not.
    pub(super) fn admit(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        match self.0.entry(ifindex).or_insert_with(|| Some(Instant::now())) {
            Some(since) if since.elapsed() < PATIENCE => Err(DatapathError::Early(ifindex)),
            _ => Ok(()),
        }
    }

    /// Forgets a port that is gone: another interface may get its index.
    pub(super) fn forget(&mut self, ifindex: u32) {
        self.0.remove(&ifindex);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_port_waits_and_only_for_a_while() {
        let mut newcomers = Newcomers::besides(&[3]);
        newcomers.admit(3).unwrap();
        assert!(matches!(newcomers.admit(4), Err(DatapathError::Early(4))));
        assert!(matches!(newcomers.admit(4), Err(DatapathError::Early(4))));
        newcomers.0.insert(4, Instant::now().checked_sub(PATIENCE));
        newcomers.admit(4).unwrap();
        newcomers.forget(3);
        assert!(
            matches!(newcomers.admit(3), Err(DatapathError::Early(3))),
            "another interface has the index"
        );
    }
}
