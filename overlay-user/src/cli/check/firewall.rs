//! Finds firewall rules that break what takes the stack, and says which the fast path bypasses. The host's rules are read once,
//! by the analysis, and all advice follows from what that has found.
use ipnet::IpNet;

use super::{
    finding::{Finding, Level},
    gates, packet_filter,
};
use crate::{
    host::{
        command::Failed,
        firewall::analysis::{Harm, Kind, Unread, Why, analyse},
        site::Site,
    },
    model::fast_path::AskedFastPath,
};

/// Looks at all rules. Returns what is found, and which of them sees the frames that bridges forward.
pub(super) async fn findings(site: &Site, fast_path: AskedFastPath) -> (Vec<Finding>, Option<String>) {
    let analysis = analyse(site).await;
    let harms = analysis.harms().await;
    let mut findings = vec![packet_filter::finding(fast_path, &harms)];
    findings.extend(gates::findings(&analysis.gates().await, &analysis.variants, site.network, site.port));
    findings.extend([MASQUERADING, DIRECT_ACCESS].map(|advice| advice.finding(&harms, site.subnet)));
    findings.extend(analysis.unread.iter().map(not_inspected));
    (findings, analysis.at_bridges().await)
}

fn not_inspected(unread: &Unread) -> Finding {
    let what = unread.what;
    let (why, remedy) = match &unread.why {
        Why::Failed(error) => {
            let remedy = match error {
                Failed::Missing(_) => format!("install {what}, if rules of its kind are used on this host"),
                Failed::Unsupported(_) => "nothing, if the kernel is meant to be without".to_owned(),
                Failed::Other(_) => "run this as root; if it is, run that command by hand".to_owned(),
            };
            (error.to_string(), remedy)
        }
        Why::TooMany | Why::Strange(_) | Why::Other(_) => {
            (unread.sentence(), "look at these rules by hand: none of them is checked here".to_owned())
        }
    };
    Finding::new(&format!("{what} rules"), Level::Warn, format!("not inspected: {why}"), remedy)
}

/// What is said of the rules of one kind.
struct Advice {
    kind: Kind,
    /// What the finding is called.
    what: &'static str,
    /// What is said where there is none.
    none: &'static str,
    /// What such a rule does.
    found: &'static str,
    remedy: &'static str,
}

/// Docker's `--ip-masq` masquerades what containers send, even towards other containers.
const MASQUERADING: Advice = Advice {
    kind: Kind::Masquerading,
    what: "masquerading",
    none: "none between containers",
    found: "hides containers' addresses from other hosts",
    remedy: "let the agent masquerade (--ip-masq) instead: start dockerd with --ip-masq=false for docker0, and make networks with \
             --opt com.docker.network.bridge.enable_ip_masquerade=false",
};
/// Docker's filters against direct access (28.0) drop a packet for a container that no port publishes, or that comes in by another
/// interface than the bridge, such as overlay0.
const DIRECT_ACCESS: Advice = Advice {
    kind: Kind::DirectAccess,
    what: "docker's filters",
    none: "none between containers of different hosts",
    found: "drop what takes the stack to containers",
    remedy: "start dockerd (28.2 or newer) with --allow-direct-routing, or make the network with \
             com.docker.network.bridge.trusted_host_interfaces=overlay0",
};

impl Advice {
    /// Says what to do about the rules of this kind.
    fn finding(&self, harms: &[Harm<String>], subnet: Option<IpNet>) -> Finding {
        if subnet.is_none() {
            return Finding::ok(self.what, "no subnet leased yet: nothing to look for");
        }
        match harms.iter().find(|harm| harm.kind == self.kind) {
            None => Finding::ok(self.what, self.none),
            Some(harm) => {
                Finding::new(self.what, Level::Warn, format!("{}: {}", self.found, harm.quote), self.remedy)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fast_path::FastPath;

    #[test]
    fn rules_of_dockers_are_named_with_dockers_own_remedy() {
        let harm = |kind| Harm { at_most: FastPath::Established, kind, quote: "the rule".to_owned() };
        let harms = [Kind::Other, Kind::Masquerading, Kind::DirectAccess].map(harm);
        let subnet = Some("10.244.1.0/24".parse().unwrap());
        for (advice, detail, remedy) in [
            (MASQUERADING, "hides containers' addresses", "enable_ip_masquerade=false"),
            (DIRECT_ACCESS, "drop what takes the stack", "--allow-direct-routing"),
        ] {
            let found = advice.finding(&harms, subnet);
            assert!(found.detail.starts_with(detail) && found.detail.ends_with("the rule"), "{found:?}");
            assert!(found.level == Level::Warn && found.remedy.contains(remedy), "{found:?}");
            assert_eq!(advice.finding(&harms[..1], subnet).level, Level::Ok);
            assert_eq!(advice.finding(&harms, None).level, Level::Ok);
        }
    }

    #[test]
    fn what_is_not_inspected_is_told_with_what_helps() {
        let unread = |why| not_inspected(&Unread { what: "nftables", why, may_be_rules: true });
        let missing = unread(Why::Failed(Failed::Missing("nft".into())));
        assert_eq!(missing.what, "nftables rules");
        assert!(missing.detail.starts_with("not inspected: there is no `nft`"), "{missing:?}");
        assert!(missing.remedy.starts_with("install nftables"), "{missing:?}");
        let many = unread(Why::TooMany);
        assert_eq!(many.detail, "not inspected: the rules of nftables are too many to be read");
        assert!(!many.remedy.is_empty());
    }
}
