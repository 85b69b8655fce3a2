//! The faults that a round may draw, and the order in which they come.
use clap::ValueEnum;
use overlay_project::random::Random;
use serde::Serialize;

/// Something that happens to a host, or is done to it by accident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The pins of all links are removed.
    Links,
    /// All pins are removed.
    Pins,
    /// Another BPF file system is mounted over the pins.
    Bpffs,
    /// The underlay device goes down, and up again.
    Underlay,
    /// The host has another underlay address for some seconds. The agents follow to that one, and back.
    Address,
    /// etcd hangs for some seconds; an agent may be killed and started meanwhile.
    EtcdPaused,
    /// etcd is killed, and started again.
    EtcdKilled,
    /// subnet.env is removed.
    SubnetEnv,
    /// The state folder is removed, with record, lock and control socket.
    State,
    /// The time of day steps, by up to years, forwards or back.
    Clock,
    /// overlay0 is deleted.
    TunnelDeleted,
    /// overlay0 is set down.
    TunnelDown,
    /// A program is detached from its hook.
    Detached,
}

impl Fault {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Links,
        Self::Pins,
        Self::Bpffs,
        Self::Underlay,
        Self::Address,
        Self::EtcdPaused,
        Self::EtcdKilled,
        Self::SubnetEnv,
        Self::State,
        Self::Clock,
        Self::TunnelDeleted,
        Self::TunnelDown,
        Self::Detached,
    ];

    /// Whether packets may be on the kernel's stack afterwards, although nothing keeps the fast path from them: while there was no path
    /// or no program they were left to the stack, and a connection that the stack has seen in one direction alone stays there.
    pub(super) fn leaves_to_stack(self) -> bool {
        matches!(self, Self::Underlay | Self::Address | Self::Detached)
    }
}

/// Faults in a drawn order. They are dealt like cards: each comes once, and when all have come, they are dealt anew. So the last one of
/// a deal may be the first one of the next.
#[derive(Clone, Debug)]
pub struct Deck {
    kinds: Vec<Fault>,
    left: Vec<Fault>,
    pub(super) random: Random,
}

impl Deck {
    /// A deck of these faults, in the order that `seed` gives.
    pub fn new(kinds: &[Fault], seed: u64) -> Self {
        Self { kinds: kinds.to_vec(), left: Vec::new(), random: Random::new(seed) }
    }

    /// A deck without any fault.
    pub fn empty() -> Self {
        Self::new(&[], 0)
    }

    pub(super) fn has(&self, fault: Fault) -> bool {
        self.kinds.contains(&fault)
    }

    /// The next fault, if there are any.
    pub(super) fn draw(&mut self) -> Option<Fault> {
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
        }
        (!self.left.is_empty()).then(|| self.left.swap_remove(self.random.below(self.left.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(kinds: &[Fault], seed: u64) -> Vec<Fault> {
        let mut deck = Deck::new(kinds, seed);
        (0..3 * Fault::ALL.len()).filter_map(|_| deck.draw()).collect()
    }

    #[test]
    fn a_seed_repeats_the_order_and_each_fault_comes_once_before_any_comes_again() {
        let order = drawn(Fault::ALL, 5);
        assert_eq!(order, drawn(Fault::ALL, 5));
        assert_ne!(order, drawn(Fault::ALL, 6));
        for turn in order.chunks(Fault::ALL.len()) {
            assert!(Fault::ALL.iter().all(|fault| turn.contains(fault)), "{turn:?}");
        }
    }

    #[test]
    fn every_fault_is_in_the_list_of_all() {
        assert_eq!(Fault::value_variants(), Fault::ALL);
    }

    #[test]
    fn a_deck_without_faults_gives_none() {
        assert_eq!(drawn(&[], 1), []);
        assert!(drawn(&[Fault::Clock], 1).iter().all(|fault| *fault == Fault::Clock));
    }
}
