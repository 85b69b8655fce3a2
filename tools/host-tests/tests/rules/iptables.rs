//! Rules of iptables in both its variants, in every table and chain, and of ebtables.
use super::{
    compare::run,
    table::{
        Path::{Established, Off, On},
        Row, row, tracked, unseen,
    },
};

#[test]
fn filters_of_iptables_hold_as_with_the_fast_path_off() {
    run(FILTER);
}

#[test]
fn the_other_tables_of_iptables_hold_as_with_the_fast_path_off() {
    run(TABLES);
}

#[test]
fn rules_of_iptables_about_single_packets_hold_as_with_the_fast_path_off() {
    run(PACKETS);
}

/// The table `filter`, where rules decide on connections.
const FILTER: &[Row] = &[
    row(
        "iptables: drop a port in FORWARD",
        Established,
        "iptables-nft -A FORWARD -p tcp --dport 8081 -j DROP
         iptables-nft -A FORWARD -p udp --dport 8081 -j DROP",
    ),
    Row {
        untold: true,
        ..row(
            "iptables-legacy: drop a port in FORWARD",
            Established,
            "iptables-legacy -A FORWARD -p tcp --dport 8081 -j DROP
             iptables-legacy -A FORWARD -p udp --dport 8081 -j DROP",
        )
    },
    Row {
        second: "iptables-nft -A FORWARD -p tcp --dport 8081 -j DROP",
        ..row("iptables: drop a port in FORWARD of the other host", On, "")
    },
    row(
        "iptables: reject UDP with port unreachable",
        Established,
        "iptables-nft -A FORWARD -p udp --dport 8081 -j REJECT",
    ),
    row(
        "iptables: reject TCP with a reset",
        Established,
        "iptables-nft -A FORWARD -p tcp --dport 8081 -j REJECT --reject-with tcp-reset",
    ),
    row(
        "iptables: reject a container with host prohibited",
        Established,
        "iptables-nft -A FORWARD -d $b -j REJECT --reject-with icmp-host-prohibited",
    ),
    row(
        "iptables-legacy: reject with admin prohibited what comes by the tunnel",
        Established,
        "iptables-legacy -A FORWARD -i overlay0 -p tcp --dport 8080 -j REJECT --reject-with icmp-admin-prohibited
         iptables-legacy -A FORWARD -i overlay0 -p udp --dport 8080 -j REJECT --reject-with icmp-admin-prohibited",
    ),
    row(
        "iptables: drop what a container sends into the tunnel",
        Established,
        "iptables-nft -A FORWARD -s $a -o overlay0 -j DROP",
    ),
    row(
        "iptables: drop everything between the bridge and the tunnel but one port",
        Established,
        "iptables-nft -A FORWARD -i br0 -o overlay0 -p udp -m multiport --ports 8080,9000,9001 -j ACCEPT
         iptables-nft -A FORWARD -i br0 -o overlay0 -j DROP",
    ),
    row(
        "iptables: an own chain drops a container (-N u; -A FORWARD -j u)",
        Established,
        "iptables-nft -N u
         iptables-nft -A FORWARD -j u
         iptables-nft -A u -d $b -j DROP",
    ),
    row(
        "iptables-legacy: an own chain drops a container (-N u; -A FORWARD -j u)",
        Established,
        "iptables-legacy -N u
         iptables-legacy -A FORWARD -j u
         iptables-legacy -A u -d $b -j DROP",
    ),
    row(
        "iptables: jumps, a goto and a return",
        Established,
        "iptables-nft -N one; iptables-nft -N two; iptables-nft -N three
         iptables-nft -A FORWARD -p udp -j one
         iptables-nft -A FORWARD -p udp --dport 8080 -j DROP
         iptables-nft -A one -p udp --dport 9001 -j RETURN
         iptables-nft -A one -g two
         iptables-nft -A one -j DROP
         iptables-nft -A two -p udp --dport 8081 -j three
         iptables-nft -A three -s $a -j DROP",
    ),
    row(
        "iptables: sources and destinations by range, by MAC address and by type of address",
        Established,
        "mac=$(ip neigh show $a dev br0 | sed 's/.*lladdr \\([0-9a-f:]*\\).*/\\1/')
         iptables-nft -A FORWARD -m iprange --src-range $a-$a -p udp --dport 8081 -j DROP
         iptables-nft -A FORWARD -m mac --mac-source $mac -p tcp --dport 8081 -j DROP
         iptables-nft -A FORWARD -m addrtype --dst-type UNICAST -p udp --dport 9001 -j DROP",
    ),
    Row {
        before: "iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ..tracked(
            "iptables: what is established, and new connections to one port",
            Established,
            "iptables-nft -A FORWARD -p tcp --dport 8080 -m conntrack --ctstate NEW -j ACCEPT
             iptables-nft -A FORWARD -p udp --dport 8080 -m conntrack --ctstate NEW -j ACCEPT
             iptables-nft -A FORWARD -s 10.244.0.0/16 -j REJECT --reject-with icmp-host-prohibited",
        )
    },
    Row {
        before: "iptables-legacy -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ..tracked(
            "iptables-legacy: what is established, and new connections from one side",
            Established,
            "iptables-legacy -A FORWARD -s $a -j ACCEPT
             iptables-legacy -A FORWARD -s $b -j DROP",
        )
    },
    unseen(
        "iptables: invalid packets are dropped",
        Established,
        "iptables-nft -A FORWARD -m conntrack --ctstate INVALID -j DROP",
    ),
    Row {
        ready: "iptables-nft-save | grep overlay-forward",
        ..unseen("iptables: a FORWARD chain that drops by its policy", On, "iptables-nft -P FORWARD DROP")
    },
    Row {
        ready: "iptables-legacy-save | grep overlay-forward",
        ..row(
            "iptables-legacy: a FORWARD chain that drops by its policy, and one container",
            Established,
            "iptables-legacy -P FORWARD DROP
             iptables-legacy -A FORWARD -s $b -p udp -j DROP",
        )
    },
    unseen(
        "iptables: rules about the host's own services",
        On,
        "iptables-nft -A INPUT -i lo -j ACCEPT
         iptables-nft -A INPUT -p tcp --dport 22 -s 192.0.2.0/24 -j ACCEPT
         iptables-nft -A INPUT -p tcp --dport 22 -j DROP",
    ),
    unseen(
        "iptables-legacy: rules about the host's own services",
        On,
        "iptables-legacy -A INPUT -p tcp --dport 22 -s 192.0.2.0/24 -j ACCEPT
         iptables-legacy -A INPUT -p tcp --dport 22 -j DROP",
    ),
    unseen(
        "iptables: rules about other networks",
        On,
        "iptables-nft -A FORWARD -s 192.0.2.0/24 -j DROP
         iptables-nft -A FORWARD -i docker0 -o docker0 -j ACCEPT",
    ),
    unseen(
        "iptables: an interface that does not exist, and may some day",
        Established,
        "iptables-nft -A FORWARD -i wlan0 -j DROP",
    ),
    unseen(
        "iptables: rules that only accept",
        On,
        "iptables-nft -A FORWARD -s $a -j ACCEPT
         iptables-nft -A FORWARD -p tcp --dport 8081 -j ACCEPT",
    ),
    row(
        "iptables: INPUT drops a peer's tunnel",
        Established,
        "iptables-nft -A INPUT -s $h2 -p udp --dport 8472 -j DROP",
    ),
    row(
        "iptables-legacy: INPUT accepts what is known and drops the rest",
        Established,
        "iptables-legacy -A INPUT -i lo -j ACCEPT
         iptables-legacy -A INPUT -p tcp -j ACCEPT
         iptables-legacy -A INPUT -j DROP",
    ),
    unseen(
        "iptables: INPUT accepts the tunnel and drops the rest",
        On,
        "iptables-nft -A INPUT -i lo -j ACCEPT
         iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
         iptables-nft -A INPUT -p udp --dport 8472 -j ACCEPT
         iptables-nft -A INPUT -p icmp -j ACCEPT
         iptables-nft -A INPUT -p tcp -j DROP",
    ),
    row(
        "iptables: OUTPUT drops the tunnel to a peer",
        Off,
        "iptables-nft -A OUTPUT -d $h2 -p udp --dport 8472 -j DROP",
    ),
    row(
        "iptables-legacy: OUTPUT rejects the tunnel to a peer",
        Off,
        "iptables-legacy -A OUTPUT -d $h2 -p udp --dport 8472 -j REJECT",
    ),
];

/// The other tables, where rules decide on connections or translate addresses.
const TABLES: &[Row] = &[
    row(
        "mangle: PREROUTING drops a port",
        Established,
        "iptables-nft -t mangle -A PREROUTING -p udp --dport 8081 -j DROP",
    ),
    row(
        "mangle, legacy: PREROUTING drops what comes by the tunnel",
        Established,
        "iptables-legacy -t mangle -A PREROUTING -i overlay0 -p tcp --dport 8081 -j DROP",
    ),
    row("mangle: FORWARD drops a container", Established, "iptables-nft -t mangle -A FORWARD -s $b -j DROP"),
    row(
        "mangle: POSTROUTING drops a port on its way into the tunnel",
        Established,
        "iptables-nft -t mangle -A POSTROUTING -o overlay0 -p udp --dport 8080 -j DROP",
    ),
    row(
        "mangle: INPUT drops the tunnel",
        Established,
        "iptables-nft -t mangle -A INPUT -p udp --dport 8472 -j DROP",
    ),
    row(
        "mangle, legacy: OUTPUT drops the tunnel",
        Off,
        "iptables-legacy -t mangle -A OUTPUT -p udp --dport 8472 -j DROP",
    ),
    row(
        "raw: PREROUTING drops a port",
        Established,
        "iptables-nft -t raw -A PREROUTING -p udp --dport 8081 -j DROP
         iptables-nft -t raw -A PREROUTING -p tcp --dport 8080 -j DROP",
    ),
    row(
        "raw, legacy: PREROUTING drops a container",
        Established,
        "iptables-legacy -t raw -A PREROUTING -s $a -j DROP",
    ),
    row("raw: OUTPUT drops the tunnel", Off, "iptables-nft -t raw -A OUTPUT -p udp --dport 8472 -j DROP"),
    row(
        "raw: PREROUTING drops the tunnel from a peer",
        Established,
        "iptables-nft -t raw -A PREROUTING -s $h2 -p udp --dport 8472 -j DROP",
    ),
    row(
        "security: FORWARD drops a port",
        Established,
        "iptables-nft -t security -A FORWARD -p udp --dport 8081 -j DROP",
    ),
    row(
        "security, legacy: FORWARD drops a port",
        Established,
        "iptables-legacy -t security -A FORWARD -p tcp --dport 8081 -j DROP",
    ),
    row(
        "security: INPUT and OUTPUT drop the tunnel",
        Off,
        "iptables-nft -t security -A INPUT -p udp --dport 8472 -j DROP
         iptables-nft -t security -A OUTPUT -p udp --dport 8472 -j DROP",
    ),
    tracked(
        "nat: DNAT from one port to another",
        Established,
        "iptables-nft -t nat -A PREROUTING -s $a -d $b -p udp --dport 8081 -j DNAT --to-destination $b:8080
         iptables-nft -t nat -A PREROUTING -s $a -d $b -p tcp --dport 8081 -j DNAT --to-destination $b:8080",
    ),
    row(
        "nat, legacy: DNAT from the own container to the other",
        Established,
        "iptables-legacy -t nat -A PREROUTING -s $b -d $a -p udp --dport 8081 -j DNAT --to-destination $a:8080",
    ),
    row(
        "nat: REDIRECT to the host",
        Established,
        "iptables-nft -t nat -A PREROUTING -s $a -d $b -p tcp --dport 8081 -j REDIRECT --to-ports 81
         iptables-nft -t nat -A PREROUTING -s $a -d $b -p udp --dport 8081 -j REDIRECT --to-ports 81",
    ),
    tracked(
        "nat: SNAT to the gateway's address",
        Established,
        "iptables-nft -t nat -A POSTROUTING -s $a -d $b -j SNAT --to-source $g1",
    ),
    tracked(
        "nat, legacy: MASQUERADE into the tunnel",
        Established,
        "iptables-legacy -t nat -A POSTROUTING -s $a -o overlay0 -j MASQUERADE",
    ),
    row(
        "nat: MASQUERADE of everything",
        Established,
        "iptables-nft -t nat -A POSTROUTING -p udp -j MASQUERADE",
    ),
    tracked(
        "nat: NETMAP of a container",
        Established,
        "iptables-nft -t nat -A POSTROUTING -s $a -d $b -p tcp -j NETMAP --to $g1/32",
    ),
    unseen(
        "nat: another network is masqueraded",
        On,
        "iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
    ),
    row(
        "nat: a service's address",
        On,
        "iptables-nft -t nat -A PREROUTING -d 10.96.0.10/32 -p tcp --dport 80 -j DNAT --to-destination $b:8080
         iptables-nft -t nat -A PREROUTING -d 10.96.0.10/32 -p udp --dport 80 -j DNAT --to-destination $b:8080",
    ),
    Row {
        second: "iptables-nft -t nat -A PREROUTING -d $h2 -p tcp --dport 8090 -j DNAT --to-destination $b:8080
         iptables-nft -t nat -A PREROUTING -d $h2 -p udp --dport 8090 -j DNAT --to-destination $b:8080",
        ..row("nat: a published port of the other host", On, "")
    },
    row(
        "raw: what is not tracked is dropped",
        Off,
        "iptables-nft -t raw -A PREROUTING -s $a -p udp --dport 8081 -j CT --notrack
         iptables-nft -A FORWARD -m conntrack --ctstate UNTRACKED -j DROP",
    ),
    row(
        "ebtables: FORWARD and INPUT drop a container",
        Off,
        "ebtables -A INPUT -p IPv4 --ip-source $a --ip-protocol udp --ip-destination-port 8081 -j DROP",
    ),
    row(
        "ebtables: OUTPUT drops what goes to a container",
        Off,
        "ebtables -A OUTPUT -p IPv4 --ip-destination $a --ip-protocol tcp --ip-destination-port 8080 -j DROP",
    ),
    row(
        "ebtables: nat PREROUTING drops by the port's name",
        Off,
        "ebtables -t nat -A PREROUTING -i va -p IPv4 --ip-destination $b --ip-protocol icmp -j DROP",
    ),
    row(
        "ebtables: nat POSTROUTING drops what leaves a port",
        Off,
        "ebtables -t nat -A POSTROUTING -o va -p IPv4 --ip-protocol udp --ip-destination-port 9000 -j DROP",
    ),
    unseen(
        "ebtables: a bridge's ports are kept apart",
        On,
        "ebtables -A FORWARD -i va -o vb -j DROP
         ebtables -A FORWARD -i vb -o va -j DROP",
    ),
];

/// Rules that decide on single packets, or change them.
const PACKETS: &[Row] = &[
    row(
        "limit: five packets an hour",
        Off,
        "iptables-nft -A FORWARD -p udp --dport 9001 -m limit --limit 1/hour --limit-burst 5 -j ACCEPT
         iptables-nft -A FORWARD -p udp --dport 9001 -j DROP",
    ),
    row(
        "limit, legacy: five answers an hour",
        Off,
        "iptables-legacy -A FORWARD -p udp --sport 9001 -m limit --limit 1/hour --limit-burst 5 -j ACCEPT
         iptables-legacy -A FORWARD -p udp --sport 9001 -j DROP",
    ),
    row(
        "hashlimit: seven packets an hour from each source",
        Off,
        "iptables-nft -A FORWARD -p udp --dport 9000 -m hashlimit --hashlimit-above 1/hour --hashlimit-burst 7 \
            --hashlimit-mode srcip --hashlimit-name h -j DROP",
    ),
    row(
        "quota",
        Off,
        "iptables-nft -A FORWARD -p udp --dport 9000 -m quota --quota 1000 -j ACCEPT
         iptables-nft -A FORWARD -p udp --dport 9000 -j DROP",
    ),
    row(
        "statistic: every third packet",
        Off,
        "iptables-nft -A FORWARD -p udp --dport 9001 -m statistic --mode nth --every 3 --packet 0 -j DROP",
    ),
    row(
        "statistic, legacy: at random, with certainty",
        Off,
        "iptables-legacy -A FORWARD -p udp --dport 9001 -m statistic --mode random --probability 1.0 -j DROP",
    ),
    row(
        "connbytes: from the seventh packet on",
        Off,
        "iptables-nft -A FORWARD -p udp --dport 9001 -m connbytes --connbytes 7 --connbytes-dir original \
            --connbytes-mode packets -j DROP",
    ),
    row(
        "connlimit: more than two connections",
        Off,
        "iptables-nft -A FORWARD -p tcp --syn -m connlimit --connlimit-above 2 -j REJECT",
    ),
    row("length: long datagrams", Off, "iptables-nft -A FORWARD -p udp -m length --length 600:1500 -j DROP"),
    row(
        "string: a word in a datagram",
        Off,
        "iptables-nft -A FORWARD -p udp -m string --algo bm --string '#2' -j DROP",
    ),
    row(
        "tcp flags: what carries data",
        Off,
        "iptables-nft -A FORWARD -i br0 -p tcp --dport 8081 --tcp-flags PSH PSH -j DROP",
    ),
    row("tcp flags: what begins a connection", Established, "iptables-nft -A FORWARD -i br0 -p tcp --dport 8081 --syn -j DROP"),
    row("ttl: pings that have one hop left", Off, "iptables-nft -A FORWARD -p icmp -m ttl --ttl-lt 2 -j DROP"),
    row("tos: pings of a class", Off, "iptables-nft -A FORWARD -p icmp -m tos --tos 0x20 -j DROP"),
    row("dscp: pings of a class", Off, "iptables-legacy -A FORWARD -p icmp -m dscp --dscp 8 -j DROP"),
    row("u32: a byte of the header", Off, "iptables-nft -A FORWARD -p icmp -m u32 --u32 '0&0xffff=0x594' -j DROP"),
    row(
        "time: since the beginning of the century",
        Off,
        "iptables-nft -A FORWARD -p udp --dport 8081 -m time --datestart 2001-01-01 -j DROP",
    ),
    row(
        "recent: more than four packets of a source",
        Off,
        "iptables-nft -A FORWARD -p udp --dport 9001 -m recent --name r --update --seconds 3600 --hitcount 5 -j DROP
         iptables-nft -A FORWARD -p udp --dport 9001 -m recent --name r --set",
    ),
    row(
        "MARK: a mark that a later rule refuses",
        Off,
        "iptables-nft -t mangle -A PREROUTING -p udp --dport 8081 -j MARK --set-mark 7
         iptables-nft -A FORWARD -m mark --mark 7 -j DROP",
    ),
    row(
        "CONNMARK, legacy: a mark that is restored",
        Off,
        "iptables-legacy -t mangle -A PREROUTING -p udp --dport 8081 -j CONNMARK --set-mark 7
         iptables-legacy -t mangle -A PREROUTING -j CONNMARK --restore-mark
         iptables-legacy -A FORWARD -m mark --mark 7 -j DROP",
    ),
    row(
        "MARK: a mark that steers routing",
        Off,
        "iptables-nft -t mangle -A PREROUTING -s $a -p udp --dport 8081 -j MARK --set-mark 9
         ip rule add pref 1000 fwmark 9 blackhole",
    ),
    row(
        "MARK, legacy: a mark that steers into a table of routes",
        Off,
        "iptables-legacy -t mangle -A PREROUTING -s $a -p tcp --dport 8081 -j MARK --set-mark 9
         ip route add blackhole default table 100
         ip rule add pref 1000 fwmark 9 lookup 100",
    ),
    row("TTL: set before routing", Off, "iptables-nft -t mangle -A PREROUTING -s $a -p udp -j TTL --ttl-set 20"),
    row(
        "TTL, legacy: reduced behind routing",
        Off,
        "iptables-legacy -t mangle -A POSTROUTING -d $a -p icmp -j TTL --ttl-dec 8",
    ),
    row("DSCP: set", Off, "iptables-nft -t mangle -A FORWARD -s $a -p udp --dport 8080 -j DSCP --set-dscp 10"),
    row("TOS, legacy: set", Off, "iptables-legacy -t mangle -A FORWARD -d $a -p tcp -j TOS --set-tos 0x10"),
    row(
        "TCPMSS: set",
        Established,
        "iptables-nft -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000",
    ),
    unseen(
        "DSCP: set on the tunnel's packets",
        Off,
        "iptables-nft -t mangle -A OUTPUT -p udp --dport 8472 -j DSCP --set-dscp 10",
    ),
    row(
        "limit: the tunnel's packets of one length",
        Off,
        "iptables-nft -A INPUT -p udp --dport 8472 -m length --length 201 -m limit --limit 1/hour --limit-burst 5 -j ACCEPT
         iptables-nft -A INPUT -p udp --dport 8472 -m length --length 201 -j DROP",
    ),
    row(
        "quota: the tunnel's packets of one length, in OUTPUT",
        Off,
        "iptables-nft -A OUTPUT -p udp --dport 8472 -m length --length 201 -m quota --quota 1000 -j ACCEPT
         iptables-nft -A OUTPUT -p udp --dport 8472 -m length --length 201 -j DROP",
    ),
    row(
        "ebtables: a limit",
        Off,
        "ebtables -A INPUT -p IPv4 --ip-protocol udp --ip-destination-port 9000 --limit 1/hour --limit-burst 5 -j ACCEPT
         ebtables -A INPUT -p IPv4 --ip-protocol udp --ip-destination-port 9000 -j DROP",
    ),
];
