//! What the extensions of iptables ask and do, by their names, as far as the analysis distinguishes them. ebtables' are named
//! alike.
use super::rules::Action;

/// Matches whose answer is equal for all packets of one connection in one direction, whatever their options are.
/// [`super::iptables`] knows the options of some of them better. Every other match may vary.
const FIXED: [&str; 30] = [
    "addrtype",
    "ah",
    "cgroup",
    "comment",
    "conntrack",
    "dccp",
    "devgroup",
    "dst",
    "esp",
    "helper",
    "icmp",
    "icmp6",
    "ip",
    "iprange",
    "mac",
    "multiport",
    "owner",
    "physdev",
    "pkttype",
    "policy",
    "realm",
    "rpfilter",
    "sctp",
    "socket",
    "src",
    "state",
    "tcp",
    "udp",
    "udplite",
    "vlan",
];

/// Whether a match always answers alike for the packets of one connection in one direction.
pub(super) fn is_fixed(name: &str) -> bool {
    FIXED.contains(&name)
}

/// Whether a match of which only the name is known always answers so: it has no option that asks something else.
pub(super) fn is_fixed_whatever_it_asks(name: &str) -> bool {
    is_fixed(name) && !["tcp", "conntrack", "dccp", "sctp", "ip"].contains(&name)
}

/// What a target does that is no chain of the table. A target that is not known is taken for one that alters packets.
pub(super) fn action(target: &str) -> Action {
    match target {
        "ACCEPT" | "accept" => Action::Accept,
        "RETURN" => Action::Return,
        "DROP" | "REJECT" | "drop" => Action::Refuse,
        // Translated connections never take the fast path, and the segment size is limited in packets with SYN.
        "DNAT" | "SNAT" | "REDIRECT" | "NETMAP" | "TCPMSS" | "dnat" | "snat" | "redirect" => {
            Action::Translate
        }
        "MASQUERADE" => Action::Masquerade,
        // These take notes. (SET adds to a set, and a rule that asks for the set is judged where it stands.)
        "AUDIT" | "CHECKSUM" | "CONTINUE" | "LED" | "LOG" | "NFLOG" | "RATEEST" | "SET" | "TRACE"
        | "ULOG" | "log" | "nflog" => Action::Continue,
        _ => Action::Alter,
    }
}
