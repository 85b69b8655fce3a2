//! Tests of leases of both families: flannel's bytes, and what must never be written.
use super::*;

const KEY: &str = "10.244.50.0-24&fd00:244:0:4b::-64";
/// A real flanneld wrote these two (docs/etcd.md).
const VXLAN: &str = r#"{"PublicIP":"10.99.0.1","PublicIPv6":"fd99::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"7a:75:0d:2d:88:95"},"BackendV6Data":{"VNI":1,"VtepMAC":"e6:26:4c:97:8d:05"}}"#;
const HOST_GW: &str = r#"{"PublicIP":"10.99.0.1","PublicIPv6":"fd99::1","BackendType":"host-gw"}"#;

fn vxlan(mac: &str) -> LeaseBackend {
    LeaseBackend::Vxlan { vni: 1, vtep_mac: mac.parse().unwrap() }
}

fn read(key: &str, value: &str) -> (Lease, Option<String>) {
    let (lease, half) = decode_halves(key, value.as_bytes()).unwrap();
    (lease, half.map(|bad| bad.to_string()))
}

#[test]
fn flannels_own_values_round_trip() {
    let host_gw = LeaseBackend::Other("host-gw".to_owned());
    for (value, backend, ipv6) in
        [(VXLAN, vxlan("7a:75:0d:2d:88:95"), vxlan("e6:26:4c:97:8d:05")), (HOST_GW, host_gw.clone(), host_gw)]
    {
        let half = Ipv6Half {
            subnet: "fd00:244:0:4b::/64".parse().unwrap(),
            public_ip: "fd99::1".parse().unwrap(),
            backend: ipv6,
        };
        let expected = Lease {
            subnet: "10.244.50.0/24".parse().unwrap(),
            public_ip: "10.99.0.1".parse().unwrap(),
            backend,
            ipv6: Some(half),
        };
        let (lease, bad) = read(KEY, value);
        assert_eq!((&lease, bad), (&expected, None));
        assert_eq!(lease.key(), KEY);
        assert_eq!(lease.value(), value.as_bytes());
    }
}

/// Go writes addresses as RFC 5952 has them: the longest run of zeros is left out, the first of two, and never a single one.
#[test]
fn keys_have_the_address_as_go_writes_it() {
    for (subnet, key) in [
        ("fd00:0:0:1::/64", "fd00:0:0:1::-64"),
        ("2001:db8:0:1:1::/80", "2001:db8:0:1:1::-80"),
        ("2001:db8:0:0:1:0:0:0/80", "2001:db8:0:0:1::-80"),
        ("FD00:244:0:4B::/64", "fd00:244:0:4b::-64"),
    ] {
        assert_eq!(key_of(subnet.parse().unwrap()), key);
        let subnets = subnets_of(&format!("10.244.50.0-24&{key}")).unwrap();
        assert_eq!(subnets.ipv6, Some(subnet.parse().unwrap()));
    }
}

#[test]
fn unknown_fields_and_another_case_make_no_difference() {
    let odd = VXLAN
        .replace("PublicIPv6", "publicipv6")
        .replace("BackendV6Data", "backendv6data")
        .replace(r#""BackendType""#, r#""Overlay":{"x":1},"BackendType""#)
        .replace(r#"{"VNI":1,"VtepMAC":"e6"#, r#"{"Vni":1,"New":[],"VtepMAC":"e6"#);
    assert_eq!(read(KEY, &odd), read(KEY, VXLAN));
}

/// Whatever is wrong with the IPv6 half, the host keeps its IPv4 half, and the reason is told.
#[test]
fn a_broken_half_costs_no_more_than_that_half() {
    let with = |from: &str, to: &str| VXLAN.replace(from, to);
    let data = r#","BackendV6Data":{"VNI":1,"VtepMAC":"e6:26:4c:97:8d:05"}"#;
    for (key, value, says) in [
        (KEY, with(data, ""), "BackendV6Data is missing"),
        (KEY, with(data, r#","BackendV6Data":null"#), "BackendV6Data is missing"),
        (KEY, with(data, r#","BackendV6Data":"x""#), "BackendV6Data is not an object"),
        (KEY, with("e6:26", "e7:26"), "no device's address"),
        (KEY, with(r#""fd99::1""#, "null"), "PublicIPv6 is missing"),
        (KEY, with("fd99::1", "10.99.0.1"), "PublicIPv6 is \"10.99.0.1\", not an IPv6 address"),
        (KEY, with("fd99::1", "fe80::1"), "PublicIPv6 is fe80::1, at which no other host"),
        (KEY, with("fd99::1", "::"), "PublicIPv6 is ::, at which"),
        (KEY, with("fd99::1", "::1"), "PublicIPv6 is ::1, at which"),
        (KEY, with("fd99::1", "::ffff:10.99.0.1"), "at which no other host"),
        (
            "10.244.50.0-24&fd00:244:0:4b::1-64",
            VXLAN.to_owned(),
            "fd00:244:0:4b::1 is not the first address of a /64 (that is fd00:244:0:4b::)",
        ),
    ] {
        let (lease, why) = read(key, &value);
        let whole = read(KEY, VXLAN).0;
        assert_eq!(lease, Lease { ipv6: None, ..whole }, "{value}");
        let why = why.unwrap();
        assert!(why.starts_with(&format!("lease {key}: ")) && why.contains(says), "{value}: {why}");
    }
    // What is of IPv4 costs the whole lease, as before.
    assert!(decode_halves(KEY, with(r#""BackendData""#, r#""x""#).as_bytes()).is_err());
    assert!(decode_halves("10.244.50.1-24&fd00:244:0:4b::-64", VXLAN.as_bytes()).is_err());
}

/// A flanneld of both families passes a lease by that has an IPv6 subnet and no `BackendV6Data` (F2), and ends over one whose
/// `PublicIPv6` is null (F3). One of IPv4 alone ends over any IPv6 subnet in a key (F1), so a lease of IPv4 alone has none.
#[test]
fn a_key_has_an_ipv6_subnet_only_if_the_value_has_all_of_ipv6() {
    for value in [VXLAN, HOST_GW] {
        let whole = read(KEY, value).0;
        let ipv4 = Lease { ipv6: None, ..whole.clone() };
        for lease in [whole, ipv4] {
            let text = String::from_utf8(lease.value().to_vec()).unwrap();
            let has_subnet = lease.key().contains('&');
            assert_eq!(text.contains(r#""PublicIPv6":null"#), !has_subnet, "{text}");
            let is_vxlan = text.contains(r#""BackendType":"vxlan""#);
            assert_eq!(text.contains("BackendV6Data"), has_subnet && is_vxlan, "{text}");
        }
    }
}

/// In Kubernetes a flanneld finds its own MAC address in the data by splitting the text at `:"`, which must give two parts (F5).
#[test]
fn a_backends_data_have_one_string_each() {
    let value = read(KEY, VXLAN).0.value();
    let value: serde_json::Value = serde_json::from_slice(&value).unwrap();
    for field in ["BackendData", "BackendV6Data"] {
        assert_eq!(value[field].to_string().split(r#":""#).count(), 2, "{}", value[field]);
    }
}
