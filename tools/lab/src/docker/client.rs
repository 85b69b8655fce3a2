//! What talks to the daemon of one host, and starts it.
use std::{ffi::OsString, fs, path::PathBuf, process::Command};

use anyhow::Result;

use crate::{command, host::Host, namespace::Running};

/// What a command needs to reach the daemon of one host.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) host: Host,
    pub(super) folder: PathBuf,
    pub(super) path: OsString,
}

impl Client {
    pub(super) fn start_daemon(&self, options: &[&str]) -> Result<Running> {
        let folder = self.folder.display();
        // The machine's own /etc/docker/daemon.json must have no influence here.
        fs::write(self.folder.join("daemon.json"), "{}")?;
        let daemon = format!(
            "dockerd --config-file {folder}/daemon.json --data-root {folder}/data --host {} --group root \
             --cgroup-parent /{lab} --exec-opt native.cgroupdriver=cgroupfs --log-level warn",
            self.socket(),
            lab = self.host.namespace().lab(),
        );
        // This storage driver asks nothing of the file system below. It copies whole images, but ours is small.
        let storage = "--storage-driver vfs";
        // Docker's default limits are higher than what a process without CAP_SYS_RESOURCE may set.
        let limits = "--default-ulimit nofile=1024:1024 --default-ulimit nproc=1000:1000";
        let daemon = [&daemon, storage, limits, &options.join(" ")].join(" ");
        // tini adopts orphaned processes, which the first process of a process namespace must do. With --kill-child it
        // dies when the `unshare` that waits for it dies.
        let script = format!("mount -t tmpfs tmpfs /run && exec tini-static -- {daemon}");
        let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"];
        let mut command = self.host.namespace().command(&[&unshare[..], &["sh", "-c", &script]].concat())?;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        command.env("PATH", &self.path);
        Running::start(command.stdout(log.try_clone()?).stderr(log))
    }

    pub(super) fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.host.namespace().command(&[&["docker"], words].concat())?;
        command.env("PATH", &self.path).env("DOCKER_HOST", self.socket());
        // These override settings that the user of this machine has made for the command `docker`.
        command.env("DOCKER_CONFIG", &self.folder).env_remove("DOCKER_CONTEXT");
        Ok(command)
    }

    pub(super) fn docker(&self, line: &str) -> Result<String> {
        command::output(&mut self.command(&line.split_whitespace().collect::<Vec<_>>())?)
    }

    pub(super) fn socket(&self) -> String {
        format!("unix://{}/socket", self.folder.display())
    }

    pub(super) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub(super) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}
