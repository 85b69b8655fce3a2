//! Tests of what one agent writes down for the next. The time is paused.
use std::path::Path;

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::model::backend::Backend;

const SOON: Duration = Duration::from_secs(10);

fn subnets(range: std::ops::Range<u8>) -> Vec<IpNet> {
    range.map(|n| format!("10.244.{n}.0/24").parse().unwrap()).collect()
}

fn guard(held: &[IpNet], let_through: &[IpNet]) -> Guard {
    let now = Instant::now();
    let let_through = let_through.iter().map(|subnet| (*subnet, now)).collect();
    Guard::restored(held.iter().copied().collect(), let_through)
}

/// A state folder, and the task that keeps the files in it.
fn keep() -> (TempDir, Paths, watch::Sender<Status>, JoinHandle<Result<()>>) {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::new(Path::new("/nowhere"), folder.path(), "default");
    fs::create_dir_all(&paths.state).unwrap();
    let subnet = subnets(1..2)[0];
    let status = Status::new([10, 99, 0, 1].into(), subnet, subnet, Backend::DEFAULT);
    let status = watch::Sender::new(status);
    let task = tokio::spawn(keep_noted(paths.clone(), status.clone()));
    (folder, paths, status, task)
}

fn say(status: &watch::Sender<Status>, revision: i64, guard: &Guard) {
    status.send_modify(|status| {
        (status.store.following, status.store.cluster, status.store.revision) = (true, 7, revision);
        status.peers.held = guard.held().iter().copied().collect();
        status.peers.guard = Some(guard.clone());
    });
}

#[tokio::test(start_paused = true)]
async fn the_next_agent_knows_what_was_held_back_and_what_was_let_through() {
    let (_folder, paths, status, _task) = keep();
    assert!(read(&paths).is_none());
    say(&status, 5, &Guard::default());
    sleep(SOON).await;
    assert!(!paths.removals_path().exists(), "there is nothing to know");
    let known = guard(&subnets(2..5), &subnets(5..20));
    say(&status, 9, &known);
    sleep(SOON).await;
    let Noted { origin, guard: found } = read(&paths).unwrap();
    assert_eq!(origin, Origin { cluster: 7, revision: Revision(5) }, "it stays while removals are held");
    assert_eq!(found.held(), known.held());
    assert!(found.let_through().keys().eq(known.let_through().keys()));
    assert!(found.let_through().values().all(|when| when.elapsed() < WINDOW / 2));
    say(&status, 9, &Guard::default());
    sleep(SOON).await;
    assert_eq!(read(&paths).unwrap().origin.revision, Revision(9));
    assert!(!paths.removals_path().exists());
}

#[tokio::test(start_paused = true)]
async fn what_was_let_through_long_ago_is_forgotten_and_what_cannot_be_read_is_nothing() {
    let (_folder, paths, _status, task) = keep();
    task.abort();
    let old = unix_now() - WINDOW.as_secs();
    let to_come = unix_now() + 86_400;
    let text = format!(
        r#"{{"held":["10.244.2.0/24"],"let_through":{{"10.244.3.0/24":{old},"10.244.4.0/24":{to_come}}}}}"#
    );
    fs::write(paths.removals_path(), text).unwrap();
    let found = read_guard(&paths);
    assert_eq!(found, guard(&subnets(2..3), &subnets(4..5)));
    fs::write(paths.removals_path(), "{").unwrap();
    assert_eq!(read_guard(&paths), Guard::default());
}

#[tokio::test(start_paused = true)]
async fn files_that_somebody_removes_are_written_again_while_removals_are_held_too() {
    let (_folder, paths, status, _task) = keep();
    let known = guard(&subnets(2..5), &[]);
    say(&status, 5, &Guard::default());
    sleep(SOON).await;
    say(&status, 9, &known);
    sleep(SOON).await;
    for removed in [paths.origin_path(), paths.removals_path()] {
        let text = fs::read(&removed).unwrap();
        fs::remove_file(&removed).unwrap();
        sleep(SOON).await;
        assert_eq!(fs::read(&removed).unwrap(), text);
    }
    assert_eq!(status.borrow().state.files_restored, 2);
    // With the whole folder, too, as soon as it can be written.
    fs::remove_dir_all(&paths.state).unwrap();
    sleep(SOON).await;
    assert!(status.borrow().state.error.is_some());
    fs::create_dir_all(&paths.state).unwrap();
    sleep(SOON).await;
    assert_eq!((status.borrow().state.error.clone(), status.borrow().state.files_restored), (None, 4));
    assert_eq!(read(&paths).unwrap().guard.held(), known.held());
}
