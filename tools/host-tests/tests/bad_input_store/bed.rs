//! An etcd for one test, and leases that are written into it by hand.
use overlay_host_tests::{hosts::CONFIG, overlay as binary};
use overlay_lab::{Lab, etcd::Etcd};

pub const SUBNETS: &str = "/coreos.com/network/subnets";
pub const MAC: &str = r#""BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}"#;

/// Starts an etcd that all hosts reach.
pub fn etcd(lab: &Lab) -> Etcd {
    Etcd::start_in_netns(&lab.folder(), lab.switch().name(), Lab::SWITCH).unwrap()
}

pub fn configured(lab: &Lab) -> Etcd {
    let etcd = etcd(lab);
    etcd.ctl(&["put", "/coreos.com/network/config", CONFIG]).unwrap();
    etcd
}

pub fn put(etcd: &Etcd, key: &str, value: &str) {
    etcd.ctl(&["put", &format!("{SUBNETS}/{key}"), value]).unwrap();
}

/// Writes a lease of a host that does not exist.
pub fn lease(etcd: &Etcd, third: u8) {
    put(etcd, &format!("10.244.{third}.0-24"), &format!(r#"{{"PublicIP":"10.99.0.{third}",{MAC}}}"#));
}

/// The subnets in force on a host, as the pinned maps say.
pub fn in_force(host: &overlay_lab::Host) -> Vec<String> {
    let said = host.overlay(binary(), &["peers", "--json"]).unwrap();
    let rows: serde_json::Value = serde_json::from_str(&said).unwrap();
    let rows = rows.as_array().unwrap().iter();
    rows.filter(|row| row["installed"] != "no")
        .map(|row| row["subnet"].as_str().unwrap().to_owned())
        .collect()
}
