//! The program is given what it cannot use, in cases that need neither kernel nor store. It must name the object and
//! the remedy, and end with the right exit code.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, as its assertions do")]

use std::process::{Command, Output};

use nix::unistd::Uid;

const OVERLAY: &str = env!("CARGO_BIN_EXE_overlay");

fn overlay(words: &[&str]) -> Command {
    let mut command = Command::new(OVERLAY);
    command.args(words).env_clear();
    command
}

#[track_caller]
fn ends(command: &mut Command, code: i32, words: &[&str]) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    assert_eq!(status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn wrong_usage_ends_with_2_and_says_what_is_right() {
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["Usage: overlay <COMMAND>", "agent"]),
        (&["agnet"], &["unrecognized subcommand 'agnet'", "'agent'"]),
        (&["agent", "--ifcae", "eth0"], &["unexpected argument '--ifcae'", "'--iface'"]),
        (&["agent", "--public-ip", "eth0"], &["'eth0'", "--public-ip", "invalid IPv4 address"]),
        (&["agent", "--max-peers", "0"], &["'0'", "--max-peers"]),
        (
            &["agent", "--subnet-lease-renew-margin", "1440"],
            &["1440", "--subnet-lease-renew-margin", "1..=1439"],
        ),
        (
            &["agent", "--fast-path", "maybe"],
            &["'maybe'", "--fast-path", "possible values: auto, on, established, off"],
        ),
        (&["status", "--network", "a/../b"], &["--network", "letters, digits, dashes or underscores"]),
        (&["agent", "--network", ""], &["--network", "1 to 64"]),
        (
            &["agent", "--kube-subnet-mgr"],
            &["--kube-subnet-mgr is not supported yet", "--etcd-endpoints", "--store-dir"],
        ),
        (
            &["agent", "--store-dir", "/nowhere", "--etcd-prefix", "/x"],
            &["--store-dir and --etcd-prefix name two stores"],
        ),
        (&["agent", "--store-shared"], &["--store-shared", "--store-dir, which is missing"]),
        (&["agent", "--etcd-password", "x"], &["--etcd-password needs --etcd-username"]),
        (
            &["config", "show", "--etcd-certfile", "x"],
            &["--etcd-certfile and --etcd-keyfile need each other"],
        ),
        (&["attach", "10.244.1.2"], &["--port"]),
        (&["attach", "10.244.1.300", "--port", "v"], &["10.244.1.300", "ADDRESS"]),
        (&["peers", "--accept-deletions", "--resync"], &["--accept-deletions", "--resync"]),
    ];
    for (words, expected) in cases {
        ends(&mut overlay(words), 2, expected);
    }
}

#[test]
fn a_wrong_variable_is_named_as_the_variable() {
    let cases = [
        ("OVERLAY_PUBLIC_IP", "eth0"),
        ("FLANNELD_PUBLIC_IP", "eth0"),
        ("OVERLAY_MAX_PEERS", "many"),
        ("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "1h"),
    ];
    for (variable, value) in cases {
        ends(overlay(&["agent"]).env(variable, value), 2, &[variable, value]);
    }
    ends(
        overlay(&["agent"]).env("FLANNELD_KUBE_SUBNET_MGR", "true"),
        2,
        &["--kube-subnet-mgr is not supported yet"],
    );
}

#[test]
fn a_misspelt_variable_is_named() {
    let mut command = overlay(&["config", "show", "--store-dir", "/nowhere/at/all"]);
    command.env("OVERLAY_ETCD_ENDPOINT", "http://10.0.0.5:2379").env("OVERLAY_STORE_SHARED", "true");
    let text = ends(
        &mut command,
        1,
        &["variable OVERLAY_ETCD_ENDPOINT is the name of no option", "/nowhere/at/all"],
    );
    assert!(!text.contains("OVERLAY_STORE_SHARED"), "{text}");
}

#[test]
fn an_agent_that_is_not_root_says_so() {
    let mut command = if Uid::effective().is_root() {
        // The program is where only root may go, so another user needs a copy.
        let folder = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .unwrap();
        let copy = folder.path().join("overlay");
        std::fs::copy(OVERLAY, &copy).unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(&copy)
            .arg("agent")
            .env_clear();
        ends(&mut command, 1, &["run it as root", "--dry-run"]);
        return;
    } else {
        overlay(&["agent"])
    };
    ends(&mut command, 1, &["run it as root", "--dry-run"]);
}

#[test]
fn a_config_that_means_nothing_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store").display().to_string();
    let cases: &[(&str, &[&str])] = &[
        ("{", &["Network"]),
        ("{}", &["Network is missing", "10.244.0.0/16"]),
        (r#"{"Network":"10.244.0.0/29"}"#, &["Network is 10.244.0.0/29"]),
        (r#"{"Network":"10.244.0.0/16","SubnetLen":31}"#, &["SubnetLen is 31", "18 to 30"]),
        (r#"{"Network":"10.244.0.0/16","Backend":{}}"#, &["Backend's Type is missing", "vxlan"]),
        (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":0}}"#, &["VNI is 0"]),
    ];
    for (text, expected) in cases {
        ends(&mut overlay(&["config", "set", text, "--store-dir", &store]), 1, expected);
    }
    let words = ["has no network config yet", &store, "overlay config set"];
    let show = ["config", "show", "--store-dir", &store];
    ends(&mut overlay(&show), 1, &words);

    let text = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    ends(
        &mut overlay(&["config", "set", text, "--store-dir", &store]),
        0,
        &["10.244.0.0/16", "agents read it"],
    );
    let table = ends(&mut overlay(&show), 0, &[]);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [
        ["Network", "10.244.0.0/16"],
        ["SubnetLen", "24"],
        ["Backend.Type", "vxlan"],
        ["Backend.Port", "8472"],
    ] {
        assert!(rows.contains(&row.to_vec()), "{row:?} is not in: {table}");
    }
    assert_eq!(ends(overlay(&show).arg("--json"), 0, &[]).trim(), text);

    // The reader has gone before the first line is written.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let unread = overlay(&show).stdout(writer).output().unwrap();
    assert_eq!((unread.status.code(), String::from_utf8_lossy(&unread.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn commands_without_a_network_say_that_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().display().to_string();
    let at = ["--state-dir", &root, "--bpf-root", &root];
    let with = |words: &[&str], expected: &[&str]| {
        ends(&mut overlay(&[words, &at[..]].concat()), 1, expected);
    };
    with(&["status"], &["there is no network default on this host", &root, "overlay agent"]);
    with(&["status", "--network", "blue"], &["there is no network blue on this host"]);
    with(&["peers"], &["network default", &root]);
    with(&["endpoints"], &["network default", &root]);
    with(&["peers", "--resync"], &["control.sock", "is the agent of this network running"]);
    with(&["attach", "10.244.1.2", "--port", "v"], &["is the agent of this network running"]);
}
