//! The probes that are under way: few at once, and none that could take another's answers for its own.
use std::collections::{BTreeSet, VecDeque};

use tokio::task::JoinSet;

use crate::learn::{
    learner::{Learner, Probe},
    probe::Prober,
};

/// How many probes are under way at once. The others wait, in order: announcements can ask for any number.
const AT_ONCE: usize = 8;

/// The probes that are under way and those that wait. There is at most one for each address on each port.
#[derive(Default)]
pub(super) struct Probes {
    tasks: JoinSet<(Probe, bool)>,
    pending: BTreeSet<Probe>,
    waiting: VecDeque<Probe>,
}

impl Probes {
    /// Sends the probes that the learner asks for, and those that waited, as far as they may begin. This is to be called whenever
    /// [`Self::answer`] returns.
    pub(super) fn send(&mut self, learner: &mut Learner) {
        for probe in self.next(learner.take_probes()) {
            let name = learner.interface_name(probe.port).unwrap_or_default().to_owned();
            // Its namespace is that of this thread. The rest may block.
            let prober = Prober::open(probe, &name);
            self.tasks.spawn_blocking(move || {
                // If the question cannot be asked, nothing is proven, so the address stays. If the port has gone, an event
                // tells it.
                let answered = prober.and_then(|prober| prober.ask()).unwrap_or_else(|error| {
                    log::warn!("probe {} on {name}: {error}", probe.address);
                    true
                });
                (probe, answered)
            });
        }
    }

    /// Takes in new probes, and returns those that begin now. What cannot begin waits without holding up what comes after it.
    fn next(&mut self, new: Vec<Probe>) -> Vec<Probe> {
        for probe in new {
            if self.pending.iter().any(|other| is_same(other, &probe)) {
                // The learner asks anew if the answer was another container's.
                continue;
            }
            match self.waiting.iter_mut().find(|other| is_same(other, &probe)) {
                Some(other) => *other = probe,
                None => self.waiting.push_back(probe),
            }
        }
        let mut begun = Vec::new();
        let mut at = 0;
        while self.pending.len() < AT_ONCE
            && let Some(probe) = self.waiting.get(at).copied()
        {
            if self.pending.iter().any(|other| disturb(other, &probe)) {
                at += 1;
                continue;
            }
            self.waiting.remove(at);
            self.pending.insert(probe);
            begun.push(probe);
        }
        begun
    }

    /// Waits for the next answer to a probe. If none is under way, there is none.
    pub(super) async fn answer(&mut self) -> Option<(Probe, bool)> {
        let answer = self.tasks.join_next().await?.ok()?;
        self.pending.remove(&answer.0);
        Some(answer)
    }
}

/// Whether both ask the same: whether the address is still behind the port.
fn is_same(one: &Probe, other: &Probe) -> bool {
    (one.port, one.address) == (other.port, other.address)
}

/// Whether the container's answer to one of the probes could be taken for an answer to the other. Only what it says for its other
/// address misleads when it is not asked by the probe that hears it: to say that it has the first is true, whoever asked.
fn disturb(one: &Probe, other: &Probe) -> bool {
    let hears = |this: &Probe, that: &Probe| {
        this.sibling.is_some_and(|it| it == that.address || that.sibling == Some(it))
    };
    one.port == other.port && (hears(one, other) || hears(other, one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::mac::Mac;

    fn probe(port: u32, last: u8, sibling: Option<u8>) -> Probe {
        Probe {
            port,
            address: [10, 244, 1, last].into(),
            mac: Mac::default(),
            gateway_mac: Mac::default(),
            sibling: sibling.map(|last| [10, 244, 1, last].into()),
        }
    }

    #[test]
    fn probes_that_hear_the_same_answers_are_made_one_after_the_other() {
        let both = |one, other| (disturb(&one, &other), disturb(&other, &one));
        assert_eq!(both(probe(7, 2, Some(4)), probe(7, 3, Some(4))), (true, true));
        assert_eq!(both(probe(7, 2, Some(3)), probe(7, 3, None)), (true, true));
        assert_eq!(both(probe(7, 2, Some(3)), probe(8, 3, Some(2))), (false, false));
        assert_eq!(both(probe(7, 2, Some(4)), probe(7, 3, None)), (false, false));
        assert_eq!(both(probe(7, 2, None), probe(7, 3, None)), (false, false));
    }

    #[test]
    fn few_probes_are_under_way_at_once_and_the_others_wait_in_order() {
        let mut probes = Probes::default();
        let all: Vec<Probe> = (2..22).map(|last| probe(7, last, None)).collect();
        let (first, rest) = all.split_at(AT_ONCE);
        assert_eq!(probes.next(all.clone()), first);
        assert_eq!(probes.next(all.clone()), [], "each is there already");
        for ended in first.iter().chain(rest).zip(rest) {
            probes.pending.remove(ended.0);
            assert_eq!(probes.next(Vec::new()), [*ended.1]);
        }
        assert_eq!((probes.pending.len(), probes.waiting.len()), (AT_ONCE, 0));
    }

    #[test]
    fn whatever_waits_is_asked_of_the_container_that_is_there_last_and_holds_up_nobody() {
        let mut probes = Probes::default();
        let (one, disturbed) = (probe(7, 2, Some(4)), probe(7, 3, Some(4)));
        let replaced = Probe { mac: Mac([2, 0, 0, 0, 0, 9]), ..disturbed };
        assert_eq!(probes.next(vec![one, disturbed, probe(8, 3, None)]), [one, probe(8, 3, None)]);
        assert_eq!(probes.next(vec![replaced, Probe { sibling: None, ..one }]), []);
        probes.pending.remove(&one);
        assert_eq!(probes.next(Vec::new()), [replaced]);
    }
}
