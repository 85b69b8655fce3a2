//! Captures: what passes an interface of a host.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use crate::{
    command,
    host::Host,
    namespace::{Namespace, Running},
    wait::wait_until,
};

impl Host {
    /// Captures what passes `interface` and matches `filter`, into a file of the host's folder, until the capture is
    /// finished.
    pub fn capture(&self, interface: &str, filter: &str) -> Result<Capture> {
        Capture::start(self.namespace(), self.folder(), interface, filter)
    }
}

/// A running tcpdump.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Running,
    file: PathBuf,
}

impl Capture {
    fn start(namespace: &Namespace, folder: &Path, interface: &str, filter: &str) -> Result<Self> {
        let file = tempfile::Builder::new()
            .prefix(interface)
            .suffix(".pcap")
            .tempfile_in(folder)?
            .into_temp_path()
            .keep()?;
        let log = file.with_extension("log");
        let path = file.display().to_string();
        let mut command: Command = namespace.command(&[
            "tcpdump",
            "--immediate-mode",
            // The kernel keeps 64 MiB for what tcpdump has not read yet. With the usual 2 MiB, which hold a few dozen of
            // the largest frames, most of a transfer is missing on a busy machine.
            "-B",
            "65536",
            "-U",
            "-Z",
            "root",
            "-i",
            interface,
            "-w",
            &path,
            filter,
        ])?;
        command.stdout(Stdio::null()).stderr(fs::File::create(&log)?);
        let tcpdump = Running::start(&mut command)?;
        let mut capture = Self { tcpdump, file };
        wait_until("tcpdump", Duration::from_secs(10), || {
            let said = fs::read_to_string(&log)?;
            if let Some(status) = capture.tcpdump.status()? {
                bail!("tcpdump ended with {status}: {said}");
            }
            Ok(said.contains("listening on"))
        })?;
        Ok(capture)
    }

    /// Ends the capture and returns its file.
    pub fn finish(mut self) -> Result<PathBuf> {
        // When a signal ends tcpdump, it leaves in the kernel what it has not read yet. It must become idle first.
        let mut written = 0;
        wait_until("an idle tcpdump", Duration::from_secs(10), || {
            std::thread::sleep(Duration::from_millis(200));
            let before = std::mem::replace(&mut written, fs::metadata(&self.file)?.len());
            Ok(before == written)
        })?;
        self.tcpdump.signal(Signal::SIGINT)?;
        self.tcpdump.wait(Duration::from_secs(10))?;
        Ok(self.file.clone())
    }

    /// Ends the capture and returns its packets as tcpdump prints them: numeric, verbose, with verified checksums.
    pub fn lines(self) -> Result<Vec<String>> {
        let file = self.finish()?.display().to_string();
        let text = command::run("tcpdump", ["-nn", "-vv", "-r", &file])?;
        // A line that begins with the time begins a packet; the lines that follow describe what it carries.
        let mut packets: Vec<String> = Vec::new();
        for line in text.lines() {
            match packets.last_mut() {
                Some(packet) if !line.starts_with(|first: char| first.is_ascii_digit()) => {
                    packet.push_str(&format!(" {}", line.trim_start()));
                }
                _ => packets.push(line.to_owned()),
            }
        }
        Ok(packets)
    }
}
