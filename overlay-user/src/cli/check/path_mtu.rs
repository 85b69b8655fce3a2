//! Finds routes with an MTU of their own that the fast path does not see.
use super::finding::{Finding, Level};
use crate::host::command::run;

/// Looks at the routes through the underlay device. `mtu` is the device's own.
pub(super) async fn finding(underlay: &str, mtu: u32) -> Finding {
    let words = ["-4", "route", "show", "table", "all", "dev", underlay];
    assess(&run("ip", &words, "").await.unwrap_or_default(), mtu)
}

/// bpf_fib_lookup takes a route's MTU from `ip_mtu_from_fib_result`, which knows an MTU that ICMP taught and one that is
/// locked, but not a plain one. The stack obeys a plain one, too.
fn assess(routes: &str, mtu: u32) -> Finding {
    let what = "mtu of routes";
    let unseen = |route: &&str| {
        let mut words = route.split_whitespace().skip_while(|word| *word != "mtu");
        // With `mtu lock 1400` the word after `mtu` is no number, so a locked MTU is passed over.
        words.nth(1).and_then(|value| value.parse::<u32>().ok()).is_some_and(|value| value < mtu)
    };
    let unseen: Vec<&str> = routes.lines().filter(unseen).map(str::trim).collect();
    if unseen.is_empty() {
        return Finding::ok(what, "the fast path sees them all");
    }
    Finding::new(
        what,
        Level::Warn,
        format!("not locked, so the fast path does not see it: {}", unseen.join("; ")),
        "make it `mtu lock NUMBER` (ip route change ... mtu lock ...); else that path has to answer with ICMP before \
         the host learns its mtu",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_that_is_smaller_and_not_locked_is_quoted() {
        // This is how iproute2 6.1 prints them.
        let locked = "10.8.0.0/24 via 10.99.0.7 linkdown mtu lock 1400 \n";
        let plain = "10.9.0.0/24 via 10.99.0.7 linkdown mtu 1400 \n";
        assert_eq!(assess(locked, 1500).level, Level::Ok);
        assert_eq!(assess("10.99.0.0/24 proto kernel scope link src 10.99.0.1\n", 1500).level, Level::Ok);
        assert_eq!(assess(plain, 1400).level, Level::Ok);
        let found = assess(&format!("{locked}{plain}"), 1500);
        assert_eq!(found.level, Level::Warn);
        assert!(found.detail.ends_with(": 10.9.0.0/24 via 10.99.0.7 linkdown mtu 1400"), "{found:?}");
    }
}
