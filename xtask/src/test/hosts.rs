//! The jobs of the rung `hosts`: which files of tests, or parts of them, may run beside others.
use super::{
    lanes::{Job, Kind},
    programs::TestProgram,
};

/// A file of tests that send few packets and compare them without looking at the time, so that they may run beside others. They do
/// wait for things to happen, but for as long as a busy machine may need.
struct Beside {
    file: &'static str,
    /// How many of its tests run at once, as most of them wait for agents half of the time.
    at_a_time: usize,
    /// Those of its modules whose tests do look at the time, or send so much that others would notice. They are a job of their own, of
    /// a kind of which few run at once.
    timed: &'static [&'static str],
}

const BESIDE_HOSTS: &[Beside] = &[
    Beside { file: "rules", at_a_time: 2, timed: &["troubled"] },
    Beside { file: "docker", at_a_time: 1, timed: &[] },
    Beside { file: "kernels", at_a_time: 1, timed: &[] },
    Beside { file: "routes", at_a_time: 1, timed: &["moving"] },
];

/// The jobs of a file of tests with hosts. Together they run each of its tests once.
pub(super) fn jobs(program: &TestProgram) -> Vec<Job> {
    let file = program.name.as_str();
    let job = |name: String, kind, command| Job { name, kind, commands: vec![command] };
    let Some(beside) = BESIDE_HOSTS.iter().find(|beside| beside.file == file) else {
        // One after the other: hosts under load on few cores disturb each other's timing.
        return vec![job(format!("hosts/{file}"), Kind::Timed, program.command(Some(1)))];
    };
    let mut rest = program.command(Some(beside.at_a_time));
    let mut timed = program.command(Some(1));
    for module in beside.timed {
        // What the names of the module's tests begin with.
        let tests = format!("{file}::{module}::");
        rest.args(["--skip", &tests]);
        timed.arg(tests);
    }
    let mut jobs = vec![job(format!("hosts/{file}"), Kind::Other, rest)];
    if !beside.timed.is_empty() {
        jobs.push(job(format!("hosts/{file}-timed"), Kind::Timed, timed));
    }
    jobs
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use overlay_project::project::root;

    use super::*;

    /// Whether a program of tests that is started so runs the test of this name, by the rules of Rust's test harness: a name is
    /// skipped if a word behind `--skip` is in it, and if there are other words, one of them must be in it.
    fn runs(command: &Command, test: &str) -> bool {
        let mut words = command.get_args().map(|word| word.to_str().unwrap());
        let (mut skipped, mut wanted) = (Vec::new(), Vec::new());
        while let Some(word) = words.next() {
            match word {
                "--skip" => skipped.push(words.next().unwrap()),
                _ if word.starts_with("--test-threads=") => {}
                _ => wanted.push(word),
            }
        }
        let is_in = |all: &[&str]| all.iter().any(|word| test.contains(word));
        !is_in(&skipped) && (wanted.is_empty() || is_in(&wanted))
    }

    #[test]
    fn the_jobs_of_a_file_run_each_of_its_tests_once() {
        let of_rules = ["rules::compare::rows", "rules::troubled::many", "rules::troubled_not", "traffic::x"];
        for (file, tests) in [("rules", &of_rules[..]), ("docker", &["docker::x"]), ("cluster", &["tc::x"])] {
            let jobs = jobs(&TestProgram::named(file));
            assert_eq!(jobs[0].name, format!("hosts/{file}"));
            for test in tests {
                let running = jobs.iter().flat_map(|job| &job.commands).filter(|command| runs(command, test));
                assert_eq!(running.count(), 1, "{test}");
            }
        }
    }

    #[test]
    fn what_looks_at_the_time_is_a_job_of_that_kind_and_runs_one_test_after_the_other() {
        let of = |file, test| {
            let jobs = jobs(&TestProgram::named(file)).into_iter();
            let mut running = jobs.filter(|job| runs(&job.commands[0], test));
            let job = running.next().unwrap();
            let threads = job.commands[0].get_args().next().unwrap().to_str().unwrap().to_owned();
            (job.name, job.kind, threads)
        };
        let expected = |name: &str, kind, threads: usize| {
            (format!("hosts/{name}"), kind, format!("--test-threads={threads}"))
        };
        assert_eq!(of("rules", "rules::troubled::many"), expected("rules-timed", Kind::Timed, 1));
        assert_eq!(of("rules", "rules::compare::rows"), expected("rules", Kind::Other, 2));
        assert_eq!(of("routes", "routes::wide::x"), expected("routes", Kind::Other, 1));
        assert_eq!(of("cluster", "tc::x"), expected("cluster", Kind::Timed, 1));
    }

    /// A job for a module that has another name now would run nothing, and succeed.
    #[test]
    fn the_parts_that_look_at_the_time_are_there() {
        for Beside { file, timed, .. } in BESIDE_HOSTS {
            for module in *timed {
                let path = root().join(format!("tools/host-tests/tests/{file}/{module}.rs"));
                assert!(path.exists(), "{}", path.display());
            }
        }
    }
}
