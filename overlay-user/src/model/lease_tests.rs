//! Tests of leases of IPv4 alone: flannel's bytes, and what is wrong with keys and values.
use super::*;

const VXLAN: &str = r#"{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:76:03:0f:23:cb"}}"#;

fn vxlan(mac: &str) -> LeaseBackend {
    LeaseBackend::Vxlan { vni: 1, vtep_mac: mac.parse().unwrap() }
}

fn lease(subnet: &str, backend: LeaseBackend) -> Lease {
    let public_ip = "10.99.0.1".parse().unwrap();
    Lease { subnet: subnet.parse().unwrap(), public_ip, backend, ipv6: None }
}

#[test]
fn what_only_the_text_tells_apart_is_shown_as_it_stands_in_the_store() {
    let ours = decode("10.244.61.0-24", VXLAN.as_bytes()).unwrap();
    let said = |value: &[u8]| ours.difference(&decode("10.244.61.0-24", value).unwrap(), value);
    let spaced = VXLAN.replace("\":", "\": ");
    assert_eq!(said(spaced.as_bytes()), format!("{spaced} instead of {VXLAN}"));
    assert!(said(format!("{VXLAN}\n").as_bytes()).starts_with(&format!("{VXLAN}\u{fffd} instead of")));
    let long = said(format!("{VXLAN}{}", " ".repeat(1000)).as_bytes());
    assert!(long.contains("… instead of") && long.len() < 500, "{long}");
    let other = VXLAN.replace("cb", "cc");
    assert_eq!(said(other.as_bytes()), "VtepMAC 02:76:03:0f:23:cc instead of 02:76:03:0f:23:cb");
}

/// Values that a real flanneld wrote (docs/etcd.md): read, and written again byte for byte.
#[test]
fn flannels_own_values_round_trip() {
    let plain = r#"{"PublicIP":"10.99.0.1","PublicIPv6":null}"#;
    let ipip = r#"{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"ipip"}"#;
    for (value, backend) in [
        (VXLAN, vxlan("02:76:03:0f:23:cb")),
        (plain, LeaseBackend::Other(String::new())),
        (ipip, LeaseBackend::Other("ipip".to_owned())),
    ] {
        let read = decode("10.244.61.0-24", value.as_bytes()).unwrap();
        assert_eq!(read, lease("10.244.61.0/24", backend));
        assert_eq!(read.key(), "10.244.61.0-24");
        assert_eq!(read.value(), value.as_bytes());
    }
}

#[test]
fn what_flannel_accepts_is_accepted() {
    let bare = decode("10.244.61.0-24", br#"{"PublicIP":"10.99.0.1"}"#).unwrap();
    assert_eq!(bare.backend, LeaseBackend::Other(String::new()));
    let other_case = r#"{"publicip":"10.99.0.1","backendtype":"vxlan","new":[1],"backenddata":{"vni":1,"vtepmac":"02:76:03:0f:23:cb"}}"#;
    let read = decode("10.244.61.0-24", other_case.as_bytes()).unwrap();
    assert_eq!(read, lease("10.244.61.0/24", vxlan("02:76:03:0f:23:cb")));
    let extension =
        br#"{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"extension","BackendData":"hello"}"#;
    let read = decode("10.244.61.0-24", extension).unwrap();
    assert_eq!(read.backend, LeaseBackend::Other("extension".to_owned()));
}

#[test]
fn bad_keys_are_named() {
    for key in [
        "",
        "10.244.61.0",
        "10.244.61.0-",
        "10.244.61.0-32",
        "10.244.61.0-+24",
        "10.244.61-24",
        "10.244.61.0-24&",
        "10.244.61.0-24&fd00::",
        "10.244.61.0-24&fd00::-128",
        "10.244.61.0-24&zz-64",
        "old10.244.61.0-24",
        "10.244.61.0-24/x",
        "10.244.61.7-24",
    ] {
        let error = decode(key, VXLAN.as_bytes()).unwrap_err();
        assert_eq!(error.key, key);
        assert!(error.to_string().starts_with(&format!("lease {key}: ")));
    }
}

#[test]
fn bad_values_say_what_is_wrong() {
    let with = |from: &str, to: &str| VXLAN.replace(from, to);
    for (value, says) in [
        (String::new(), "not JSON"),
        ("{".to_owned(), "not JSON"),
        ("[]".to_owned(), "not an object"),
        ("{}".to_owned(), "PublicIP is missing"),
        (with("10.99.0.1", "10.99.0"), "PublicIP is \"10.99.0\""),
        (with("10.99.0.1", "0.0.0.0"), "no host's address"),
        (with("\"vxlan\"", "7"), "BackendType is 7"),
        (with("\"VNI\":1", "\"VNI\":-1"), "VNI is -1"),
        (with("\"VNI\":1", "\"VNI\":16777216"), "24 bits"),
        (with("VtepMAC", "Mac"), "VtepMAC is missing"),
        (with(":cb", ""), "VtepMAC is \"02:76:03:0f:23\""),
        (with("\"02:", "\"03:"), "no device's address"),
        (with("BackendData", "Data"), "BackendData is missing"),
    ] {
        let error = decode("10.244.61.0-24", value.as_bytes()).unwrap_err();
        assert!(error.to_string().contains(says), "{value}: {error}");
    }
}
