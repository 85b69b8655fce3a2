//! Runs qemu, repeats what the tests in the guest print, and ends it when it takes too long.
use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::debian::Unpacked;

/// A run takes two or three minutes on two idle cores, and many times as long on busy ones. One that prints nothing for so long
/// hangs.
const LIMIT: Duration = Duration::from_secs(1800);

/// The outcome of a run.
pub(super) struct Said {
    /// What the tests printed.
    pub(super) lines: Vec<String>,
    /// How the machine ended, in words.
    pub(super) end: String,
}

/// Boots the machine and waits for its end. The kernel's messages go to the file `console`.
pub(super) fn run(tools: &Path, kernel: &Unpacked, image: &Path, console: &Path) -> Result<Said> {
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|folder| tools.join(folder));
    // The kernel kills qemu if this process dies in any way; on Ctrl-C the terminal signals both.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL"]).arg(tools.join("usr/bin/qemu-system-x86_64"));
    qemu.env("LD_LIBRARY_PATH", std::env::join_paths(&libraries)?)
        .env("QEMU_MODULE_DIR", libraries[0].join("qemu"));
    qemu.arg("-L").arg(tools.join("usr/share/seabios")).arg("-L").arg(tools.join("usr/share/qemu"));
    // KVM is not used even where it exists, so that a run is the same everywhere. There is only one CPU, because one of
    // two emulated CPUs has been seen to execute a jump that the other was just patching (Linux 7.2, RIP one byte
    // behind the start of a static branch).
    // Without "enhanced rep movsb": a guest that is told of it copies and clears memory by that, byte for byte in the emulation,
    // which took a third of the CPU time.
    qemu.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max,-erms", "-smp", "1", "-m", "1024"]);
    qemu.args(["-nodefaults", "-no-reboot", "-display", "none"]);
    qemu.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(image);
    // A warning or an oops of the kernel ends the run, which then fails, because our programs must never cause one.
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 oops=panic panic_on_warn=1 mitigations=off"]);
    qemu.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut machine = Machine(qemu.spawn().context("start qemu")?);
    let output = machine.0.stdout.take().context("qemu's output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut said = Vec::new();
    loop {
        match lines.recv_timeout(LIMIT) {
            Ok(line) => {
                println!("vm {} | {line}", kernel.version);
                said.push(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                let end = format!("the machine was ended after {LIMIT:?} without a line of output");
                return Ok(Said { lines: said, end });
            }
            Err(RecvTimeoutError::Disconnected) => {
                let end = format!("qemu ended with {}", machine.0.wait()?);
                return Ok(Said { lines: said, end });
            }
        }
    }
}

/// The qemu process, which is killed when this is dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // The only possible error is that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
