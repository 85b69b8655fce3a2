//! Rules of nftables: every family and hook, sets, maps, jumps, and statements about single packets.
use super::{
    compare::run,
    table::{
        Path::{Established, Off, On},
        Row, row, tracked, unseen,
    },
};

#[test]
fn filters_of_nftables_hold_in_every_hook() {
    run(HOOKS);
}

#[test]
fn sets_maps_and_chains_of_nftables_hold() {
    run(EXPRESSIONS);
}

#[test]
fn rules_of_nftables_about_single_packets_hold() {
    run(PACKETS);
}

/// Rules that decide on connections, in every family and hook.
const HOOKS: &[Row] = &[
    row(
        "ip forward",
        Established,
        "table ip t { chain c { type filter hook forward priority 0; meta l4proto { tcp, udp } th dport 8081 drop; }; }",
    ),
    row(
        "ip forward, behind everything else",
        Established,
        "table ip t { chain c { type filter hook forward priority 400; ip daddr $b udp dport 8081 drop; }; }",
    ),
    row(
        "ip forward, an accept of one chain and a drop of the next",
        Established,
        "table ip t { chain c { type filter hook forward priority -10; accept; }; }
         table ip u { chain c { type filter hook forward priority 10; ip saddr $b tcp dport 8080 drop; }; }",
    ),
    row(
        "ip prerouting, before connection tracking",
        Established,
        "table ip t { chain c { type filter hook prerouting priority -300; udp dport 8081 drop; }; }",
    ),
    row(
        "ip prerouting of the tunnel's packets",
        Established,
        "table ip t { chain c { type filter hook prerouting priority -150; ip saddr $h2 udp dport 8472 drop; }; }",
    ),
    row(
        "ip postrouting",
        Established,
        "table ip t { chain c { type filter hook postrouting priority 0; oifname overlay0 tcp dport 8081 drop; }; }",
    ),
    row(
        "ip input of the tunnel's packets",
        Established,
        "table ip t { chain c { type filter hook input priority 0; udp dport 8472 drop; }; }",
    ),
    row(
        "ip output of the tunnel's packets",
        Off,
        "table ip t { chain c { type filter hook output priority 0; udp dport 8472 drop; }; }",
    ),
    unseen(
        "ip input, nothing of the tunnel's",
        On,
        "table ip t { chain c { type filter hook input priority 0; tcp dport { 22, 80 } drop; }; }",
    ),
    row(
        "inet forward",
        Established,
        "table inet t { chain c { type filter hook forward priority filter; ip daddr $a udp dport 8080 drop; }; }",
    ),
    row(
        "inet prerouting",
        Established,
        "table inet t { chain c { type filter hook prerouting priority raw; meta l4proto icmp ip saddr $a drop; }; }",
    ),
    row(
        "inet ingress of a container's interface",
        Established,
        "table inet t { chain c { type filter hook ingress device va priority 0; udp dport 8081 drop; }; }",
    ),
    row(
        "netdev ingress of a container's interface",
        Established,
        "table netdev t { chain c { type filter hook ingress device va priority 0; ip daddr $b udp dport 8081 drop; }; }",
    ),
    row(
        "netdev ingress of the bridge",
        Established,
        "table netdev t { chain c { type filter hook ingress device br0 priority 0; tcp dport 8081 drop; }; }",
    ),
    row(
        "netdev ingress of the tunnel's device",
        Established,
        "table netdev t { chain c { type filter hook ingress device overlay0 priority 0; udp dport 8080 drop; }; }",
    ),
    row(
        "netdev ingress of the underlay's device",
        Established,
        "table netdev t { chain c { type filter hook ingress device eth0 priority 0; udp dport 8472 drop; }; }",
    ),
    row(
        "netdev egress of a container's interface",
        Established,
        "table netdev t { chain c { type filter hook egress device va priority 0; udp dport 8080 drop; }; }",
    ),
    row(
        "netdev egress of the bridge",
        Established,
        "table netdev t { chain c { type filter hook egress device br0 priority 0; tcp dport 8080 drop; }; }",
    ),
    row(
        "netdev egress of the tunnel's device",
        Established,
        "table netdev t { chain c { type filter hook egress device overlay0 priority 0; udp dport 8081 drop; }; }",
    ),
    row(
        "netdev egress of the underlay's device",
        Off,
        "table netdev t { chain c { type filter hook egress device eth0 priority 0; udp dport 8472 drop; }; }",
    ),
    unseen(
        "netdev ingress of the other container's interface",
        Established,
        "table netdev t { chain c { type filter hook ingress device vb priority 0; udp dport 8081 drop; }; }",
    ),
    row(
        "bridge prerouting",
        Established,
        "table bridge t { chain c { type filter hook prerouting priority 0; ip daddr $b udp dport 8081 drop; }; }",
    ),
    row(
        "bridge input",
        Established,
        "table bridge t { chain c { type filter hook input priority 0; ip saddr $a tcp dport 8081 drop; }; }",
    ),
    row(
        "bridge output",
        Established,
        "table bridge t { chain c { type filter hook output priority 0; ip daddr $a udp dport 8080 drop; }; }",
    ),
    row(
        "bridge postrouting",
        Established,
        "table bridge t { chain c { type filter hook postrouting priority 0; oifname va ip protocol icmp drop; }; }",
    ),
    unseen(
        "bridge forward",
        On,
        "table bridge t { chain c { type filter hook forward priority 0; drop; }; }",
    ),
    unseen(
        "arp",
        On,
        "table arp t { chain c { type filter hook input priority 0; arp operation 9 drop; }; }",
    ),
    unseen("ip6", On, "table ip6 t { chain c { type filter hook forward priority 0; policy drop; }; }"),
    Row {
        second: "table ip t { chain c { type filter hook forward priority 0; meta l4proto { tcp, udp } th dport 8081 reject; }; }",
        ..row(
            "both hosts refuse something else",
            Established,
            "table ip t { chain c { type filter hook forward priority 0; meta l4proto { tcp, udp } th dport 8080 drop; }; }",
        )
    },
];

/// Sets, maps, jumps, verdicts, connection tracking, and translation of addresses.
const EXPRESSIONS: &[Row] = &[
    row(
        "a jump (-j u, and u drops a container)",
        Established,
        "table ip t {
            chain u { ip daddr $b drop; }
            chain c { type filter hook forward priority 0; jump u; }
        }",
    ),
    row(
        "a goto, whose chain returns to the policy",
        Established,
        "table ip t {
            chain u { udp dport 8081 return; }
            chain c { type filter hook forward priority 0; policy drop; tcp dport 1-65535 accept; icmp type != 255 accept;
                      udp dport 8081 goto u; accept; }
        }",
    ),
    row(
        "an anonymous set of ports",
        Established,
        "table inet t { chain c { type filter hook forward priority 0; udp dport { 8000-8080, 9001 } drop; }; }",
    ),
    row(
        "a named set of addresses and ports",
        Established,
        "table ip t {
            set s { type ipv4_addr . inet_proto . inet_service; elements = { $b . udp . 8081, $a . tcp . 8080 }; }
            chain c { type filter hook forward priority 0; ip daddr . meta l4proto . th dport @s reject; }
        }",
    ),
    row(
        "a named set of networks",
        Established,
        "table ip t {
            set s { type ipv4_addr; flags interval; elements = { 192.0.2.0/24, 10.244.0.0/18 }; }
            chain c { type filter hook forward priority 0; ip saddr @s ip daddr $b tcp dport 8081 drop; }
        }",
    ),
    row(
        "a verdict map",
        Established,
        "table ip t { chain c { type filter hook forward priority 0; udp dport vmap { 8080 : accept, 8081 : drop }; }; }",
    ),
    row(
        "a named verdict map that jumps",
        Established,
        "table ip t {
            map m { type inet_proto : verdict; elements = { tcp : jump u, udp : goto v }; }
            chain u { tcp dport 8081 reject with tcp reset; }
            chain v { udp dport 8081 reject with icmp type admin-prohibited; }
            chain c { type filter hook forward priority 0; meta l4proto vmap @m; }
        }",
    ),
    row(
        "a verdict map by interface",
        Established,
        "table inet t {
            chain from { ip daddr $b udp dport 8081 drop; }
            chain to { ip saddr $b udp dport 8081 drop; }
            chain c { type filter hook forward priority 0; iifname vmap { br0 : jump from, overlay0 : jump to }; }
        }",
    ),
    row(
        "a policy that drops",
        Established,
        "table inet t { chain c { type filter hook forward priority 0; policy drop; ip protocol udp accept; }; }",
    ),
    Row {
        before: "table ip t { chain c { type filter hook forward priority 0; ct state established accept; }; }",
        ..tracked(
            "ct state: what is established, and new connections to one port",
            Established,
            "add rule ip t c meta l4proto { tcp, udp } th dport 8080 ct state new accept
             add rule ip t c counter reject with icmp type host-prohibited",
        )
    },
    row(
        "ct state: new connections that nobody knows of",
        Established,
        "table ip t {
            chain c { type filter hook forward priority 0; policy drop;
                ct state vmap { established : accept, related : accept, invalid : drop };
                meta l4proto { tcp, udp } th dport 8080 ct state new accept; }
        }",
    ),
    unseen(
        "ct state: invalid packets",
        Established,
        "table ip t { chain c { type filter hook forward priority 0; ct state invalid drop; }; }",
    ),
    row(
        "fib: what goes to a container",
        Established,
        "table ip t { chain c { type filter hook prerouting priority -150; fib daddr oifname overlay0 udp dport 8081 drop; }; }",
    ),
    tracked(
        "dnat from one port to another",
        Established,
        "table ip t {
            chain c { type nat hook prerouting priority -100; ip saddr $a udp dport 8081 dnat to $b:8080;
                      ip saddr $a tcp dport 8081 dnat to $b:8080; }
        }",
    ),
    row(
        "dnat by a map",
        Established,
        "table inet t {
            chain c { type nat hook prerouting priority dstnat;
                      ip daddr $a dnat ip to udp dport map { 8081 : $a . 8080, 9001 : $a . 8080 }; }
        }",
    ),
    tracked(
        "snat",
        Established,
        "table ip t { chain c { type nat hook postrouting priority 100; ip saddr $a ip daddr $b snat to $g1; }; }",
    ),
    tracked(
        "masquerade into the tunnel",
        Established,
        "table ip t { chain c { type nat hook postrouting priority 100; oifname overlay0 tcp dport 8081 masquerade; }; }",
    ),
    tracked(
        "masquerade towards a container",
        Established,
        "table inet t { chain c { type nat hook postrouting priority srcnat; ip daddr $a masquerade; }; }",
    ),
    row(
        "redirect",
        Established,
        "table ip t { chain c { type nat hook prerouting priority -100; iifname br0 udp dport 8081 redirect to :81; }; }",
    ),
    unseen(
        "masquerade of another network",
        On,
        "table ip t { chain c { type nat hook postrouting priority 100; ip saddr 192.168.1.0/24 masquerade; }; }",
    ),
    unseen(
        "counters and logs",
        On,
        "table inet t { chain c { type filter hook forward priority 0; counter; ip saddr $a counter accept; }; }",
    ),
    // What nft 1.0.6 lists in JSON leaves the flags of tables out.
    unseen(
        "a table that sleeps",
        Established,
        "table ip t { flags dormant; chain c { type filter hook forward priority 0; policy drop; }; }",
    ),
    unseen("a chain that nobody jumps to", On, "table ip t { chain c { drop; }; }"),
    unseen("empty chains", On, "table inet t { chain c { type filter hook forward priority 0; policy accept; }; }"),
];

/// Statements and expressions about single packets.
const PACKETS: &[Row] = &[
    row(
        "limit: five packets an hour",
        Off,
        "table ip t { chain c { type filter hook forward priority 0;
            udp dport 9001 limit rate 1/hour burst 5 packets accept; udp dport 9001 drop; }; }",
    ),
    row(
        "limit: what is over a rate, at ingress",
        Off,
        "table netdev t { chain c { type filter hook ingress device va priority 0;
            udp dport 9000 limit rate over 1/hour burst 7 packets drop; }; }",
    ),
    row(
        "limit: by a named object",
        Off,
        "table ip t {
            limit l { rate 1/hour burst 6 packets; }
            chain c { type filter hook forward priority 0; udp dport 9001 limit name l accept; udp dport 9001 drop; }
        }",
    ),
    row(
        "quota",
        Off,
        "table ip t { chain c { type filter hook forward priority 0; udp dport 9000 quota over 1000 bytes drop; }; }",
    ),
    row(
        "quota: by a named object",
        Off,
        "table ip t {
            quota q { over 1000 bytes; }
            chain c { type filter hook forward priority 0; udp dport 9000 quota name q drop; }
        }",
    ),
    row(
        "numgen: every third packet",
        Off,
        "table ip t { chain c { type filter hook forward priority 0; udp dport 9001 numgen inc mod 3 0 drop; }; }",
    ),
    row(
        "numgen: at random, with certainty",
        Off,
        "table ip t { chain c { type filter hook forward priority 0; udp dport 9001 numgen random mod 1 0 drop; }; }",
    ),
    row(
        "a set that packets fill, and its rate",
        Off,
        "table ip t {
            set s { type ipv4_addr; size 16; flags dynamic, timeout; timeout 1h; }
            chain c { type filter hook forward priority 0;
                udp dport 9001 update @s { ip saddr limit rate over 1/hour burst 4 packets } drop; }
        }",
    ),
    row(
        "a set that one packet fills and the next one meets",
        Off,
        "table ip t {
            set s { type inet_service; size 16; flags dynamic; }
            chain c { type filter hook forward priority 0; udp dport @s drop; udp dport 9000 add @s { udp dport }; }
        }",
    ),
    row(
        "ct count: more than two connections",
        Off,
        "table ip t {
            set s { type ipv4_addr; size 16; flags dynamic; }
            chain c { type filter hook forward priority 0;
                tcp flags & (syn | ack) == syn add @s { ip saddr ct count over 2 } reject; }
        }",
    ),
    row(
        "ct packets: from the seventh packet on",
        Off,
        "table ip t { chain c { type filter hook forward priority 0; udp dport 9001 ct original packets > 6 drop; }; }",
    ),
    row(
        "meta mark: for a later chain",
        Off,
        "table ip t {
            chain p { type filter hook prerouting priority -150; udp dport 8081 meta mark set 7; }
            chain c { type filter hook forward priority 0; meta mark 7 drop; }
        }",
    ),
    row(
        "ct mark: kept for the connection",
        Off,
        "table ip t {
            chain p { type filter hook prerouting priority -150; udp dport 8081 ct mark set 7; }
            chain c { type filter hook forward priority 0; ct mark 7 drop; }
        }",
    ),
    row(
        "a mark that steers routing",
        Off,
        "ip rule add pref 1000 fwmark 9 blackhole
         nft 'table ip t { chain c { type filter hook prerouting priority -150; udp dport 8081 meta mark set 9; }; }'",
    ),
    row(
        "a length",
        Off,
        "table ip t { chain c { type filter hook forward priority 0; ip protocol udp ip length > 500 drop; }; }",
    ),
    row(
        "tcp flags: what carries data",
        Off,
        "table ip t { chain c { type filter hook forward priority 0; iifname br0 tcp dport 8081 tcp flags & psh == psh drop; }; }",
    ),
    row(
        "ttl: one hop left",
        Off,
        "table ip t { chain c { type filter hook forward priority 0; ip protocol icmp ip ttl 1 drop; }; }",
    ),
    row(
        "dscp: pings of a class",
        Off,
        "table ip t { chain c { type filter hook forward priority 0; ip dscp cs1 drop; }; }",
    ),
    row(
        "bytes of the packet",
        Off,
        "table ip t { chain c { type filter hook forward priority 0; udp dport 8081 @th,32,16 > 500 drop; }; }",
    ),
    row(
        "a time of day",
        Off,
        "table ip t { chain c { type filter hook forward priority 0; udp dport 8081 meta time > \"2001-01-01 00:00:00\" drop; }; }",
    ),
    row(
        "ttl: set",
        Off,
        "table ip t { chain c { type filter hook forward priority 0; ip saddr $a udp dport 8080 ip ttl set 20; }; }",
    ),
    row(
        "dscp: set, behind routing",
        Off,
        "table ip t { chain c { type filter hook postrouting priority 0; ip daddr $a ip dscp set af11; }; }",
    ),
    row(
        "dscp: set in a bridge's chain",
        Off,
        "table bridge t { chain c { type filter hook input priority 0; ip saddr $a ip dscp set af12; }; }",
    ),
    row(
        "ttl: set at the ingress of a container's interface",
        Off,
        "table netdev t { chain c { type filter hook ingress device va priority 0; ip protocol icmp ip ttl set 32; }; }",
    ),
    row(
        "tcp option: the maximum segment size",
        Established,
        "table ip t { chain c { type filter hook forward priority 0; tcp flags syn tcp option maxseg size set 1000; }; }",
    ),
    row(
        "a port that is rewritten without translation",
        Off,
        "table ip t { chain c { type filter hook prerouting priority -350; ip saddr $a udp dport 8081 udp dport set 8080; }; }",
    ),
    row(
        "fwd: away at ingress",
        Off,
        "table netdev t { chain c { type filter hook ingress device va priority 0; udp dport 8081 fwd to lo; }; }",
    ),
    row(
        "the tunnel's packets: a limit",
        Off,
        "table ip t { chain c { type filter hook input priority 0;
            udp dport 8472 ip length 201 limit rate over 1/hour burst 5 packets drop; }; }",
    ),
    row(
        "the tunnel's packets: every second one of a length, at egress",
        Off,
        "table netdev t { chain c { type filter hook egress device eth0 priority 0;
            udp dport 8472 ip length 201 numgen inc mod 2 0 drop; }; }",
    ),
];
