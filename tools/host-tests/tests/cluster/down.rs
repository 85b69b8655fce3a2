//! `overlay down` leaves nothing behind, and a new agent brings everything back.
use super::bed::{Bed, Kind, assert_reaches, ids, overlay, pins, wait_for};

#[test]
fn down_leaves_no_trace_and_up_again_works() {
    let mut bed = Bed::new(Kind::Folder, 2);
    bed.learn_all();
    let (a, b) = bed.pair();
    let (a, b) = (a.clone(), b.clone());
    let host = bed[0].host.clone();
    let exists = |kind: &str, id: u64| {
        let id = id.to_string();
        overlay_lab::command::run("bpftool", ["-j", kind, "show", "id", &id]).is_ok()
    };

    // It refuses under a running agent, which would put everything back.
    let refused = bed[0].overlay(&["down"]).unwrap_err().to_string();
    let pid = bed[0].agent().unwrap().pid().unwrap();
    assert!(refused.contains("exit status: 1") && refused.contains(&format!("kill {pid}")), "{refused}");
    assert_reaches(&a, b.address());

    bed[0].end_agent().unwrap();
    let loaded = ids(&bed[0]);
    assert!(loaded.links.iter().all(|(_, id)| exists("link", *id)), "{loaded:?}");
    let said = bed[0].overlay(&["down"]).unwrap();
    assert!(said.contains("network default is gone from this host"), "{said}");
    assert!(host.exec("ip link show dev overlay0").is_err());
    assert_eq!(host.exec("ip route show 10.244.0.0/16").unwrap(), "");
    for (kind, objects) in
        [("map", &loaded.maps), ("map", &loaded.indexes), ("link", &loaded.links), ("prog", &loaded.programs)]
    {
        for (name, id) in objects {
            // The kernel frees unused objects a moment later.
            wait_for(&format!("the end of {kind} {name}"), || !exists(kind, *id));
        }
    }
    for folder in
        [pins(&bed[0]), host.bpf_root().join("overlay"), host.folder().join("state").join("default")]
    {
        assert!(!folder.exists(), "{} is left", folder.display());
    }
    let refused = bed[0].overlay(&["status"]).unwrap_err().to_string();
    assert!(refused.contains("there is no network default on this host"), "{refused}");
    // A second `overlay down` is no error, because scripts only want the network to be gone.
    bed[0].overlay(&["down"]).unwrap();
    assert!(!host.folder().join("state").join("default").exists());

    bed[0].restart_agent().unwrap();
    assert_eq!(bed[0].agent().unwrap().subnet().unwrap().0, bed[0].subnet);
    bed.wait_for_peers(1);
    bed.learn_all();
    let before = bed[0].counters().unwrap().carried();
    assert_reaches(&b, a.address());
    let after = bed[0].counters().unwrap().carried();
    assert!(after.fast_out > before.fast_out && after.fast_in > before.fast_in, "{before:?} {after:?}");
}

#[test]
fn help_and_exit_codes_are_what_scripts_rely_on() {
    let run = |words: &[&str]| std::process::Command::new(overlay()).args(words).output().unwrap();
    let help = run(&["down", "--help"]);
    let text = String::from_utf8(help.stdout).unwrap();
    assert_eq!(help.status.code(), Some(0));
    assert!(
        text.contains("Removes every trace of a network from this host") && text.contains("--bpf-root"),
        "{text}"
    );
    assert_eq!(run(&["down", "--nonsense"]).status.code(), Some(2));
    let nowhere = ["--state-dir", "/nonexistent/state", "--bpf-root", "/nonexistent/bpf"];
    let status = run(&[&["status"], &nowhere[..]].concat());
    assert_eq!((status.status.code(), status.stdout.is_empty()), (Some(1), true));
}
