//! Tests of which agent may adopt, lock and remove what.
use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::*;
use crate::model::network::NetworkConfig;

fn paths(folder: &Path) -> Paths {
    let paths = Paths::new(&folder.join("bpf"), &folder.join("state"), "default");
    // This folder is not on bpffs, which needs root. Only `create` asks for bpffs.
    fs::create_dir_all(&paths.pins).unwrap();
    fs::create_dir_all(&paths.state).unwrap();
    paths
}

fn record() -> Record {
    Record::current([192, 168, 0, 1].into(), "10.244.1.0/24".parse().unwrap()).unwrap()
}

#[test]
fn the_second_agent_is_told_who_runs() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    let first = paths.lock().unwrap();
    let refusal = paths.lock().unwrap_err().to_string();
    assert!(refusal.contains(&format!("another agent (pid {})", std::process::id())), "{refusal}");
    drop(first);
    paths.lock().unwrap();
}

#[test]
fn nobody_else_can_hold_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    // An earlier agent made this file readable for all.
    fs::write(paths.lock_path(), "").unwrap();
    fs::set_permissions(paths.lock_path(), fs::Permissions::from_mode(0o644)).unwrap();
    let _lock = paths.lock().unwrap();
    assert_eq!(fs::metadata(paths.lock_path()).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn what_another_network_of_the_host_has_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    let other = Paths::new(&folder.path().join("bpf"), &folder.path().join("state"), "blue");
    fs::create_dir_all(&other.state).unwrap();
    let has = Record { device: Some("overlay0".into()), subnet_file: Some("/run/env".into()), ..record() };
    other.adopt(&has).unwrap();
    let refusal = paths.refuse_shared_device("overlay0").unwrap_err().to_string();
    assert!(refusal.starts_with("interface overlay0 is network blue's on this host: "), "{refusal}");
    assert!(refusal.contains("--device") && refusal.contains("overlay down --network blue"), "{refusal}");
    let refusal = paths.refuse_shared_file(Path::new("/run/env")).unwrap_err().to_string();
    assert!(refusal.contains("/run/env is network blue's") && refusal.contains("--subnet-file"), "{refusal}");
    paths.refuse_shared_device("overlay1").unwrap();
    paths.refuse_shared_file(Path::new("/run/other")).unwrap();
    // Its own record does not count as another network's.
    other.refuse_shared_device("overlay0").unwrap();
    // Records of an earlier boot or of another network namespace, and a record that cannot be read.
    for gone in [Record { boot_id: "earlier".into(), ..has.clone() }, Record { netns: 1, ..has }] {
        other.write(&gone).unwrap();
        paths.refuse_shared_device("overlay0").unwrap();
    }
    fs::write(other.record_path(), "{").unwrap();
    paths.refuse_shared_device("overlay0").unwrap();
}

#[test]
fn a_config_without_room_for_what_runs_here_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    let config = |bounds: &str| {
        let text = format!(r#"{{"Network":"10.244.0.0/16"{bounds},"Backend":{{"Type":"vxlan"}}}}"#);
        NetworkConfig::parse(text.as_bytes()).unwrap()
    };
    let (narrow, ip) = (config(r#","SubnetMin":"10.244.9.0""#), record().public_ip);
    paths.refuse_moved(ip, &narrow).unwrap();
    paths.adopt(&record()).unwrap();
    paths.refuse_moved(ip, &config("")).unwrap();
    let refusal = paths.refuse_moved(ip, &narrow).unwrap_err().to_string();
    assert!(refusal.contains("no subnet 10.244.1.0/24 any more"), "{refusal}");
    assert!(refusal.contains("`overlay down --network default`"), "{refusal}");
    paths.write(&Record { boot_id: "earlier".into(), ..record() }).unwrap();
    paths.refuse_moved(ip, &narrow).unwrap();
}

#[test]
fn nothing_is_left_of_a_removed_network() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    let lock = paths.lock().unwrap();
    paths.adopt(&record()).unwrap();
    fs::write(paths.pins.join("PEERS"), "").unwrap();
    paths.remove(lock).unwrap();
    let left = |root: &str| fs::read_dir(folder.path().join(root)).unwrap().count();
    assert_eq!((left("bpf"), left("state")), (0, 0));
}

#[test]
fn only_the_same_host_adopts() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    let ours = record();
    assert_eq!(paths.adopt(&ours).unwrap(), Adoption::Fresh);
    fs::write(paths.pins.join("PEERS"), "").unwrap();
    assert_eq!(paths.adopt(&ours).unwrap(), Adoption::Adopt);
    // What can be known before the store is asked for a subnet is reported then.
    paths.refuse_foreign(ours.public_ip).unwrap();
    let foreign = paths.refuse_foreign([192, 168, 0, 2].into()).unwrap_err().to_string();
    assert!(foreign.starts_with("the pins in ") && foreign.contains(" belong to "), "{foreign}");

    let others = [
        Record { netns: 1, ..ours.clone() },
        Record { public_ip: [192, 168, 0, 2].into(), ..ours.clone() },
        Record { subnet: "10.244.2.0/24".parse().unwrap(), ..ours.clone() },
    ];
    for other in others {
        let refusal = paths.adopt(&other).unwrap_err().to_string();
        assert!(
            refusal.contains(&format!("belong to {}, not to {}", ours.owner(), other.owner())),
            "{refusal}"
        );
        assert!(refusal.contains("overlay down --network default"), "{refusal}");
    }
    assert!(paths.pins.join("PEERS").exists());
}

#[test]
fn leftovers_of_an_earlier_boot_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    let earlier = Record { boot_id: "earlier".into(), netns: 1, ..record() };
    assert_eq!(paths.adopt(&earlier).unwrap(), Adoption::Fresh);
    fs::write(paths.pins.join("PEERS"), "").unwrap();
    assert_eq!(paths.adopt(&record()).unwrap(), Adoption::Fresh);
    assert!(!paths.pins.join("PEERS").exists());
    assert_eq!(paths.record().unwrap(), Some(record()));
}

#[test]
fn pins_without_a_record_are_nobodys_to_take() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    fs::write(paths.pins.join("PEERS"), "").unwrap();
    let foreign = paths.adopt(&record()).unwrap_err().to_string();
    assert!(foreign.contains(" belong to a host whose record is not in "), "{foreign}");
    fs::write(paths.state.join("record.json"), "{").unwrap();
    assert!(paths.adopt(&record()).unwrap_err().to_string().starts_with("read "));
}

#[test]
fn a_root_that_is_not_bpffs_is_refused_with_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = paths(folder.path()).create().unwrap_err().to_string();
    assert!(refusal.contains("mount -t bpf bpf /sys/fs/bpf"), "{refusal}");
}

/// Makes a pin below `overlay/<layout>/<network>`.
fn pinned(paths: &Paths, layout: &str, network: &str) -> PathBuf {
    let folder = paths.bpf_root.join("overlay").join(layout).join(network);
    fs::create_dir_all(folder.join("links")).unwrap();
    fs::write(folder.join("peers"), "").unwrap();
    folder
}

#[test]
fn a_layout_that_nobody_here_reads_is_refused_and_only_down_removes_it() {
    for layout in ["v999", "v0", "v", "vx", "somebody"] {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths(folder.path());
        let (other, networks) = (pinned(&paths, layout, "default"), pinned(&paths, layout, "other"));
        paths.adopt(&Record { abi: 999, ..record() }).unwrap_err();
        let refusal = paths.older().unwrap_err().to_string();
        let words =
            [&other.display().to_string(), "does not know", "newer agent", "overlay down --network default"];
        assert!(words.iter().all(|words| refusal.contains(words)), "{refusal}");
        assert!(other.join("peers").exists());

        paths.remove(paths.lock().unwrap()).unwrap();
        assert!(!other.exists());
        assert!(networks.exists(), "another network's pins are not ours to remove");
    }
}

#[test]
fn what_was_not_finished_and_what_is_empty_is_no_layout() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    pinned(&paths, "filling", "default");
    pinned(&paths, "v999", "other");
    // An agent makes its folders before it knows whether it may start.
    fs::create_dir_all(paths.bpf_root.join("overlay/v999/default/links")).unwrap();
    assert_eq!(paths.older().unwrap(), []);
    assert_eq!(paths.adopt(&record()).unwrap(), Adoption::Fresh);
}

/// An agent of a host whose own address has changed adopts what is here; nobody else does.
#[test]
fn pins_stay_a_hosts_own_when_its_address_changes() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    let old = record().public_ip;
    let new: std::net::IpAddr = [192, 168, 0, 77].into();
    assert_eq!(paths.former_ip(new).unwrap(), None, "nothing is here");
    let own = Record { underlay_address: Some(old), ..record() };
    for (recorded, former) in [
        (own.clone(), Some(old)),
        // The address was a NAT's, or an agent of an earlier version did not say whose.
        (Record { underlay_address: Some([10, 0, 0, 1].into()), ..own.clone() }, None),
        (Record { underlay_address: None, ..own.clone() }, None),
        (Record { boot_id: "earlier".into(), ..own.clone() }, None),
        (Record { netns: 1, ..own.clone() }, None),
    ] {
        paths.write(&recorded).unwrap();
        assert_eq!(paths.former_ip(new).unwrap(), former, "{recorded:?}");
        assert_eq!(paths.former_ip(old).unwrap(), None, "{recorded:?}");
    }
    paths.write(&own).unwrap();
    let moved = Record { public_ip: new, ..own };
    assert!(paths.adopt(&moved).is_err());
    paths.follow(new).unwrap();
    assert_eq!(paths.adopt(&moved).unwrap(), Adoption::Adopt);
}
