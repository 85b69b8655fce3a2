//! Shared by the rungs that need a kernel: network namespaces of the test's own.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a network namespace that exists as long as it runs: nothing is left behind, whatever happens.
pub fn in_own_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)
                    .expect("make a network namespace: this rung needs root (`cargo xtask test` says more)");
                test()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `ip` with these words in this thread's namespace.
pub fn ip(words: &str) {
    run("ip", words);
}

/// Runs `ip` once for all these lines, in this thread's namespace. In a VM, starting a program takes longer than what it does.
pub fn ip_lines(lines: &[String]) {
    let mut ip = Command::new("ip");
    ip.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut ip = ip.spawn().unwrap_or_else(|error| panic!("ip: {error}; `cargo xtask setup` installs it"));
    ip.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
    let output = ip.wait_with_output().unwrap();
    assert!(output.status.success(), "{lines:#?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a command in this thread's namespace; panics with its words when it fails.
pub fn run(program: &str, words: &str) -> String {
    let output = Command::new(program)
        .args(words.split_whitespace())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask setup` installs it"));
    assert!(output.status.success(), "{program} {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Sets a sysctl below /proc/sys/net, which shows this thread's namespace.
pub fn sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{name}"), value).unwrap_or_else(|error| panic!("{name}: {error}"));
}
