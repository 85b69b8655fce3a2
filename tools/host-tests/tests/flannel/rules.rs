//! flannel's rules in a host's packet filter, as it makes them with `--ip-masq` and for forwarding (flannel
//! pkg/trafficmngr).
use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use overlay_lab::{Host, Namespace};

pub const NETWORK: &str = "10.244.0.0/16";

/// The interface of the packet filter by which flannel writes its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Iptables(&'static str),
    Nftables,
}

/// Writes flannel's rules, among rules of others.
pub fn write(host: &Host, by: By, subnet: &str) {
    match by {
        By::Iptables(variant) => iptables(host, variant, subnet),
        By::Nftables => nftables(host, subnet),
    }
}

/// Drops packets that connection tracking finds invalid, as it does when it has not seen all of a connection.
pub fn drop_invalid(host: &Host) {
    let script = "table ip strict {\n\
           chain forward {\n\
             type filter hook forward priority filter; policy accept;\n\
             ct state invalid counter drop\n\
           }\n\
         }\n";
    fed(host.namespace(), &["nft", "-f", "-"], script);
}

/// All rules of a host, without counters and without the time at which they were listed.
pub fn shown(host: &Host) -> String {
    let saved = ["iptables-nft-save", "iptables-legacy-save"].map(|save| host.exec(save).unwrap());
    let saved = saved.concat();
    // `:FORWARD ACCEPT [7:420]` loses its counters.
    let lines = saved.lines().map(|line| line.split(" [").next().unwrap_or_default());
    let saved: Vec<_> = lines.filter(|line| !line.starts_with('#')).collect();
    let tables = host.exec("nft list tables ip").unwrap();
    // The tables of iptables-nft are left out, because they are among the saved rules.
    let mut tables: Vec<_> =
        tables.lines().filter(|table| !["table ip nat", "table ip filter"].contains(table)).collect();
    tables.sort_unstable();
    let listed = tables.iter().map(|table| host.exec(&format!("nft -s list {table}")).unwrap());
    format!("{}\n{}", saved.join("\n"), listed.collect::<String>())
}

fn iptables(host: &Host, variant: &str, subnet: &str) {
    let masq = "-m comment --comment \"flanneld masq\"";
    let forward = "-m comment --comment \"flanneld forward\"";
    let script = format!(
        "*nat\n\
         :FLANNEL-POSTRTG - [0:0]\n\
         -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n\
         -A POSTROUTING {masq} -j FLANNEL-POSTRTG\n\
         -A POSTROUTING -s 192.0.2.0/24 -j RETURN\n\
         -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {subnet} -d {NETWORK} {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {NETWORK} -d {subnet} {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG ! -s {NETWORK} -d {subnet} {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {NETWORK} ! -d 224.0.0.0/4 {masq} -j MASQUERADE --random-fully\n\
         -A FLANNEL-POSTRTG ! -s {NETWORK} -d {NETWORK} {masq} -j MASQUERADE --random-fully\n\
         COMMIT\n\
         *filter\n\
         :FLANNEL-FWD - [0:0]\n\
         -A FORWARD -i docker0 -j ACCEPT\n\
         -A FORWARD {forward} -j FLANNEL-FWD\n\
         -A FLANNEL-FWD -s {NETWORK} {forward} -j ACCEPT\n\
         -A FLANNEL-FWD -d {NETWORK} {forward} -j ACCEPT\n\
         COMMIT\n"
    );
    fed(host.namespace(), &[&format!("{variant}-restore"), "--noflush"], &script);
}

fn nftables(host: &Host, subnet: &str) {
    let script = format!(
        "table ip flannel-ipv4 {{\n\
           chain postrtg {{\n\
             type nat hook postrouting priority srcnat; policy accept;\n\
             meta mark 0x4000 return\n\
             ip saddr {subnet} ip daddr {NETWORK} return\n\
             ip saddr {NETWORK} ip daddr {subnet} return\n\
             ip saddr != {subnet} ip daddr {NETWORK} return\n\
             ip saddr {NETWORK} ip daddr != 224.0.0.0/4 masquerade fully-random\n\
             ip saddr != {NETWORK} ip daddr {NETWORK} masquerade fully-random\n\
           }}\n\
           chain forward {{\n\
             type filter hook forward priority filter; policy accept;\n\
             ip saddr {NETWORK} accept\n\
             ip daddr {NETWORK} accept\n\
           }}\n\
         }}\n\
         table ip somebody {{\n\
           chain c {{\n\
             ip saddr 192.0.2.1 drop\n\
           }}\n\
         }}\n"
    );
    fed(host.namespace(), &["nft", "-f", "-"], &script);
}

/// Runs a command with `input` as its standard input.
fn fed(namespace: &Namespace, words: &[&str], input: &str) {
    let mut command: Command = namespace.command(words).unwrap();
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{words:?}: {input}");
}
