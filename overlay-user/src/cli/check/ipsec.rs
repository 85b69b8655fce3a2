//! Says which IPsec policies are about packets between containers, and so leave nothing to the fast path.
use super::finding::{Finding, Level};
use crate::host::{
    ipsec::matching,
    netlink::{
        NetlinkError,
        xfrm::{self, Policy},
    },
    site::Site,
};

/// Looks at the policies of this thread's network namespace.
pub(super) fn finding(site: &Site) -> Finding {
    judge(xfrm::policies(), site)
}

fn judge(policies: Result<Vec<Policy>, NetlinkError>, site: &Site) -> Finding {
    let what = "IPsec policies";
    let policies = match policies {
        Ok(policies) => policies,
        Err(error) => {
            let remedy = "run this as root; if it is, run `ip xfrm policy list` by hand";
            return Finding::new(what, Level::Warn, format!("not inspected: {error}"), remedy);
        }
    };
    let touching = matching(&policies, site);
    let detail = if policies.is_empty() {
        "none".to_owned()
    } else if touching.is_empty() {
        format!("none about packets between containers of different hosts: {}", quoted(&policies))
    } else {
        format!("obeyed, and so the fast path is off while they are there: {}", quoted(&touching))
    };
    Finding::ok(what, detail)
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

    fn policy(source: &str) -> Policy {
        Policy {
            direction: Direction::Out,
            source: source.parse().unwrap(),
            destination: "10.99.0.2/32".parse().unwrap(),
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

    #[test]
    fn ipsec_policies_are_quoted() {
        let site = Site { network: None, ..Site::example() };
        let judged = |policies| judge(Ok(policies), &site).detail;
        assert_eq!(judged(Vec::new()), "none");
        let (ours, others) = (policy("10.99.0.1/32"), policy("192.168.0.0/16"));
        assert_eq!(
            judged(vec![others, ours]),
            "obeyed, and so the fast path is off while they are there: src 10.99.0.1/32 dst 10.99.0.2/32 proto udp dport 8472 dir \
             out action allow"
        );
        let found = judged(vec![others]);
        assert!(found.starts_with("none about") && found.contains("src 192.168.0.0/16"), "{found}");
        let refused =
            NetlinkError { action: "list".into(), detail: "not permitted".into(), errno: Errno::EPERM };
        let found = judge(Err(refused), &site);
        assert_eq!((found.level, found.detail.as_str()), (Level::Warn, "not inspected: list: not permitted"));
    }
}
