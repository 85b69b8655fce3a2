//! Says what of the host's packet filter concerns packets between containers, and whether it is obeyed.
use super::finding::{Finding, Level};
use crate::{
    host::firewall::analysis::Harm,
    model::fast_path::{AskedFastPath, FastPath},
};

/// Judges what could refuse, alter or delay packets between containers by what `--fast-path` makes of it. `harms` are sorted, the
/// worst first.
pub(super) fn finding(asked: AskedFastPath, harms: &[Harm<String>]) -> Finding {
    let what = "rules between containers";
    let Some(worst) = harms.first() else {
        return Finding::ok(
            what,
            "none that could refuse or alter packets: the fast path may carry all of them",
        );
    };
    let quoted = |of: &dyn Fn(&Harm<String>) -> bool| {
        let texts: Vec<&str> = harms.iter().filter(|harm| of(harm)).map(|harm| harm.quote.as_str()).collect();
        texts.join("; ")
    };
    let all = quoted(&|_| true);
    let bypassed = |rules: String, remedy: &str| {
        Finding::new(what, Level::Warn, format!("bypassed by the fast path: {rules}"), remedy)
    };
    match (asked, worst.at_most) {
        (AskedFastPath::Auto, at_most) => {
            let detail =
                format!("--fast-path auto obeys them, and so it is {at_most} while they are there: {all}");
            Finding::ok(what, detail)
        }
        (AskedFastPath::On, _) => bypassed(
            all,
            "if these must hold between containers of different hosts, start the agent with --fast-path auto, which obeys them",
        ),
        (AskedFastPath::Established, FastPath::Off) => bypassed(
            quoted(&|harm| harm.at_most == FastPath::Off),
            "these decide on single packets, also of connections that were accepted: start the agent with --fast-path auto, which \
             obeys them",
        ),
        (AskedFastPath::Established, _) => {
            Finding::ok(what, format!("they decide on each connection: {all}"))
        }
        (AskedFastPath::Off, _) => Finding::ok(what, format!("they decide on each packet: {all}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::firewall::analysis::Kind;

    #[test]
    fn what_is_obeyed_is_no_worry() {
        let harm = |at_most, quote: &str| Harm { at_most, kind: Kind::Other, quote: quote.to_owned() };
        let connections = [harm(FastPath::Established, "drop what C sends")];
        let packets = [harm(FastPath::Off, "limit 1/s"), harm(FastPath::Established, "drop what C sends")];
        for asked in [AskedFastPath::Auto, AskedFastPath::On, AskedFastPath::Established, AskedFastPath::Off]
        {
            assert_eq!(finding(asked, &[]).level, Level::Ok);
            let found = finding(asked, &connections);
            let is_bypassed = asked == AskedFastPath::On;
            assert_eq!(found.level == Level::Warn, is_bypassed, "{found:?}");
            assert!(found.detail.contains("drop what C sends"), "{found:?}");
            assert_eq!(found.remedy.contains("--fast-path auto"), is_bypassed, "{found:?}");
        }
        let found = finding(AskedFastPath::Established, &packets);
        assert_eq!(
            (found.level, found.detail.as_str()),
            (Level::Warn, "bypassed by the fast path: limit 1/s")
        );
        assert!(finding(AskedFastPath::Auto, &packets).detail.contains("so it is off while"));
    }
}
