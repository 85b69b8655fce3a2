//! A real Docker daemon on a host of the lab, and its containers.
//!
//! The daemon runs in a process and a mount namespace of its own: whatever it starts and mounts ends with the first
//! process in there, and that one dies with us. Its `/run` is its own, too, so that neither another host's daemon nor the
//! machine's is in its way. Containers' control groups carry the lab's name, hence the sweep finds them.
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
/// A running daemon. Ended when dropped, with all its containers; on a panic the end of its log is shown.
#[derive(Debug)]
pub struct Docker {
    client: Client,
    process: Option<Running>,
}

impl Host {
    /// Starts `dockerd` with these options (`--bip`, say) beside the lab's own, and gives it an image. On the data of the
    /// host's earlier daemon, if there was one.
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

    /// Starts a Docker daemon with those options.
    pub fn start_docker(&self) -> Result<Docker> {
        let options = self.docker_options()?;
        self.host.start_docker(&options.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Docker {
    /// Runs the command `docker` with these words; space-separated, no shell.
    pub fn docker(&self, line: &str) -> Result<String> {
        self.client.docker(line)
    }

    /// Makes and starts a container, with these options of `docker run` (`--publish 80:80`, say).
    pub fn run(&self, name: &str, options: &str) -> Result<DockerContainer> {
        // On all IPv4 addresses, and on no IPv6 one: who asks is then shown as plain IPv4.
        let serve = "httpd -f -h /www -p 0.0.0.0:80";
        // The first process of a process namespace does not hear SIGTERM unless it cares to.
        self.docker(&format!("run --detach --stop-signal KILL --name {name} {options} {IMAGE} {serve}"))?;
        DockerContainer::running(self.client.clone(), name)
    }

    /// SIGTERM, and waits until it has ended by itself. Like any Docker daemon it stops its containers, and leaves
    /// bridges and rules.
    pub fn stop(mut self) -> Result<ExitStatus> {
        let pid = self.process()?.pid();
        // The process that made the namespaces waits outside of them, and passes no signal on.
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
            // As with the agent of a lab that is kept.
            std::mem::forget(self.process.take());
        }
    }
}
