//! Which jobs run beside which, and what is said of them.
use super::*;

fn job(name: &str, kind: Kind, script: &str) -> Job {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    Job { name: name.to_owned(), kind, commands: vec![command] }
}

#[test]
fn all_run_and_every_failure_is_named_the_first_first() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = vec![
        job("a/one", Kind::Other, "echo out; echo err >&2"),
        job("late", Kind::Other, "sleep 0.2; exit 4"),
        job("early", Kind::Other, "exit 3"),
        job("ended", Kind::Other, "true"),
    ];
    let error = run(jobs, folder.path()).unwrap_err().to_string();
    let (first, second) = (error.find("early").unwrap(), error.find("late").unwrap());
    assert!(first < second && error.starts_with("2 of 4 jobs failed"), "{error}");
    assert!(fs::read_to_string(folder.path().join("a-one.txt")).unwrap().ends_with("\nout\nerr\n"));
}

#[test]
fn jobs_that_look_at_the_time_never_run_beside_each_other_while_one_computes() {
    let folder = tempfile::tempdir().unwrap();
    let (mark, over) = (folder.path().join("mark"), folder.path().join("over"));
    let until_over = format!("until [ -e '{}' ]; do sleep 0.01; done", over.display());
    let mut jobs = vec![job("computing", Kind::Computing, &until_over)];
    // Each makes a folder that must not be there, and takes it away again.
    let alone = format!("mkdir '{0}' && sleep 0.05 && rmdir '{0}'", mark.display());
    jobs.extend((0..5).map(|number| job(&number.to_string(), Kind::Timed, &alone)));
    let last = format!("mkdir '{}' && touch '{}'", mark.display(), over.display());
    jobs.push(job("last", Kind::Timed, &last));
    run(jobs, folder.path()).unwrap();
}

#[test]
fn two_of_them_run_at_once_while_none_computes() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    // Each waits for the other's file.
    let meet = |own: &str, other: &str| {
        let script = format!("touch '{}'; until [ -e '{}' ]; do sleep 0.01; done", file(own), file(other));
        job(own, Kind::Timed, &format!("timeout 60 sh -c \"{script}\""))
    };
    run(vec![meet("one", "other"), meet("other", "one")], folder.path()).unwrap();
    let board =
        |running: &[Kind]| Board { waiting: VecDeque::new(), running: running.to_vec(), ended: Vec::new() };
    assert!(!board(&[Kind::Timed, Kind::Timed]).may_begin(Kind::Timed));
    assert!(board(&[Kind::Timed, Kind::Timed]).may_begin(Kind::Other));
    assert!(board(&[Kind::Computing, Kind::Computing]).may_begin(Kind::Timed));
}

#[test]
fn a_job_that_computes_is_nice_and_what_it_spends_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut computing = job(
        "computing",
        Kind::Computing,
        "nice; echo $WORD; pwd; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done",
    );
    computing.commands[0].env("WORD", "kept").current_dir(folder.path());
    let mut cpu = Duration::ZERO;
    let file = folder.path().join("out");
    carry_out(computing.kind, computing.commands, &file, &mut cpu).unwrap();
    let said = fs::read_to_string(&file).unwrap();
    // These tests may run in a job that is nice itself; 19 is the most.
    let own = Command::new("nice").output().unwrap().stdout;
    let own: u32 = String::from_utf8(own).unwrap().trim().parse().unwrap();
    let niceness = (own + NICENESS.parse::<u32>().unwrap()).min(19);
    let place = folder.path().canonicalize().unwrap();
    assert!(said.ends_with(&format!("\n{niceness}\nkept\n{}\n", place.display())), "{said}");
    assert!(cpu > Duration::ZERO);
    let ended = Ended {
        name: "computing".into(),
        time: Duration::from_secs(60),
        cpu: Duration::from_secs(30),
        result: Ok(()),
    };
    let table = table(&[ended], Duration::from_secs(90));
    assert!(table.contains("1.0 min   0.5 min\n") && table.ends_with("1.5 min   0.5 min"), "{table}");
}

#[test]
fn a_command_that_fails_is_its_jobs_last() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = job("x", Kind::Other, "exit 1");
    first.commands.extend(job("x", Kind::Other, "echo never").commands);
    run(vec![first], folder.path()).unwrap_err();
    assert!(!fs::read_to_string(folder.path().join("x.txt")).unwrap().ends_with("never\n"));
}
