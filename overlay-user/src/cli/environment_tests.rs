//! Tests of the command line: defaults, variables and which of them wins, contradictions, and texts.
use std::net::IpAddr;

use clap::CommandFactory as _;

use crate::store::etcd::EtcdOptions;

use super::{
    super::options::{Agent, Command, DockerOpts, FastPathOption, store::StoreChoice},
    *,
};

fn parse_with(line: &str, variables: &[(&str, &str)]) -> Result<Cli, clap::Error> {
    let variable = |name: &str| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
    };
    parse(line.split_whitespace().map(OsString::from), variable)
}

fn agent(line: &str, variables: &[(&str, &str)]) -> Agent {
    match parse_with(line, variables).unwrap().command {
        Command::Agent(agent) => *agent,
        other => panic!("{other:?}"),
    }
}

fn etcd(line: &str, variables: &[(&str, &str)]) -> EtcdOptions {
    match agent(line, variables).store.choice().unwrap() {
        StoreChoice::Etcd(etcd) => etcd,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn flannels_defaults() {
    let agent = agent("overlay agent", &[]);
    assert_eq!(agent.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
    assert_eq!(agent.subnet_lease_renew_margin, 60);
    assert_eq!((agent.healthz_ip.to_string().as_str(), agent.healthz_port), ("0.0.0.0", 0));
    assert!(agent.underlay.iface.is_empty() && !agent.dry_run && !agent.kube_subnet_mgr);
    let etcd = etcd("overlay agent", &[]);
    assert_eq!(etcd.endpoints, ["http://127.0.0.1:2379"]);
    assert_eq!(etcd.prefix, "/coreos.com/network");
    assert_eq!((etcd.cafile, etcd.certfile, etcd.keyfile), (None, None, None));
    assert_eq!((etcd.username, etcd.password), (None, None));
}

#[test]
fn the_option_wins_over_our_variable_and_that_over_flannels() {
    let flannels = ("FLANNELD_ETCD_ENDPOINTS", "http://a:1,http://b:2");
    let ours = ("OVERLAY_ETCD_ENDPOINTS", "http://c:3");
    assert_eq!(etcd("overlay agent", &[flannels]).endpoints, ["http://a:1", "http://b:2"]);
    assert_eq!(etcd("overlay agent", &[flannels, ours]).endpoints, ["http://c:3"]);
    let line = "overlay agent --etcd-endpoints http://d:4";
    assert_eq!(etcd(line, &[flannels, ours]).endpoints, ["http://d:4"]);
}

#[test]
fn variables_of_every_kind() {
    let agent = agent(
        "overlay agent",
        &[
            ("OVERLAY_IFACE", "eth1,eth0"),
            ("OVERLAY_OUTER_DF", "true"),
            ("FLANNELD_HEALTHZ_PORT", "8081"),
            ("OVERLAY_PUBLIC_IP", "10.0.0.1"),
            ("OVERLAY_FAST_PATH", "off"),
            ("OVERLAY_DEVICE", ""),
            ("FLANNELD_KUBE_SUBNET_MGR", "false"),
            ("FLANNELD_IP_MASQ", "true"),
            ("FLANNELD_IPTABLES_FORWARD_RULES", "false"),
        ],
    );
    assert_eq!(agent.underlay.iface, ["eth1", "eth0"]);
    assert!(agent.outer_df);
    assert!(agent.ip_masq && !agent.forward_rules);
    assert_eq!(agent.healthz_port, 8081);
    assert_eq!(agent.underlay.public_ip, Some(IpAddr::from([10, 0, 0, 1])));
    assert_eq!(agent.fast_path, FastPathOption::Off);
    assert_eq!(agent.device, "overlay0");
}

#[test]
fn switches_take_flannels_form_and_ours() {
    for (line, expected) in [
        ("overlay agent", (false, true)),
        ("overlay agent --ip-masq --forward-rules off", (true, false)),
        ("overlay agent --ip-masq=false --forward-rules", (false, true)),
        ("overlay agent --ip-masq=true --iptables-forward-rules=false", (true, false)),
    ] {
        let agent = agent(line, &[]);
        assert_eq!((agent.ip_masq, agent.forward_rules), expected, "{line}");
    }
}

#[test]
fn one_store_and_a_whole_one() {
    let choice = |line: &str| agent(line, &[]).store.choice().unwrap();
    let directory = StoreChoice::Directory { path: "/srv/x".into(), shared: true };
    assert_eq!(choice("overlay agent --store-dir /srv/x --store-shared"), directory);
    assert_eq!(etcd("overlay agent --etcd-prefix /net/", &[]).prefix, "/net");
    let both = etcd("overlay agent --etcd-certfile c --etcd-keyfile k", &[]);
    assert_eq!((both.certfile, both.keyfile), (Some("c".into()), Some("k".into())));
    for (line, variables, says) in [
        ("overlay agent --store-dir /x --etcd-prefix /y", &[][..], "two stores"),
        (
            "overlay agent --store-dir /x",
            &[("FLANNELD_ETCD_USERNAME", "u")],
            "--store-dir and --etcd-username",
        ),
        ("overlay agent --store-shared", &[], "--store-dir, which is missing"),
        ("overlay agent --etcd-keyfile k", &[], "need each other"),
        ("overlay agent --etcd-password p", &[], "needs --etcd-username"),
        ("overlay agent --kube-subnet-mgr", &[], "not supported yet"),
        ("overlay agent", &[("FLANNELD_KUBE_SUBNET_MGR", "true")], "not supported yet"),
        ("overlay agent --network ../x", &[], "letters, digits"),
        ("overlay agent --subnet-lease-renew-margin 1440", &[], "1440"),
        ("overlay agent", &[("OVERLAY_HEALTHZ_PORT", "x")], "--healthz-port"),
        ("overlay config show --store-dir /x --etcd-prefix /y", &[], "two stores"),
        ("overlay attach 10.0.0.2 --port veth1 --mac 02:00", &[], "is not a MAC address"),
        ("overlay", &[], "Usage"),
    ] {
        let error = parse_with(line, variables).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(says), "{line}: {error}");
    }
}

fn docker_opts(line: &str, variables: &[(&str, &str)]) -> DockerOpts {
    match parse_with(line, variables).unwrap().command {
        Command::DockerOpts(options) => options,
        other => panic!("{other:?}"),
    }
}

#[test]
fn docker_opts_has_the_letters_of_flannels_script() {
    let none = docker_opts("overlay docker-opts", &[]);
    assert_eq!(none.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
    assert_eq!((none.docker_env, none.key.as_str()), (None, "DOCKER_OPTS"));
    assert!(!none.individual && !none.combined && !none.no_ip_masq && !none.json);
    let all = docker_opts("overlay docker-opts -f a -d b -icm -k DOCKER_NETWORK_OPTIONS", &[]);
    assert_eq!((all.subnet_file, all.docker_env), ("a".into(), Some("b".into())));
    assert!(all.individual && all.combined && all.no_ip_masq);
    assert_eq!(all.key, "DOCKER_NETWORK_OPTIONS");
    // The agent's variable counts here as well, because both commands speak of the same file.
    let variable = docker_opts("overlay docker-opts", &[("FLANNELD_SUBNET_FILE", "/x")]);
    assert_eq!(variable.subnet_file.to_str(), Some("/x"));
    for key in ["1", "a-b", "x=y", ""] {
        let refused = parse_with(&format!("overlay docker-opts --key={key}"), &[]).unwrap_err();
        assert_eq!(refused.exit_code(), 2, "{key}");
    }
    let help = parse_with("overlay docker-opts --help", &[]).unwrap_err().to_string();
    assert!(help.contains("EnvironmentFile=/run/docker_opts.env") && help.contains("Exit codes"), "{help}");
}

#[test]
fn help_teaches() {
    let help = parse_with("overlay --help", &[]).unwrap_err();
    assert_eq!(help.exit_code(), 0);
    for text in ["Examples:", "Exit codes: 0 done, 1 failed, 2 wrong usage, 3", "OVERLAY_", "FLANNELD_"] {
        assert!(help.to_string().contains(text), "{text}");
    }
    assert!(parse_with("overlay agent --help", &[]).unwrap_err().to_string().contains("--etcd-endpoints"));
    assert_eq!(parse_with("overlay agent --version", &[]).unwrap_err().exit_code(), 0);
}

#[test]
fn a_password_from_a_variable_is_not_shown() {
    let help = parse_with("overlay agent --help", &[("OVERLAY_ETCD_PASSWORD", "hunter2")]).unwrap_err();
    assert!(!help.to_string().contains("hunter2"));
}
