//! A real Docker daemon on a host of the lab, and its containers.
//!
//! The daemon runs in a process namespace and a mount namespace of its own. Whatever it starts and mounts therefore
//! ends with the first process in there, and that process dies with us. Its `/run` is its own as well, so that the
//! files of another host's daemon or of the machine's are not in its way. The containers' control groups carry the
//! lab's name, by which the sweep finds them.
use std::{fs, process::ExitStatus, time::Duration};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::{
    client::Client,
    image::{IMAGE, image},
};
pub use self::{container::DockerContainer, tools::Tools};
use crate::{host::Host, member::Member, namespace::Running, wait::wait_until};

mod client;
mod container;
mod image;
mod tools;

/// How long the daemon may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// A running daemon. It ends with all its containers when this is dropped; on a panic the end of its log is shown.
#[derive(Debug)]
pub struct Docker {
    client: Client,
    process: Option<Running>,
}

impl Host {
    /// Starts `dockerd` with these options (such as `--bip`) and the lab's own, and loads an image into it. A later
    /// daemon on the same host finds the data of the earlier one.
    pub fn start_docker(&self, options: &[&str]) -> Result<Docker> {
        let tools = Tools::find()?;
        let folder = self.folder().join("docker");
        fs::create_dir_all(&folder)?;
        let client = Client { host: self.clone(), folder, path: tools.path()? };
        let mut docker = Docker { process: Some(client.start_daemon(options)?), client };
        wait_until(&format!("the Docker daemon of {}", self.name()), PATIENCE, || {
            if let Some(status) = docker.process()?.status()? {
                bail!("it ended with {status}:\n{}", docker.client.log_tail());
            }
            Ok(docker.docker("version").is_ok())
        })
        .with_context(|| docker.client.log_tail())?;
        if docker.docker(&format!("image inspect {IMAGE}")).is_err() {
            let archive = image(&tools, &docker.client.folder)?;
            docker.docker(&format!("import {} {IMAGE}", archive.display()))?;
        }
        Ok(docker)
    }
}

impl Member {
    /// The options of its Docker daemon, as an administrator gets them: from the file that `overlay docker-opts` writes.
    pub fn docker_options(&self) -> Result<Vec<String>> {
        let file = self.host.folder().join("docker_opts.env");
        let [from, to] = [&self.host.subnet_file(), &file].map(|path| path.display().to_string());
        self.overlay(&["docker-opts", "-f", &from, "-c", "-d", &to])?;
        let text = fs::read_to_string(&file).with_context(|| format!("read {to}"))?;
        let quoted = text.trim().strip_prefix("DOCKER_OPTS=\"").and_then(|rest| rest.strip_suffix('"'));
        let options = quoted.with_context(|| format!("not the options of a Docker daemon: {text}"))?;
        Ok(options.split_whitespace().map(str::to_owned).collect())
    }

    /// Starts a Docker daemon with the options that [`Member::docker_options`] returns.
    pub fn start_docker(&self) -> Result<Docker> {
        let options = self.docker_options()?;
        self.host.start_docker(&options.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Docker {
    /// Runs the command `docker` with these words. They are separated by spaces; no shell sees them.
    pub fn docker(&self, line: &str) -> Result<String> {
        self.client.docker(line)
    }

    /// Makes and starts a container, with these options of `docker run` (such as `--publish 80:80`).
    pub fn run(&self, name: &str, options: &str) -> Result<DockerContainer> {
        // The server must not listen on IPv6 as well: `/cgi-bin/who` would then show an IPv4 address in IPv6's
        // notation.
        let serve = "httpd -f -h /www -p 0.0.0.0:80";
        // The kernel discards a SIGTERM to the first process of a process namespace unless that process has a handler
        // for it.
        self.docker(&format!("run --detach --stop-signal KILL --name {name} {options} {IMAGE} {serve}"))?;
        DockerContainer::running(self.client.clone(), name)
    }

    /// Sends SIGTERM and waits until the daemon has ended by itself. As any Docker daemon does, it stops its containers
    /// and leaves its bridges and packet filter rules behind.
    pub fn stop(mut self) -> Result<ExitStatus> {
        let pid = self.process()?.pid();
        // `unshare` waits outside of the namespaces that it made and passes no signal on, so its child gets the signal.
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let first = children.split_whitespace().next().context("the daemon has ended already")?;
        kill(Pid::from_raw(first.parse()?), Signal::SIGTERM).context("end the Docker daemon")?;
        self.process()?.wait(PATIENCE).with_context(|| self.client.log_tail())
    }

    fn process(&mut self) -> Result<&mut Running> {
        self.process.as_mut().context("the Docker daemon was let go")
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- Docker of {}:\n{}", self.client.host.name(), self.client.log_tail());
        }
        if self.client.host.keep() {
            // In a lab that is kept, the daemon must survive this process, so its handle must not kill it.
            std::mem::forget(self.process.take());
        }
    }
}
