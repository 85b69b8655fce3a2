//! What one agent has seen of the leases in a folder: since when each has stood unchanged. By that, and by no other host's
//! clock, it judges which have ended. This module is pure: it reads neither clock nor files.
use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::ledger::{Ledger, Millis, Stamp};

/// A change is known to be young if the look before it was less than this ago.
const YOUNG: Duration = Duration::from_secs(10);
/// Clocks that differ by less than this are not worth a word.
const TOLERATED: Duration = Duration::from_secs(120);

/// What one agent has seen of a folder's leases.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// How each lease stood at the last look, and since when.
    leases: BTreeMap<String, (Stamp, Instant)>,
    looked: Option<Instant>,
    /// The last lease whose writer's clock was off, and by how many milliseconds it is ahead.
    off: Option<(String, i128)>,
}

impl Observed {
    /// Looks at all leases. Returns those that have ended: they stood unchanged for the whole of their time to live, under this
    /// agent's eyes. `clock` is this host's time of day, which ends nothing; others' are compared with it.
    pub(super) fn look(&mut self, ledger: &Ledger, now: Instant, clock: Millis) -> Vec<String> {
        let young = self.looked.is_some_and(|last| now.saturating_duration_since(last) < YOUNG);
        self.looked = Some(now);
        let mut before = std::mem::take(&mut self.leases);
        let mut ended = Vec::new();
        for (key, stamp, term) in ledger.limited() {
            let (same, since) = match before.remove(key) {
                Some((last, since)) if last == stamp => (true, since),
                _ => (false, now),
            };
            if !same && young {
                let written = i128::from(term.expires) - i128::from(term.life);
                self.compare(key, written - i128::from(clock));
            }
            if same && now.saturating_duration_since(since) >= Duration::from_millis(term.life) {
                ended.push(key.to_owned());
            } else {
                self.leases.insert(key.to_owned(), (stamp, since));
            }
        }
        ended
    }

    /// Takes in by how many milliseconds the clock of a lease's writer was ahead of this host's when it wrote.
    fn compare(&mut self, key: &str, ahead: i128) {
        if ahead.unsigned_abs() >= TOLERATED.as_millis() {
            self.off = Some((key.to_owned(), ahead));
        } else if self.off.as_ref().is_some_and(|(off, _)| off == key) {
            self.off = None;
        }
    }

    /// Which host's clock does not agree with this one's, if one does not.
    pub(super) fn remark(&self) -> Option<String> {
        let (key, ahead) = self.off.as_ref()?;
        let minutes = (ahead.unsigned_abs() + 30_000) / 60_000;
        let span =
            if minutes < 120 { format!("{minutes} min") } else { format!("{} h", (minutes + 30) / 60) };
        let side = if *ahead > 0 { "ahead of" } else { "behind" };
        Some(format!(
            "the clock of the host that holds lease {key} is {span} {side} this host's: leases do not depend on it, but let \
             NTP set both"
        ))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::{Revision, ledger::Term};

    const LIFE: Millis = 60_000;
    /// 2026-01-01.
    const CLOCK: Millis = 1_767_225_600_000;

    fn written(clock: Millis) -> Option<Term> {
        Some(Term { expires: clock + LIFE, life: LIFE })
    }

    #[test]
    fn a_lease_ends_when_it_stood_unchanged_for_its_whole_life_whatever_clocks_say() {
        let (mut ledger, mut observed, start) = (Ledger::new(7), Observed::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        // One clock is a day behind, so that its lease has ended before it began; one is a day ahead.
        let day = 24 * 60 * 60 * 1000;
        let behind = ledger.put("behind", Bytes::new(), written(CLOCK - day));
        ledger.put("ahead", Bytes::new(), written(CLOCK + day));
        ledger.put("reserved", Bytes::new(), None);
        assert!(observed.look(&ledger, at(0), CLOCK).is_empty());
        // This host's clock may jump, too.
        assert!(observed.look(&ledger, at(59), CLOCK + 10 * day).is_empty());
        ledger.prolong("behind", behind, written(CLOCK - day));
        assert_eq!(observed.look(&ledger, at(60), CLOCK), ["ahead"]);
        ledger.delete(["ahead".to_owned()]);
        assert!(observed.look(&ledger, at(119), CLOCK).is_empty());
        assert_eq!(observed.look(&ledger, at(120), CLOCK), ["behind"]);
        assert!(ledger.tally(&["reserved"]).entries[0].is_some());
    }

    #[test]
    fn only_what_was_just_written_tells_of_a_clock() {
        let (mut ledger, mut observed, start) = (Ledger::new(7), Observed::default(), Instant::now());
        let hour = 60 * 60 * 1000;
        let mut look = |ledger: &Ledger, seconds| {
            assert!(observed.look(ledger, start + Duration::from_secs(seconds), CLOCK).is_empty());
            observed.remark()
        };
        // Nobody knows how old it is.
        let one = ledger.put("one", Bytes::new(), written(CLOCK - hour));
        assert_eq!(look(&ledger, 0), None);
        ledger.put("two", Bytes::new(), written(CLOCK + 25 * hour));
        let remark = look(&ledger, 1).unwrap();
        assert!(remark.contains("lease two is 25 h ahead of this host's"), "{remark}");
        ledger.prolong("one", one, written(CLOCK - hour / 2));
        let remark = look(&ledger, 2).unwrap();
        assert!(remark.contains("lease one is 30 min behind this host's"), "{remark}");
        // The clock is set, and the next renewal shows it.
        assert_eq!(
            ledger.prolong("one", one, written(CLOCK + 1000)),
            crate::store::Written::At(Revision(one.0))
        );
        assert_eq!(look(&ledger, 3), None);
        // After a long time without a look, a change may be old.
        ledger.prolong("one", one, written(CLOCK - hour));
        assert_eq!(look(&ledger, 40), None);
    }
}
