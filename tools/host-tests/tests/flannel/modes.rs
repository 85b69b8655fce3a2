//! The backends udp and host-gw: configs and leases in the store.
use super::bed::{Bed, Mode, flannels, json, lease_key, peers, wait_for};

/// A lease's value with `more` after its address.
fn value(last: u8, more: &str) -> String {
    format!(r#"{{"PublicIP":"10.99.0.{last}","PublicIPv6":null{more}}}"#)
}

#[test]
fn i1_leases_of_udp_mode_and_host_gw_are_read_and_written_byte_for_byte() {
    // The field names are in other cases, and fields are missing that flannel can do without.
    let udp = (Mode::Udp, r#"{"network":"10.244.3.4/16","SubnetLen":24,"SUBNETMAX":"10.244.63.0"}"#);
    let host_gw = (
        Mode::HostGw,
        r#"{"NETWORK":"10.244.3.4/16","SubnetMax":"10.244.63.0","backend":{"type":"Host-GW","Unknown":1}}"#,
    );
    let vxlan = r#","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"7a:75:0d:2d:88:95"}"#;
    let ipip = r#","BackendType":"ipip""#;
    for (flannel, (mode, config)) in
        flannels().iter().flat_map(|flannel| [udp, host_gw].map(|mode| (flannel, mode)))
    {
        let mut bed = Bed::with(flannel, 1, 1, config, mode.underlay());
        let (ours, theirs) = (&bed.ours[0], &bed.flannel[0]);
        let mut expected = vec![
            (lease_key(&ours.subnet), mode.lease(ours.host.address(), "")),
            (lease_key(&theirs.subnet), theirs.lease()),
        ];
        expected.sort();
        assert_eq!(bed.leases(), expected);

        // These leases are of this backend, as flannels of several ages wrote them, and of other backends.
        let (good, other, missing) = match mode {
            Mode::HostGw => (
                [
                    r#"{"PublicIP":"10.99.0.101","BackendType":"host-gw"}"#,
                    r#"{"publicip":"10.99.0.102","PublicIPv6":"fd99::1","backendtype":"host-gw"}"#,
                ],
                [("vxlan", vxlan), ("ipip", ipip)],
                Some(value(105, "")),
            ),
            _ => (
                [
                    r#"{"PublicIP":"10.99.0.101"}"#,
                    r#"{"publicip":"10.99.0.102","PublicIPv6":"fd99::1","New":true}"#,
                ],
                [("vxlan", vxlan), ("host-gw", r#","BackendType":"host-gw""#)],
                None,
            ),
        };
        let mut put = |number: u8, value: &str| {
            bed.etcd().ctl(&["put", &lease_key(&format!("10.244.{number}.0/24")), value]).unwrap();
        };
        put(241, good[0]);
        put(242, good[1]);
        put(243, &value(103, other[0].1));
        put(244, &value(104, other[1].1));
        if let Some(value) = &missing {
            put(245, value);
        }
        let mut known = vec![bed.flannel[0].peer()];
        known.extend([1, 2].map(|n| (format!("10.244.24{n}.0/24"), format!("10.99.0.10{n}"), String::new())));
        known.sort();
        let now = |bed: &Bed| {
            let mut now = peers(&bed.ours[0]);
            now.sort();
            now
        };
        wait_for("two more peers", || now(&bed) == known);
        let name = if mode == Mode::Udp { "udp" } else { "host-gw" };
        let mut why = vec![
            ("10.244.243.0-24", format!("BackendType is {}, not {name}", other[0].0)),
            ("10.244.244.0-24", format!("BackendType is {}, not {name}", other[1].0)),
        ];
        if missing.is_some() {
            why.push(("10.244.245.0-24", format!("BackendType is missing, not {name}")));
        }
        let skipped = json(&bed.ours[0], &["status"])["agent"]["peers"]["skipped"].clone();
        let skipped: Vec<_> = skipped
            .as_array()
            .unwrap()
            .iter()
            .map(|skipped| (skipped["key"].as_str().unwrap(), skipped["why"].as_str().unwrap().to_owned()))
            .collect();
        assert_eq!(skipped, why);

        let theirs = &bed.flannel[0];
        for n in [1, 2] {
            wait_for("flannel to follow", || theirs.knows(&format!("10.244.24{n}.0/24")));
        }
        // flannel's UDP relay makes a route of a lease, whatever its type.
        wait_for("flannel's view of a vxlan lease", || {
            theirs.knows("10.244.243.0/24") == (mode == Mode::Udp)
        });
        bed.assert_all_reached();
    }
}
