//! flanneld's flags, variables and configs beside ours: a table of what flanneld (0.28.9) makes of each, by its main.go,
//! pkg/subnet/config.go and Go's own flag, net, path and encoding/json packages. Where the agent differs, the row says why.
use super::{
    super::options::{Agent, Command, store::StoreChoice},
    *,
};
use crate::model::network::{BackendConfig, NetworkConfig};

/// How the agent answers.
enum Ours {
    /// As flanneld does.
    Same,
    /// Otherwise, and why.
    But(&'static str, &'static str),
}
use Ours::{But, Same};

const REFUSED: &str = "refused";

/// The values of flannel's options, where they are not flannel's defaults. What is no value at all is `refused`.
fn told(line: &str, variables: &[(&str, &str)]) -> String {
    let variable = |name: &str| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
    };
    let words = format!("overlay agent {line}");
    let parse = |line: &str, variable: &dyn Fn(&str) -> Option<OsString>| {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        match parse(words, variable) {
            Ok(Cli { command: Command::Agent(agent) }) => Some(values(&agent)),
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert_eq!(error.exit_code(), 2, "{error}");
                None
            }
        }
    };
    let defaults = parse("overlay agent", &|_| None).unwrap();
    let Some(given) = parse(&words, &variable) else { return REFUSED.to_owned() };
    let changed = given.into_iter().zip(defaults).filter(|(given, default)| given != default);
    changed.map(|(given, _)| given).collect::<Vec<_>>().join(" ")
}

fn values(agent: &Agent) -> Vec<String> {
    let options = agent.options();
    let StoreChoice::Etcd(etcd) = agent.store.choice().unwrap() else { panic!("no etcd") };
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|it| it.display().to_string());
    let choice = &options.underlay;
    vec![
        format!("endpoints={}", etcd.endpoints.join(",")),
        format!("prefix={}", etcd.prefix),
        format!("cafile={}", path(&etcd.cafile).unwrap_or_default()),
        format!("certfile={}", path(&etcd.certfile).unwrap_or_default()),
        format!("keyfile={}", path(&etcd.keyfile).unwrap_or_default()),
        format!("username={}", etcd.username.unwrap_or_default()),
        format!("password={}", etcd.password.unwrap_or_default()),
        format!("iface={:?}", choice.names),
        format!("iface-regex={:?}", choice.patterns),
        format!("iface-can-reach={:?}", choice.can_reach),
        format!("public-ip={:?}", choice.public_ip),
        format!("public-ipv6={:?}", choice.public_ipv6),
        format!("subnet-file={}", options.subnet_file.display()),
        format!("margin={}", options.renew_margin.as_secs() / 60),
        format!("ip-masq={}", options.ip_masq),
        format!("random={}", options.random_ports),
        format!("resync={}", options.rules_period.as_secs()),
        format!("forward={}", options.forward_rules),
        format!("blackhole={}", options.blackhole),
        format!("net-config={}", path(&options.net_config).unwrap_or_default()),
        format!("healthz={:?}", options.health),
    ]
}

#[track_caller]
fn compare(given: &str, found: &str, flannelds: &str, ours: &Ours) {
    match ours {
        Same => assert_eq!(found, flannelds, "{given}"),
        But(expected, why) => {
            assert_eq!(found, *expected, "{given}: {why}");
            assert_ne!(*expected, flannelds, "{given}: this is no difference");
        }
    }
}

#[test]
fn flags_are_taken_as_flanneld_takes_them() {
    let rows = [
        ("", "", Same),
        ("--etcd-endpoints=http://a:2379,http://b:2379", "endpoints=http://a:2379,http://b:2379", Same),
        ("-etcd-endpoints=http://a:2379", "endpoints=http://a:2379", Same),
        ("-etcd-endpoints http://a:2379", "endpoints=http://a:2379", Same),
        ("--etcd-prefix /net", "prefix=/net", Same),
        ("--etcd-prefix /net/", "prefix=/net", Same),
        ("--etcd-prefix net", "prefix=net", Same),
        ("--etcd-prefix coreos.com/network", "prefix=coreos.com/network", Same),
        ("--etcd-prefix //coreos.com//network//", "", Same),
        ("--etcd-cafile ca", "cafile=ca", Same),
        ("--etcd-certfile c --etcd-keyfile k", "certfile=c keyfile=k", Same),
        (
            "--etcd-certfile c",
            "certfile=c",
            But(REFUSED, "flanneld goes on without TLS, which nobody can have meant"),
        ),
        ("--etcd-username u --etcd-password p", "username=u password=p", Same),
        ("--etcd-password p", "password=p", But(REFUSED, "a password of nobody's is a mistake")),
        ("--iface eth0", r#"iface=["eth0"]"#, Same),
        ("-iface eth0 -iface=10.0.0.1", r#"iface=["eth0", "10.0.0.1"]"#, Same),
        ("--iface eth0,eth1", r#"iface=["eth0,eth1"]"#, Same),
        (r"--iface-regex ^10\.\d{1,3}$", r#"iface-regex=["^10\\.\\d{1,3}$"]"#, Same),
        ("--iface-regex a --iface-regex b", r#"iface-regex=["a", "b"]"#, Same),
        ("--iface-can-reach 10.0.0.9", "iface-can-reach=Some(10.0.0.9)", Same),
        ("--public-ip 203.0.113.9", "public-ip=Some(203.0.113.9)", Same),
        ("--public-ip 010.0.0.1", REFUSED, Same),
        ("--public-ip x", REFUSED, Same),
        ("--public-ipv6 2001:db8::9", "public-ipv6=Some(2001:db8::9)", Same),
        (
            "--public-ipv6 fe80::9",
            "public-ipv6=Some(fe80::9)",
            But(REFUSED, "no other host can be reached at an address of the link, or within this host"),
        ),
        ("--public-ipv6 10.0.0.9", "public-ipv6=Some(10.0.0.9)", But(REFUSED, "it is no IPv6 address")),
        ("--subnet-file /x", "subnet-file=/x", Same),
        ("--subnet-lease-renew-margin 30", "margin=30", Same),
        ("--subnet-lease-renew-margin 0", REFUSED, Same),
        ("--subnet-lease-renew-margin 1440", REFUSED, Same),
        ("--ip-masq", "ip-masq=true", Same),
        ("-ip-masq", "ip-masq=true", Same),
        ("--ip-masq=true", "ip-masq=true", Same),
        ("--ip-masq=1", "ip-masq=true", Same),
        ("--ip-masq=T", "ip-masq=true", Same),
        ("--ip-masq=false", "", Same),
        ("--ip-masq=maybe", REFUSED, Same),
        ("--ip-masq --ip-masq-fully-random-disable", "ip-masq=true random=false", Same),
        ("--iptables-resync 30", "resync=30", Same),
        ("--iptables-resync=0", "resync=0", But(REFUSED, "flanneld then looks without a pause")),
        ("--iptables-forward-rules=false", "forward=false", Same),
        ("--iptables-forward-rules", "", Same),
        ("--ip-blackhole-route", "blackhole=true", Same),
        ("--ip-blackhole-route=false", "", Same),
        ("--net-config-path /x", "net-config=/x", Same),
        ("--healthz-port 8081", "healthz=Some(0.0.0.0:8081)", Same),
        ("--healthz-ip 127.0.0.1 --healthz-port 1", "healthz=Some(127.0.0.1:1)", Same),
        ("--healthz-port 0", "", Same),
        ("--kube-subnet-mgr", "kube", But(REFUSED, "leases of Kubernetes are not supported yet")),
        ("--no-such-flag", REFUSED, Same),
    ];
    for (line, flannelds, ours) in &rows {
        compare(line, &told(line, &[]), flannelds, ours);
    }
}

#[test]
fn variables_are_taken_as_flanneld_takes_them() {
    let rows = [
        ("FLANNELD_ETCD_ENDPOINTS", "http://a:1,http://b:2", "endpoints=http://a:1,http://b:2", Same),
        ("FLANNELD_ETCD_PREFIX", "net", "prefix=net", Same),
        ("FLANNELD_IFACE", "eth0", r#"iface=["eth0"]"#, Same),
        ("FLANNELD_IFACE", "eth1,eth0", r#"iface=["eth1,eth0"]"#, Same),
        ("FLANNELD_IFACE_REGEX", r"^10\.0\.\d{1,3}$", r#"iface-regex=["^10\\.0\\.\\d{1,3}$"]"#, Same),
        ("FLANNELD_IFACE_CAN_REACH", "10.0.0.9", "iface-can-reach=Some(10.0.0.9)", Same),
        ("FLANNELD_PUBLIC_IP", "10.0.0.1", "public-ip=Some(10.0.0.1)", Same),
        ("FLANNELD_PUBLIC_IPV6", "fd99::1", "public-ipv6=Some(fd99::1)", Same),
        ("FLANNELD_SUBNET_FILE", "/x", "subnet-file=/x", Same),
        ("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "30", "margin=30", Same),
        ("FLANNELD_IP_MASQ", "true", "ip-masq=true", Same),
        ("FLANNELD_IP_MASQ", "0", "", Same),
        ("FLANNELD_IP_MASQ", "maybe", REFUSED, Same),
        ("FLANNELD_IP_MASQ", "", "", Same),
        ("FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE", "true", "random=false", Same),
        ("FLANNELD_IPTABLES_RESYNC", "7", "resync=7", Same),
        ("FLANNELD_IPTABLES_FORWARD_RULES", "false", "forward=false", Same),
        ("FLANNELD_IP_BLACKHOLE_ROUTE", "true", "blackhole=true", Same),
        ("FLANNELD_NET_CONFIG_PATH", "/x", "net-config=/x", Same),
        ("FLANNELD_HEALTHZ_PORT", "8081", "healthz=Some(0.0.0.0:8081)", Same),
        ("FLANNELD_HEALTHZ_PORT", "x", REFUSED, Same),
        ("FLANNELD_KUBE_SUBNET_MGR", "false", "", Same),
        // Our own variables may name several values; a pattern is one.
        ("OVERLAY_IFACE", "eth1,eth0", r#"iface=["eth1", "eth0"]"#, Same),
        ("OVERLAY_IFACE_REGEX", "^a{1,3}$", r#"iface-regex=["^a{1,3}$"]"#, Same),
    ];
    for (name, value, flannelds, ours) in &rows {
        compare(&format!("{name}={value}"), &told("", &[(name, value)]), flannelds, ours);
        assert_eq!(ignored_variables([name.into()]), [""; 0], "{name}");
    }
}

#[test]
fn variables_that_mean_nothing_here_are_named_once() {
    for (name, says) in [
        ("FLANNELD_KUBE_API_URL", "not from Kubernetes"),
        ("FLANNELD_KUBE_ANNOTATION_PREFIX", "not from Kubernetes"),
        ("FLANNELD_KUBECONFIG_FILE", "not from Kubernetes"),
        ("FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", "not from Kubernetes"),
        ("FLANNELD_V", "RUST_LOG"),
        ("FLANNELD_VMODULE", "RUST_LOG"),
        ("FLANNELD_LOG_BACKTRACE_AT", "RUST_LOG"),
        ("FLANNELD_IFACES", "the name of no option"),
        ("OVERLAY_IFACES", "the name of no option"),
    ] {
        let said = ignored_variables([name.into()]);
        assert!(said.len() == 1 && said[0].contains(name) && said[0].contains(says), "{said:?}");
    }
    assert_eq!(ignored_variables(["PATH".into(), "FLANNEL_MTU".into()]), [""; 0]);
}

/// What a config means: the range, the subnets' length, the first and the last of them, and the backend.
fn config(text: &str) -> String {
    let Ok(config) = NetworkConfig::parse(text.as_bytes()) else { return REFUSED.to_owned() };
    let plan = config.plan;
    let backend = match config.backend {
        BackendConfig::Vxlan { vni, port, mtu, direct_routing } => {
            let mtu = mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
            format!("vxlan {vni} {port}{mtu}{}", if direct_routing { " direct" } else { "" })
        }
        BackendConfig::Udp { port } => format!("udp {port}"),
        BackendConfig::HostGw => "host-gw".to_owned(),
        BackendConfig::Unsupported(name) => name,
    };
    format!("{} /{} {}-{} {backend}", plan.network, plan.subnet_len, plan.subnet_min, plan.subnet_max)
}

#[test]
fn configs_are_taken_as_flanneld_takes_them() {
    const USUAL: &str = "10.244.0.0/16 /24 10.244.1.0-10.244.255.0 udp 8285";
    let usual = |more: &str| format!(r#"{{"Network":"10.244.0.0/16"{more}}}"#);
    let rows = [
        (usual(""), USUAL, Same),
        (r#"{"network":"10.244.0.0/16"}"#.to_owned(), USUAL, Same),
        (r#"{"Network":"10.244.3.4/16"}"#.to_owned(), USUAL, Same),
        (r#"{"Network":"010.244.0.0/16"}"#.to_owned(), REFUSED, Same),
        (r#"{"Network":"10.244.0.0/33"}"#.to_owned(), REFUSED, Same),
        (r#"{"Network":"10.244.0.0"}"#.to_owned(), REFUSED, Same),
        (r#"{"Network":null}"#.to_owned(), REFUSED, Same),
        (r#"{"Network":7}"#.to_owned(), REFUSED, Same),
        ("{}".to_owned(), REFUSED, Same),
        (r#"{"Network":"10.244.0.0/16"} x"#.to_owned(), REFUSED, Same),
        (r#"{"Network":"10.0.0.0/29"}"#.to_owned(), REFUSED, Same),
        (r#"{"Network":"10.0.0.0/23"}"#.to_owned(), "10.0.0.0/23 /25 10.0.0.128-10.0.1.128 udp 8285", Same),
        (usual(r#","SubnetLen":20"#), "10.244.0.0/16 /20 10.244.16.0-10.244.240.0 udp 8285", Same),
        (usual(r#","SubnetLen":0"#), USUAL, Same),
        (usual(r#","SubnetLen":null"#), USUAL, Same),
        (usual(r#","SubnetLen":17"#), REFUSED, Same),
        (usual(r#","SubnetLen":31"#), REFUSED, Same),
        (usual(r#","SubnetLen":"24""#), REFUSED, Same),
        (usual(r#","SubnetLen":24.5"#), REFUSED, Same),
        (usual(r#","SubnetLen":-1"#), REFUSED, Same),
        (usual(r#","SubnetMin":"10.244.10.0""#), "10.244.0.0/16 /24 10.244.10.0-10.244.255.0 udp 8285", Same),
        (usual(r#","SubnetMin":"0.0.0.0""#), USUAL, Same),
        (usual(r#","SubnetMin":null"#), REFUSED, Same),
        (usual(r#","SubnetMax":null"#), REFUSED, Same),
        (usual(r#","SubnetMin":"""#), REFUSED, Same),
        (usual(r#","SubnetMin":"10.244.010.0""#), REFUSED, Same),
        (usual(r#","SubnetMin":"10.244.1.1""#), REFUSED, Same),
        (usual(r#","SubnetMax":"10.245.0.0""#), REFUSED, Same),
        (
            usual(r#","SubnetMin":"10.244.9.0","SubnetMax":"10.244.8.0""#),
            "10.244.0.0/16 /24 10.244.9.0-10.244.8.0 udp 8285",
            But(REFUSED, "flanneld starts, and finds no subnet"),
        ),
        (usual(r#","EnableIPv4":null,"EnableIPv6":false"#), USUAL, Same),
        (usual(r#","EnableIPv4":"yes""#), REFUSED, Same),
        (
            usual(r#","EnableIPv6":true,"IPv6Network":"fd00::/48""#),
            "two families",
            But(REFUSED, "the overlay carries IPv4 alone"),
        ),
        (usual(r#","IPv6Network":"fd00::/48""#), USUAL, Same),
        (usual(r#","IPv6Network":"garbage""#), REFUSED, Same),
        (usual(r#","IPv6Network":null"#), REFUSED, Same),
        (usual(r#","IPv6SubnetMin":null"#), USUAL, Same),
        (usual(r#","IPv6SubnetMax":"x""#), REFUSED, Same),
        (usual(r#","IPv6SubnetLen":"64""#), REFUSED, Same),
        (usual(r#","Networks":["x"]"#), REFUSED, Same),
        (usual(r#","Unknown":{"a":1}"#), USUAL, Same),
        (usual(r#","Backend":null"#), REFUSED, Same),
        (usual(r#","Backend":{}"#), REFUSED, Same),
        (usual(r#","Backend":"vxlan""#), REFUSED, Same),
        (usual(r#","Backend":{"Type":7}"#), REFUSED, Same),
        (
            usual(r#","Backend":{"type":"VXLAN"}"#),
            "10.244.0.0/16 /24 10.244.1.0-10.244.255.0 vxlan 1 8472",
            Same,
        ),
        (
            usual(r#","Backend":{"Type":"vxlan","VNI":5,"Port":4789,"MTU":1400,"DirectRouting":true}"#),
            "10.244.0.0/16 /24 10.244.1.0-10.244.255.0 vxlan 5 4789 mtu 1400 direct",
            Same,
        ),
        (usual(r#","Backend":{"Type":"vxlan","Port":"x"}"#), REFUSED, Same),
        (
            usual(r#","Backend":{"Type":"vxlan","GBP":true}"#),
            "vxlan with group policies",
            But(REFUSED, "group policies are not carried"),
        ),
        (
            usual(r#","Backend":{"Type":"udp","Port":9000}"#),
            "10.244.0.0/16 /24 10.244.1.0-10.244.255.0 udp 9000",
            Same,
        ),
        (
            usual(r#","Backend":{"Type":"host-gw"}"#),
            "10.244.0.0/16 /24 10.244.1.0-10.244.255.0 host-gw",
            Same,
        ),
        (
            usual(r#","Backend":{"Type":"wireguard"}"#),
            "10.244.0.0/16 /24 10.244.1.0-10.244.255.0 wireguard",
            Same,
        ),
    ];
    for (text, flannelds, ours) in &rows {
        compare(text, &config(text), flannelds, ours);
    }
}
