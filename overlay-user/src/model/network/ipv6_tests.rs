//! Tests of configs with both families: flannel's defaults and limits, and what is said of wrong fields.
use super::*;

fn parse(fields: &str) -> Result<NetworkConfig, String> {
    let text =
        format!(r#"{{"Network":"10.244.0.0/16","EnableIPv6":true,{fields},"Backend":{{"Type":"vxlan"}}}}"#);
    NetworkConfig::parse_both_families(text.as_bytes()).map_err(|error| error.to_string())
}

fn plan(fields: &str) -> AddressPlan {
    parse(fields).unwrap().ipv6.unwrap()
}

#[test]
fn flannels_defaults_and_limits() {
    for (network, len, min, max) in [
        ("fd00:244::/48", 64, "fd00:244:0:1::", "fd00:244:0:ffff::"),
        ("2001:db8::/62", 64, "2001:db8:0:1::", "2001:db8:0:3::"),
        ("2001:db8::/63", 65, "2001:db8:0:0:8000::", "2001:db8:0:1:8000::"),
        ("fd00:1:2:3::/64", 66, "fd00:1:2:3:4000::", "fd00:1:2:3:c000::"),
        ("fd00::/124", 126, "fd00::4", "fd00::c"),
        ("fc00::/7", 64, "fc00:0:0:1::", "fdff:ffff:ffff:ffff::"),
    ] {
        let plan = plan(&format!(r#""IPv6Network":"{network}""#));
        assert_eq!(plan.network.to_string(), network);
        assert_eq!(plan.subnet_len, len, "{network}");
        assert_eq!((plan.subnet_min.to_string().as_str(), plan.subnet_max.to_string().as_str()), (min, max));
        assert_eq!(plan.candidate(0).unwrap().addr(), plan.subnet_min);
        assert_eq!(plan.candidate(plan.count() - 1).unwrap().addr(), plan.subnet_max);
        assert_eq!(plan.candidate(plan.count()), None);
        assert!(plan.is_whole(), "{network}");
    }
}

#[test]
fn every_field_counts_and_is_written_out_again() {
    let config = parse(
        r#""ipv6network":"fd00:244::7/48","IPv6SubnetLen":60,"ipv6subnetmin":"fd00:244:0:20::","IPv6SubnetMax":"fd00:244:0:70::""#,
    )
    .unwrap();
    let plan = config.ipv6.unwrap();
    // As in IPv4, flannel cuts host bits off.
    assert_eq!(plan.network.to_string(), "fd00:244::/48");
    assert_eq!((plan.subnet_len, plan.count()), (60, 6));
    assert!(plan.fits("fd00:244:0:30::/60".parse().unwrap()));
    for elsewhere in ["fd00:244:0:10::/60", "fd00:244:0:80::/60", "fd00:244:0:30::/64", "fd00:244:0:31::/60"]
    {
        assert!(!plan.fits(elsewhere.parse().unwrap()), "{elsewhere}");
    }
    assert!(!plan.is_whole());
    assert_eq!(NetworkConfig::parse_both_families(config.to_json().as_bytes()), Ok(config.clone()));
    assert!(
        config.to_json().contains(r#""EnableIPv6":true,"IPv6Network":"fd00:244::/48","IPv6SubnetLen":60"#)
    );
    let left_out =
        r#""IPv6Network":"fd00:244::/48","IPv6SubnetLen":0,"IPv6SubnetMin":null,"IPv6SubnetMax":"::""#;
    assert_eq!(parse(left_out), parse(r#""IPv6Network":"fd00:244::/48""#));
}

#[test]
fn a_network_without_ipv6_has_none_whatever_its_fields_say() {
    let text = br#"{"Network":"10.244.0.0/16","IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}"#;
    let config = NetworkConfig::parse_both_families(text).unwrap();
    assert_eq!(config.ipv6, None);
    assert!(!config.to_json().contains("IPv6"), "{}", config.to_json());
}

#[test]
fn what_this_agent_does_not_carry_it_does_not_lease() {
    let text = br#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}"#;
    let read = NetworkConfig::parse(text).map_err(|error| error.to_string());
    if IPV6_CARRIED {
        assert!(read.unwrap().ipv6.is_some());
    } else {
        assert!(read.unwrap_err().contains("EnableIPv6 is true, but only IPv4 overlays are supported"));
    }
}

#[test]
fn errors_name_field_value_and_remedy() {
    let network = r#""IPv6Network":"fd00:244::/48""#;
    for (fields, says) in [
        (String::from(r#""SubnetLen":24"#), "IPv6Network is missing, but it must be an IPv6 range such as"),
        (r#""IPv6Network":"10.0.0.0/8""#.into(), "IPv6Network is 10.0.0.0/8, but it must be an IPv6 range"),
        (r#""IPv6Network":"fd00:244::""#.into(), "IPv6Network is \"fd00:244::\", but it must be a range"),
        (r#""IPv6Network":null"#.into(), "IPv6Network is null"),
        (r#""IPv6Network":"fd00::/125""#.into(), "IPv6Network is fd00::/125, but it must be a /1 to a /124"),
        (r#""IPv6Network":"::/0""#.into(), "IPv6Network is ::/0, but it must be a /1 to a /124"),
        (r#""IPv6Network":"8000::/1""#.into(), "it must not overlap fe80::/10, addresses of a single link"),
        (r#""IPv6Network":"fe80::/64""#.into(), "it must not overlap fe80::/10"),
        (r#""IPv6Network":"ff05::/16""#.into(), "it must not overlap ff00::/8, multicast"),
        (r#""IPv6Network":"::ffff:10.0.0.0/112""#.into(), "it must not overlap ::/8"),
        (format!(r#"{network},"IPv6SubnetLen":49"#), "IPv6SubnetLen is 49, but it must be 50 to 126"),
        (format!(r#"{network},"IPv6SubnetLen":127"#), "IPv6SubnetLen is 127"),
        (format!(r#"{network},"IPv6SubnetLen":300"#), "IPv6SubnetLen is 300"),
        (
            format!(r#"{network},"IPv6SubnetMin":"fd00:245::""#),
            "IPv6SubnetMin is fd00:245::, but it must be the first address of a /64 inside fd00:244::/48",
        ),
        (format!(r#"{network},"IPv6SubnetMax":"fd00:244:0:7::1""#), "IPv6SubnetMax is fd00:244:0:7::1"),
        (format!(r#"{network},"IPv6SubnetMin":"10.0.0.0""#), "IPv6SubnetMin is 10.0.0.0"),
        (
            format!(r#"{network},"IPv6SubnetMin":"fd00:244:0:9::","IPv6SubnetMax":"fd00:244:0:8::""#),
            "IPv6SubnetMin is fd00:244:0:9::, but IPv6SubnetMax is fd00:244:0:8::: swap them",
        ),
        (
            format!(r#"{network},"EnableIPv4":false"#),
            "EnableIPv4 is false, but a lease's key begins with an IPv4",
        ),
        (format!(r#"{network},"Network":"10.0.0.0/29""#), "Network is 10.0.0.0/29"),
    ] {
        let error = parse(&fields).unwrap_err();
        assert!(error.contains(says), "{fields}: {error}");
    }
    let udp = br#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48"}"#;
    let error = NetworkConfig::parse_both_families(udp).unwrap_err().to_string();
    assert!(error.contains("flannel's udp backend carries IPv4 alone"), "{error}");
}
