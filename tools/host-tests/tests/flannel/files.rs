//! What Docker and CNI plugins are told: subnet.env and what is derived from it must be the same as flannel's, byte for
//! byte.
use serde_json::{Value, json};

use super::bed::{Bed, flannels, overlay, subnet_env, wait_for};

/// The delegate that flannel's CNI plugin derives from subnet.env for a network config without options (its flannel.go
/// and flannel_linux.go). It decides addresses, routes, MTU and masquerading of every container.
fn delegate(subnet_env: &str) -> Value {
    let value = |name: &str| {
        let line = subnet_env.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("the plugin needs {name}: {subnet_env}"))
    };
    let subnet: ipnet::Ipv4Net = value("FLANNEL_SUBNET").parse().unwrap();
    let networks: Vec<_> =
        value("FLANNEL_NETWORK").split(',').map(|network| json!({ "dst": network })).collect();
    json!({
        "name": "cbr0", "cniVersion": "0.3.1", "type": "bridge", "isGateway": true,
        "ipMasq": value("FLANNEL_IPMASQ") != "true",
        "mtu": value("FLANNEL_MTU").parse::<u32>().unwrap(),
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": subnet.trunc().to_string() }]],
            "routes": networks,
        },
    })
}

#[test]
fn i8_subnet_env_and_what_docker_and_cni_make_of_it_are_the_same() {
    for flannel in flannels() {
        let mut bed = Bed::new(&flannel, 1, 1);
        let theirs = subnet_env(&bed.flannel[0].host);
        let (subnet, host) = (bed.flannel[0].subnet.clone(), bed.flannel[0].host.clone());
        let docker = |words: &[&str]| {
            let file = host.subnet_file().display().to_string();
            host.overlay(overlay(), &[&["docker-opts", "-f", &file], words].concat())
        };
        let (options, json_options) = (docker(&[]).unwrap(), docker(&["--json"]).unwrap());
        let gateway = subnet.replace(".0/24", ".1/24");
        assert_eq!(
            options,
            format!(
                "DOCKER_OPT_BIP=\"--bip={gateway}\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n\
                 DOCKER_OPTS=\" --bip={gateway} --ip-masq=true --mtu=1450\"\n"
            )
        );
        assert_eq!(json_options, format!("{{\"bip\":\"{gateway}\",\"ip-masq\":true,\"mtu\":1450}}\n"));
        assert_eq!(
            delegate(&theirs),
            json!({
                "name": "cbr0", "cniVersion": "0.3.1", "type": "bridge", "isGateway": true, "ipMasq": true, "mtu": 1450,
                "ipam": {
                    "type": "host-local", "ranges": [[{ "subnet": subnet }]], "routes": [{ "dst": "10.244.0.0/16" }],
                },
            })
        );

        // The same host now runs the agent in place of flannel. It has the same lease, so the input is equal.
        bed.flannel[0].stop();
        let mac = bed.flannel[0].mac();
        host.namespace().ip("link delete flannel.1").unwrap();
        std::fs::remove_file(host.subnet_file()).unwrap();
        let refused = docker(&[]).unwrap_err().to_string();
        assert!(
            refused.contains("subnet.env yet") && refused.contains("`overlay agent` writes it"),
            "{refused}"
        );

        let arguments: Vec<_> = bed.store.arguments().iter().map(String::as_str).collect();
        let mut agent = host.start_agent(overlay(), &arguments).unwrap();
        agent.wait_ready(std::time::Duration::from_secs(20)).unwrap();
        assert_eq!(subnet_env(&host), theirs);
        assert_eq!(delegate(&subnet_env(&host)), delegate(&theirs));
        let target = host.folder().join("docker/opts.env");
        assert_eq!(docker(&["-d", target.to_str().unwrap()]).unwrap(), options);
        assert_eq!(std::fs::read_to_string(&target).unwrap(), options);
        // The peers have noticed nothing: the host's address and VtepMAC are what they were.
        assert_eq!(super::bed::peers(&bed.ours[0]), [(subnet.clone(), host.address().to_string(), mac)]);
        wait_for("the host's containers again", || {
            let ping = overlay_lab::PingOptions { count: 1, timeout: 0.3, ..Default::default() };
            let (a, b) = bed.pair();
            a.ping(b.address(), ping).unwrap().complete()
        });

        // docker0 must not get a subnet that the routing table sends elsewhere.
        host.namespace().ip("address flush dev br0").unwrap();
        host.namespace().ip(&format!("route replace {subnet} via 10.99.0.1")).unwrap();
        let refused = docker(&[]).unwrap_err().to_string();
        assert!(refused.contains(&format!("ip route delete {subnet} via 10.99.0.1")), "{refused}");
    }
}
