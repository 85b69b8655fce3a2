//! The agent's state on bpffs and beside it.
use nix::{
    mount::{MsFlags, mount, umount},
    sched::{CloneFlags, unshare},
};
use overlay_common::ABI;
use overlay_user::datapath::state::{Adoption, Paths, Record};

use super::bed::in_namespace;

#[test]
fn state_lives_on_bpffs_and_leaves_no_trace() {
    in_namespace(|| async {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("bpf");
        std::fs::create_dir(&root).unwrap();
        // The mount is this thread's own and ends with it.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        mount(none, "/", none, private, none).unwrap();
        mount(Some("bpf"), &root, Some("bpf"), MsFlags::empty(), none).unwrap();

        let paths = Paths::new(&root, &folder.path().join("state"), "default");
        paths.create().unwrap();
        let lock = paths.lock().unwrap();
        let record = Record::current([192, 168, 0, 1].into(), "10.244.1.0/24".parse().unwrap()).unwrap();
        assert_eq!(paths.adopt(&record).unwrap(), Adoption::Fresh);
        assert!(root.join(format!("overlay/v{ABI}/default")).is_dir());
        paths.remove(lock).unwrap();
        assert!(!root.join("overlay").exists());
        umount(&root).unwrap();
    });
}
