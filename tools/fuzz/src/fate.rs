//! What the rules say about a case, in words.
use overlay_common::{Reason, Verdict};

use crate::rules::Fate;

impl Fate {
    /// The rule by which our host keeps the case from the container although the kernel alone might deliver it.
    pub(crate) fn dropped_by(&self) -> Option<&'static str> {
        let reasons =
            || self.decap.iter().chain(&self.receive).chain(&self.open).chain(self.again.iter().flatten());
        let dropped =
            reasons().find(|reason| matches!(reason.verdict(), Verdict::Drop) || **reason == Reason::NotIpv4);
        // Packets of stack flows pass the kernel's own UDP, which verifies the checksum that the programs do not
        // verify.
        let unverified = self.broken_outer_sum.then_some("outer UDP checksum, verified by the stack");
        dropped.map(|reason| reason.as_str()).or(unverified)
    }

    /// How many of the case's frames these rules can keep from the container.
    pub(crate) fn most_dropped(&self) -> usize {
        self.decap.len().max(self.receive.len() + self.open.len()).max(self.again.len()).max(1)
    }

    /// What the rules expect, in one word, for rows.
    pub(crate) fn verdict(&self) -> String {
        let mut words: Vec<_> =
            self.decap.iter().map(|reason| format!("decap:{}", reason.as_str())).collect();
        words.extend(self.receive.iter().map(|reason| format!("receive:{}", reason.as_str())));
        words.extend(self.open.iter().map(|reason| format!("options-or-receive:{}", reason.as_str())));
        words.extend(self.again.iter().flatten().map(|reason| format!("again:{}", reason.as_str())));
        words.extend(self.ends.iter().map(|end| end.as_str().to_owned()));
        words.join(",")
    }
}
