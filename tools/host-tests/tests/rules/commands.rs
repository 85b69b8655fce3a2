//! Commands of the packet filter that are missing, fail or hang: what cannot be read is asked about each connection.
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::stage::{AUTO, decided, eventually};
use crate::{
    bed::{Bed, Kind, overlay},
    traffic::{Protocol, Server, Talk, nft, tiers},
};
use overlay_lab::Options;

/// A port that [`REFUSED`] refuses.
const PORT: u16 = 8081;
const REFUSED: &str = "table ip t { chain c { type filter hook forward priority 0; udp dport 8081 drop; }; }";

/// Writes a script that can be run.
fn script(file: PathBuf, text: &str) -> PathBuf {
    fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

/// Two hosts, of which the first one's agent is started by a script that ends with the program itself.
fn bed(start: impl FnOnce(&Path, &str) -> String) -> Bed {
    let mut bed = Bed::with(Kind::Folder, Options::default(), &AUTO);
    bed.learn_all();
    let folder = bed[0].host.folder().to_owned();
    let text = start(&folder, overlay().to_str().unwrap());
    bed[0].install(&script(folder.join("agent"), &text));
    bed[0].end_agent().unwrap();
    bed[0].restart_agent().unwrap();
    bed
}

/// What starts the program where these commands do not exist.
fn without(commands: &str, program: &str) -> String {
    format!(
        "exec unshare --mount sh -e -c '
            for name in {commands}; do mount --bind /dev/null $(readlink -f $(command -v $name)); done
            exec \"$@\"' sh '{program}' \"$@\""
    )
}

/// Asserts that the first host asks about each connection, that the reason has these words, and that its rules are obeyed.
#[track_caller]
fn asserts_asked(bed: &Bed, words: &str) {
    // As long as nobody has made a rule, nothing has to be read.
    nft(&bed[0].host, REFUSED);
    eventually(bed, 0, "established");
    let (_, why) = decided(&bed[0]);
    assert!(why.contains(words), "`{words}` is not in: {why}");
    let (a, b) = bed.pair();
    let _servers = [Server::of(b), Server::start(b.namespace(), b.address(), PORT)];
    let asked = Talk::open(a.namespace(), Protocol::Udp, b.address(), PORT).unwrap().ask();
    assert!(asked.is_err(), "{asked:?}");
    let mut talk = Talk::open(a.namespace(), Protocol::Udp, b.address(), 8080).unwrap();
    talk.ask().unwrap();
    assert_eq!(decided(&bed[0]).0, "established");
}

#[test]
fn a_host_without_nft_is_asked_about_each_connection() {
    let bed = bed(|_, program| without("nft", program));
    asserts_asked(&bed, "nft");
}

#[test]
fn a_host_without_iptables_whose_legacy_tables_are_in_use_is_asked_about_each_connection() {
    let mut bed = bed(|_, program| without("iptables-nft iptables-legacy", program));
    bed[0].host.exec("iptables-legacy -A FORWARD -p tcp --dport 9 -j DROP").unwrap();
    bed[0].end_agent().unwrap();
    bed[0].restart_agent().unwrap();
    asserts_asked(&bed, "iptables");
}

/// Has the agent's `nft` do something else as long as a file exists, and returns that file.
fn fake(folder: &Path, program: &str, does: &str) -> String {
    let commands = folder.join("commands");
    fs::create_dir_all(&commands).unwrap();
    let broken = folder.join("broken");
    fs::write(&broken, "").unwrap();
    script(
        commands.join("nft"),
        &format!("[ ! -e {} ] || {does}\nexec /usr/sbin/nft \"$@\"", broken.display()),
    );
    format!("PATH={}:$PATH exec '{program}' \"$@\"", commands.display())
}

#[test]
fn an_nft_that_fails_is_no_reason_to_bypass_rules_and_is_asked_again() {
    let bed = bed(|folder, program| fake(folder, program, "{ echo out of order >&2; exit 1; }"));
    asserts_asked(&bed, "out of order");
    fs::remove_file(bed[0].host.folder().join("broken")).unwrap();
    bed[0].host.exec("nft flush ruleset").unwrap();
    eventually(&bed, 0, "on");
    let _server = Server::of(bed.pair().1);
    let (a, b) = bed.pair();
    let mut talk = Talk::open(a.namespace(), Protocol::Tcp, b.address(), 8080).unwrap();
    tiers(&bed, || assert_eq!(talk.ask().unwrap(), a.address()));
}

#[test]
fn an_nft_that_hangs_stops_nothing() {
    let bed = bed(|folder, program| fake(folder, program, "exec sleep 1000"));
    asserts_asked(&bed, "nft");
}
