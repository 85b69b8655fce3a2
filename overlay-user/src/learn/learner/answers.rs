//! Holders that answered for an address that others claim: how long an answer counts, and when it is asked for again.
use std::{collections::BTreeMap, mem, net::IpAddr, time::Duration};

/// The pause between the first answer and the next question. Whoever takes an address over announces it, and the holder gives it up
/// a moment later: VRRP's former master as soon as it hears the new one.
const FIRST: Duration = Duration::from_millis(20);
/// What each pause is of the one before. A holder that gives up its address after some time is found out after half of that time
/// more at the latest.
const GROWTH: f64 = 1.5;

/// The addresses whose holder answered, or is pinned.
#[derive(Debug, Default)]
pub(super) struct Answers {
    known: BTreeMap<IpAddr, Answer>,
    /// After which pause the holder of an address is to be asked again, for whoever has a clock.
    pauses: Vec<(IpAddr, Duration)>,
}

/// What is known of one address.
#[derive(Clone, Copy, Debug, Default)]
struct Answer {
    /// Whether the holder is not to be asked for now.
    counts: bool,
    /// Whether a claim to the address was counted as a conflict since the last [`Answers::renew`].
    is_conflict: bool,
    /// How often the holder answered while the address was claimed.
    times: i32,
    /// Whether the pauses began anew since the last [`Answers::renew`].
    began_anew: bool,
}

impl Answers {
    /// Whether the holder is not to be asked for now.
    pub(super) fn count(&self, address: IpAddr) -> bool {
        self.known.get(&address).is_some_and(|answer| answer.counts)
    }

    /// The holder answered. It is asked again after a pause that grows with each answer, and from `longest` on only when
    /// everything is asked again.
    pub(super) fn given(&mut self, address: IpAddr, longest: Duration) {
        let answer = self.known.entry(address).or_default();
        answer.counts = true;
        let pause = FIRST.as_secs_f64() * GROWTH.powi(answer.times);
        answer.times = answer.times.saturating_add(1);
        if pause < longest.as_secs_f64() {
            self.pauses.push((address, Duration::from_secs_f64(pause)));
        }
    }

    /// The holder need not be asked, because it is pinned.
    pub(super) fn pinned(&mut self, address: IpAddr) {
        self.known.entry(address).or_default().counts = true;
    }

    /// Counts a claim as a conflict, and returns whether it is the first to this address since the last [`Self::renew`].
    pub(super) fn is_first_conflict(&mut self, address: IpAddr) -> bool {
        !mem::replace(&mut self.known.entry(address).or_default().is_conflict, true)
    }

    /// The pause after an answer is over.
    pub(super) fn expire(&mut self, address: IpAddr) {
        if let Some(answer) = self.known.get_mut(&address) {
            answer.counts = false;
        }
    }

    /// Somebody announces again that the address is theirs. The holder is asked at once, and the pauses begin anew, but only once
    /// until the next [`Self::renew`]: announcements cost whoever makes them nothing. Returns whether that is so.
    pub(super) fn begin_anew(&mut self, address: IpAddr) -> bool {
        match self.known.get_mut(&address) {
            Some(answer) if !answer.began_anew => {
                *answer = Answer { counts: false, times: 0, began_anew: true, ..*answer };
                true
            }
            _ => false,
        }
    }

    /// From now on every holder may be asked again. The pauses go on growing for addresses that are still claimed.
    pub(super) fn renew(&mut self, is_claimed: impl Fn(&IpAddr) -> bool) {
        self.known.retain(|address, answer| {
            *answer = Answer { times: answer.times, ..Answer::default() };
            is_claimed(address)
        });
    }

    /// Nothing is known of the address any more.
    pub(super) fn forget(&mut self, address: IpAddr) {
        self.known.remove(&address);
    }

    /// The pauses that have come up since the last call.
    pub(super) fn take_pauses(&mut self) -> Vec<(IpAddr, Duration)> {
        mem::take(&mut self.pauses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 2));
    const LONGEST: Duration = Duration::from_secs(10);

    /// The pauses of a claim that goes on, until no further one comes up.
    fn pauses(answers: &mut Answers) -> Vec<Duration> {
        let mut all = Vec::new();
        loop {
            answers.given(ADDRESS, LONGEST);
            let pauses = answers.take_pauses();
            let Some((ADDRESS, pause)) = pauses.first() else { return all };
            all.push(*pause);
            answers.expire(ADDRESS);
            assert!(!answers.count(ADDRESS));
        }
    }

    #[test]
    fn whenever_a_holder_gives_up_it_is_found_out_soon_and_questions_are_few() {
        let mut answers = Answers::default();
        let all = pauses(&mut answers);
        assert_eq!((all[0], all.len()), (Duration::from_millis(20), 16), "{all:?}");
        let mut since = all[0];
        for pause in &all[1..] {
            // The holder may give up right after an answer.
            assert!(*pause <= since.mul_f64(1.51), "{pause:?} after {since:?}");
            assert!(
                since > Duration::from_secs(2) || *pause < Duration::from_millis(1040),
                "{pause:?} after {since:?}"
            );
            since += *pause;
        }
        assert!(since >= LONGEST);
        // A claim that goes on for longer is asked about when everything is.
        answers.renew(|_| true);
        assert!(!answers.count(ADDRESS));
        assert_eq!(pauses(&mut answers), []);
        // After a time without a claim the pauses are short again.
        answers.renew(|_| false);
        assert_eq!(pauses(&mut answers).len(), all.len());
    }

    #[test]
    fn the_pauses_begin_anew_only_now_and_then() {
        let mut answers = Answers::default();
        assert!(!answers.begin_anew(ADDRESS), "nobody was asked");
        pauses(&mut answers);
        assert!(answers.count(ADDRESS) && answers.begin_anew(ADDRESS) && !answers.count(ADDRESS));
        assert_eq!(pauses(&mut answers).len(), 16);
        assert!(!answers.begin_anew(ADDRESS) && answers.count(ADDRESS));
        answers.renew(|_| true);
        assert!(answers.begin_anew(ADDRESS));
    }
}
