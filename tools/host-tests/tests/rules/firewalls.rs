//! The chains that firewalls, container engines and virtual machines set up, with what an operator adds to them.
use super::{
    compare::run,
    table::{
        Path::{Established, On},
        Row, row, unseen,
    },
};

#[test]
fn well_known_firewalls_hold() {
    run(ROWS);
}

const ROWS: &[Row] = &[
    row(
        "libvirt: LIBVIRT_FWI and its kin",
        Established,
        "for chain in FWX FWI FWO; do iptables-nft -N LIBVIRT_$chain; iptables-nft -A FORWARD -j LIBVIRT_$chain; done
         iptables-nft -A LIBVIRT_FWI -d $a -i overlay0 -o br0 -p udp -j REJECT --reject-with icmp-port-unreachable
         iptables-nft -A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
         iptables-nft -A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable
         iptables-nft -A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT
         iptables-nft -A LIBVIRT_FWO -i virbr0 -j REJECT --reject-with icmp-port-unreachable
         iptables-nft -A LIBVIRT_FWX -i virbr0 -o virbr0 -j ACCEPT",
    ),
    unseen(
        "libvirt: without anything of the overlay's",
        Established,
        "for chain in FWX FWI FWO; do iptables-legacy -N LIBVIRT_$chain; iptables-legacy -A FORWARD -j LIBVIRT_$chain; done
         iptables-legacy -A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
         iptables-legacy -A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable
         iptables-legacy -A LIBVIRT_FWO -i virbr0 -j REJECT --reject-with icmp-port-unreachable
         iptables-legacy -A LIBVIRT_FWX -i virbr0 -o virbr0 -j ACCEPT",
    ),
    Row {
        ready: "iptables-nft-save | grep overlay-forward",
        ..row(
            "ufw: a port in ufw-user-forward",
            Established,
            "for chain in ufw-before-forward ufw-user-forward ufw-after-forward ufw-reject-forward; do iptables-nft -N $chain; done
             iptables-nft -P FORWARD DROP
             iptables-nft -A FORWARD -j ufw-before-forward
             iptables-nft -A FORWARD -j ufw-after-forward
             iptables-nft -A FORWARD -j ufw-reject-forward
             iptables-nft -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
             iptables-nft -A ufw-before-forward -p icmp --icmp-type destination-unreachable -j ACCEPT
             iptables-nft -A ufw-before-forward -p icmp --icmp-type echo-request -j ACCEPT
             iptables-nft -A ufw-before-forward -j ufw-user-forward
             iptables-nft -A ufw-user-forward -d $b -p tcp --dport 8081 -j DROP
             iptables-nft -A ufw-user-forward -s $b -p udp -j REJECT",
        )
    },
    Row {
        ready: "iptables-nft-save | grep overlay-forward",
        ..row(
            "docker: DOCKER-USER and DOCKER-ISOLATION",
            Established,
            "for chain in DOCKER DOCKER-USER DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2; do iptables-nft -N $chain; done
             iptables-nft -P FORWARD DROP
             iptables-nft -A FORWARD -j DOCKER-USER
             iptables-nft -A FORWARD -j DOCKER-ISOLATION-STAGE-1
             iptables-nft -A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
             iptables-nft -A FORWARD -o br0 -j DOCKER
             iptables-nft -A FORWARD -i br0 ! -o br0 -j ACCEPT
             iptables-nft -A FORWARD -i br0 -o br0 -j ACCEPT
             iptables-nft -A DOCKER-ISOLATION-STAGE-1 -i br0 ! -o br0 -j DOCKER-ISOLATION-STAGE-2
             iptables-nft -A DOCKER-ISOLATION-STAGE-1 -j RETURN
             iptables-nft -A DOCKER-ISOLATION-STAGE-2 -o docker1 -j DROP
             iptables-nft -A DOCKER-ISOLATION-STAGE-2 -j RETURN
             iptables-nft -A DOCKER-USER -i overlay0 -d $a -p tcp --dport 8081 -j DROP
             iptables-nft -A DOCKER-USER -j RETURN
             iptables-nft -t nat -N DOCKER
             iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
             iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        )
    },
    Row {
        ready: "iptables-nft-save | grep overlay-forward",
        ..unseen(
            "docker: as it comes",
            On,
            "for chain in DOCKER DOCKER-USER DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2; do iptables-nft -N $chain; done
             iptables-nft -P FORWARD DROP
             iptables-nft -A FORWARD -j DOCKER-USER
             iptables-nft -A FORWARD -j DOCKER-ISOLATION-STAGE-1
             iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
             iptables-nft -A FORWARD -o docker0 -j DOCKER
             iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
             iptables-nft -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
             iptables-nft -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
             iptables-nft -A DOCKER-USER -j RETURN
             iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        )
    },
    row(
        "docker: isolation of the overlay's own bridge",
        Established,
        "iptables-legacy -N DOCKER-ISOLATION-STAGE-1; iptables-legacy -N DOCKER-ISOLATION-STAGE-2
         iptables-legacy -A FORWARD -j DOCKER-ISOLATION-STAGE-1
         iptables-legacy -A DOCKER-ISOLATION-STAGE-1 -i br0 ! -o br0 -j DOCKER-ISOLATION-STAGE-2
         iptables-legacy -A DOCKER-ISOLATION-STAGE-2 -o overlay0 -j DROP",
    ),
    row(
        "firewalld: a zone with one open port",
        Established,
        "table inet firewalld {
            chain filter_FORWARD {
                type filter hook forward priority filter + 10; policy accept;
                ct state { established, related } accept
                ct status dnat accept
                iifname lo accept
                ct state invalid drop
                jump filter_FORWARD_ZONES
                reject with icmpx type admin-prohibited
            }
            chain filter_FORWARD_ZONES {
                iifname br0 goto filter_FWD_public
                goto filter_FWD_trusted
            }
            chain filter_FWD_trusted { accept; }
            chain filter_FWD_public {
                jump filter_FWD_public_allow
                meta l4proto { icmp, ipv6-icmp } accept
                reject with icmpx type admin-prohibited
            }
            chain filter_FWD_public_allow {
                tcp dport 8080 ct state { new, untracked } accept
                udp dport { 8080, 9000 } ct state { new, untracked } accept
            }
            chain nat_PREROUTING { type nat hook prerouting priority dstnat + 10; policy accept; }
            chain nat_POSTROUTING { type nat hook postrouting priority srcnat + 10; policy accept; }
        }",
    ),
    row(
        "firewalld: an INPUT chain that refuses the tunnel",
        Established,
        "table inet firewalld {
            chain filter_INPUT {
                type filter hook input priority filter + 10; policy accept;
                ct state { established, related } accept
                iifname lo accept
                ct state invalid drop
                tcp dport 22 accept
                reject with icmpx type admin-prohibited
            }
        }",
    ),
    row(
        "kube-proxy: a service, and marks for masquerading",
        Established,
        "iptables-nft -t nat -N KUBE-SERVICES; iptables-nft -t nat -N KUBE-SVC; iptables-nft -t nat -N KUBE-SEP
         iptables-nft -t nat -N KUBE-MARK-MASQ; iptables-nft -t nat -N KUBE-POSTROUTING
         iptables-nft -N KUBE-FORWARD
         iptables-nft -t nat -A PREROUTING -j KUBE-SERVICES
         iptables-nft -t nat -A OUTPUT -j KUBE-SERVICES
         iptables-nft -t nat -A POSTROUTING -j KUBE-POSTROUTING
         iptables-nft -t nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
         iptables-nft -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
         iptables-nft -t nat -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
         iptables-nft -t nat -A KUBE-POSTROUTING -j MASQUERADE
         iptables-nft -t nat -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 80 -j KUBE-SVC
         iptables-nft -t nat -A KUBE-SERVICES -d 10.96.0.10/32 -p udp --dport 80 -j KUBE-SVC
         iptables-nft -t nat -A KUBE-SVC ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ
         iptables-nft -t nat -A KUBE-SVC -j KUBE-SEP
         iptables-nft -t nat -A KUBE-SEP -p tcp -j DNAT --to-destination $b:8080
         iptables-nft -t nat -A KUBE-SEP -p udp -j DNAT --to-destination $b:8080
         iptables-nft -A FORWARD -j KUBE-FORWARD
         iptables-nft -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
         iptables-nft -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
         iptables-nft -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ),
    row(
        "a network policy: a chain for each container",
        Established,
        "table ip policies {
            chain container_a { ip saddr $b tcp dport 8080 accept; ip saddr $b ip protocol icmp accept; drop; }
            chain c {
                type filter hook forward priority 0; policy accept;
                ct state established,related accept
                ip daddr vmap { $a : goto container_a }
            }
        }",
    ),
];
