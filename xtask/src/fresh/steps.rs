//! What is done on the bare machine, in this order: what the README asks for and promises, and what goes wrong on machines.
use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::Pid,
};

use super::furnish::{CLONE, environment};

/// One line for a shell in the clone, and how it must end.
struct Step {
    line: &'static str,
    end: End,
}

enum End {
    /// With one of these exit codes.
    With(&'static [i32]),
    /// With an error that contains this.
    Saying(&'static str),
}

const fn works(line: &'static str) -> Step {
    Step { line, end: End::With(&[0]) }
}

const fn fails(line: &'static str, saying: &'static str) -> Step {
    Step { line, end: End::Saying(saying) }
}

const STEPS: &[Step] = &[
    works("apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev"),
    // Building xtask itself needs nothing but a linker.
    works("cargo xtask help"),
    // Bad input, before anything is installed.
    fails("unshare --net cargo xtask demo", "what to do by hand"),
    fails("PATH=/root/.cargo/bin target/debug/xtask demo", "there is no apt-get"),
    fails("setpriv --reuid=65534 --regid=65534 --clear-groups target/debug/xtask demo", "run it as root"),
    // Unfit programs in the user's PATH. Set-up and builds must either not use them or say what is wrong with them.
    works("printf '#!/bin/sh\\nexit 1\\n' >/usr/local/bin/bpf-linker && chmod +x /usr/local/bin/bpf-linker"),
    works(
        "mkdir /opt/old && printf '#!/bin/sh\\necho libprotoc 3.6.1\\n' >/opt/old/protoc && chmod +x /opt/old/protoc",
    ),
    fails("PATH=/opt/old:$PATH cargo xtask demo", "protobuf-compiler brings /usr/bin/protoc"),
    // What the README promises.
    works("cargo xtask demo"),
    works("cargo xtask demo --docker"),
    works("cargo xtask test --rung units"),
    works("cargo build --release"),
    // Exit code 3 says that the check found something that is not as it should be.
    Step { line: "target/release/overlay check", end: End::With(&[0, 3]) },
    works("cargo xtask setup"),
    // Set-up must complete what is there by half, and remove what a killed set-up has left.
    works(
        "rm -r target/ebpf-toolchain/usr/bin/cargo target/docker/ready && \
         mkdir -p target/unpacking-x/tree target/ebpf-toolchain/unpacking-x/tree",
    ),
    works("cargo xtask setup"),
    works("test -x target/ebpf-toolchain/usr/bin/cargo -a -e target/docker/ready"),
    works("test ! -e target/unpacking-x -a ! -e target/ebpf-toolchain/unpacking-x"),
    works("cargo xtask lab leaks"),
];

/// All that CI runs, on a machine on which nothing is installed yet.
const WHOLE: &[Step] = &[works("CI=true bash .ci/run")];

/// Where the output of a step goes.
const OUTPUT: &str = "/var/log/fresh-root";

/// Carries out the steps. The caller must be the first process of its namespace.
pub(super) fn carry_out(whole: bool) -> Result<()> {
    let started = Instant::now();
    for step in if whole { WHOLE } else { STEPS } {
        println!("[fresh {:6.1} s] {}", started.elapsed().as_secs_f32(), step.line);
        step.carry_out(whole).with_context(|| format!("in the fresh root: `{}`", step.line))?;
    }
    println!("[fresh {:6.1} s] all as it must be", started.elapsed().as_secs_f32());
    Ok(())
}

impl Step {
    /// With `shown`, the step's output is shown at once; otherwise it is shown only if the step does not end as it must.
    fn carry_out(&self, shown: bool) -> Result<()> {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", self.line]).current_dir(Path::new("/").join(CLONE)).stdin(Stdio::null());
        shell.env_clear().envs(environment());
        if !shown {
            let output = File::create(OUTPUT).with_context(|| format!("create {OUTPUT}"))?;
            shell.stdout(output.try_clone()?).stderr(output);
        }
        let code = end_of(shell.spawn().context("start a shell")?.id())?;
        let said = if shown { Vec::new() } else { fs::read(OUTPUT)? };
        let said = String::from_utf8_lossy(&said);
        match self.end {
            End::With(codes) => ensure!(codes.contains(&code), "it ended with exit code {code}:\n{said}"),
            End::Saying(text) => {
                ensure!(code != 0, "it did not fail:\n{said}");
                ensure!(said.contains(text), "it failed with {code}, and did not say `{text}`:\n{said}");
            }
        }
        Ok(())
    }
}

/// The exit code of a child. Meanwhile, processes whose parents have ended are reaped, as the first process must do.
fn end_of(child: u32) -> Result<i32> {
    let child = Pid::from_raw(child.try_into()?);
    loop {
        match waitpid(None, None).context("wait for processes")? {
            WaitStatus::Exited(pid, code) if pid == child => return Ok(code),
            WaitStatus::Signaled(pid, signal, _) if pid == child => bail!("it was ended by {signal}"),
            _ => {}
        }
    }
}
