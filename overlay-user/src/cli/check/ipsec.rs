//! Finds IPsec policies that the fast path bypasses.
use super::finding::{Finding, Level};
use crate::{
    host::{
        ipsec::{Traffic, matching},
        netlink::{
            NetlinkError,
            xfrm::{self, Policy},
        },
    },
    model::fast_path::FastPath,
};

/// Looks at the policies of this thread's network namespace.
pub(super) fn finding(traffic: &Traffic, fast_path: FastPath) -> Finding {
    judge(xfrm::policies(), traffic, fast_path)
}

fn judge(policies: Result<Vec<Policy>, NetlinkError>, traffic: &Traffic, fast_path: FastPath) -> Finding {
    let what = "IPsec policies";
    let policies = match policies {
        Ok(policies) => policies,
        Err(error) => {
            let remedy = "run this as root; if it is, run `ip xfrm policy list` by hand";
            return Finding::new(what, Level::Warn, format!("not inspected: {error}"), remedy);
        }
    };
    let touching = matching(&policies, traffic);
    if policies.is_empty() {
        Finding::ok(what, "none")
    } else if touching.is_empty() {
        let detail =
            format!("none about packets between containers of different hosts: {}", quoted(&policies));
        Finding::ok(what, detail)
    } else if fast_path == FastPath::Off {
        Finding::ok(what, format!("obeyed: {}", quoted(&touching)))
    } else {
        Finding::new(
            what,
            Level::Warn,
            format!("bypassed by the fast path: {}", quoted(&touching)),
            "if they are to protect what goes between these hosts, start the agent with --fast-path off",
        )
    }
}

fn quoted(policies: &[Policy]) -> String {
    let policies: Vec<String> = policies.iter().map(Policy::to_string).collect();
    policies.join("; ")
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::host::netlink::xfrm::{Action, Direction, Ports};

    const TRAFFIC: Traffic = Traffic { network: None, underlay: None, port: 8472 };

    fn policy(destination: &str) -> Policy {
        Policy {
            direction: Direction::Out,
            source: "10.99.0.1/32".parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: 17,
            source_ports: Ports::ALL,
            destination_ports: Ports { value: 8472, mask: u16::MAX },
            action: Action::Allow,
            has_templates: true,
            mark: 0,
            interface: 0,
            is_default: false,
        }
    }

    fn judged(policies: Vec<Policy>, fast_path: FastPath) -> Finding {
        let underlay = Some("10.99.0.1".parse().unwrap());
        judge(Ok(policies), &Traffic { underlay, ..TRAFFIC }, fast_path)
    }

    #[test]
    fn ipsec_policies_are_quoted() {
        assert_eq!(judged(Vec::new(), FastPath::On).detail, "none");
        let ours = policy("10.99.0.2/32");
        // A policy is about packets, whoever accepted their connection.
        for fast_path in [FastPath::On, FastPath::Established] {
            let found = judged(vec![ours], fast_path);
            assert_eq!(found.level, Level::Warn);
            let quoted = "src 10.99.0.1/32 dst 10.99.0.2/32 proto udp dport 8472 dir out action allow";
            assert_eq!(found.detail, format!("bypassed by the fast path: {quoted}"));
            assert!(found.remedy.contains("--fast-path off"), "{}", found.remedy);
        }
        assert_eq!(judged(vec![ours], FastPath::Off).level, Level::Ok);
    }

    #[test]
    fn policies_about_something_else_are_no_worry() {
        let others = Policy { source: "192.168.0.0/16".parse().unwrap(), ..policy("10.99.0.2/32") };
        let found = judged(vec![others], FastPath::On);
        assert!(found.level == Level::Ok && found.detail.contains("src 192.168.0.0/16"), "{found:?}");
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let refused =
            NetlinkError { action: "list".into(), detail: "not permitted".into(), errno: Errno::EPERM };
        let found = judge(Err(refused), &TRAFFIC, FastPath::On);
        assert_eq!((found.level, found.detail.as_str()), (Level::Warn, "not inspected: list: not permitted"));
    }
}
