//! `overlay check` in a network namespace in which something is wrong.
use overlay_user::{
    cli::check::{self, CheckSpec, Level},
    host::netlink::Netlink,
    model::{backend::Backend, fast_path::AskedFastPath},
};

use super::bed::{bridge, in_namespace, run};

#[test]
fn check_finds_what_is_wrong_with_a_namespace() {
    in_namespace(|| async {
        bridge();
        run("ip link set br0 mtu 1500");
        run("ip link add eth0 type veth peer name peer0");
        run("ip link set eth0 up");
        run("ip route add 10.9.0.0/24 dev eth0 mtu 1400");
        run("ip link add flannel.1 type vxlan id 1 dstport 8472 nolearning");
        let spec = CheckSpec {
            underlay: Some("eth0".into()),
            device: "overlay0".into(),
            backend: Backend::DEFAULT,
            subnet: Some("10.244.1.0/24".parse().unwrap()),
            address: Some([10, 9, 0, 1].into()),
            fast_path: AskedFastPath::Auto,
            network: None,
            bpf_root: "/proc".into(),
            pins: "/proc/overlay".into(),
        };
        let findings = check::check(&Netlink::open().unwrap(), &spec).await.unwrap();
        for finding in &findings {
            eprintln!("{finding:?}");
            let helpful = finding.level == Level::Ok || !finding.remedy.is_empty();
            assert!(helpful, "{finding:?}");
        }
        let level = |what: &str| {
            let found = findings.iter().find(|finding| finding.what == what);
            found.unwrap_or_else(|| panic!("{what} was not looked at")).level
        };
        assert_eq!(level("udp port 8472"), Level::Fail);
        assert_eq!(level("mtu of br0"), Level::Warn);
        assert_eq!(level("bpffs at /proc"), Level::Fail);
        assert_eq!(level("capabilities"), Level::Ok);
        assert_eq!(level("mtu of routes"), Level::Warn);

        // The socket of our own device must not be reported as another's.
        run("ip link delete flannel.1");
        run("ip link add overlay0 type vxlan external dstport 8472");
        run("ip link set overlay0 up");
        let findings = check::check(&Netlink::open().unwrap(), &spec).await.unwrap();
        let port = findings.iter().find(|finding| finding.what == "udp port 8472").unwrap();
        assert_eq!(port.level, Level::Ok, "{port:?}");

        // The network's port and MTU are taken from its own device.
        run("ip link delete overlay0");
        run("ip link add overlay0 mtu 1400 type vxlan external dstport 4789");
        run("ip link set br0 mtu 1401");
        let findings = check::check(&Netlink::open().unwrap(), &spec).await.unwrap();
        let is_there = |what, level| {
            assert!(findings.iter().any(|it| it.what == what && it.level == level), "{findings:?}");
        };
        is_there("udp port 4789", Level::Ok);
        is_there("mtu of br0", Level::Warn);
        run("ip link set overlay0 up");

        // A route of Network to our own device is right, but a bridge of others with an address in Network is not.
        run("ip route add 10.244.0.0/16 dev overlay0");
        run("ip link add br1 type bridge");
        for (address, level) in [("10.245.2.1/24", Level::Ok), ("10.244.2.1/24", Level::Warn)] {
            run(&format!("ip address add {address} dev br1"));
            let findings = check::check(&Netlink::open().unwrap(), &spec).await.unwrap();
            let others = findings.iter().find(|finding| finding.what == "other networks").unwrap();
            assert_eq!(others.level, level, "{others:?}");
        }
    });
}
