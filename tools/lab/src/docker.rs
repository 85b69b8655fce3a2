//! A real Docker daemon on a host of the lab, and its containers.
//!
//! The daemon runs in a process and a mount namespace of its own: whatever it starts and mounts ends with the first
//! process in there, and that one dies with us. Its `/run` is its own, too, so that neither another host's daemon nor the
//! machine's is in its way. Containers' control groups carry the lab's name, hence the sweep finds them.
use std::{
    ffi::OsString,
    fmt::Display,
    fs,
    net::Ipv4Addr,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub use self::tools::Tools;
use crate::{command, host::Host, member::Member, namespace::Running, wait::wait_until};

mod tools;

/// How long the daemon may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a container waits for an answer, in seconds. Debian's busybox has no such option for `wget`.
const TIMEOUT: &str = "5";

/// A running daemon. Ended when dropped, with all its containers; on a panic the end of its log is shown.
#[derive(Debug)]
pub struct Docker {
    client: Client,
    process: Option<Running>,
}

/// What talks to the daemon of one host.
#[derive(Clone, Debug)]
struct Client {
    host: Host,
    folder: PathBuf,
    path: OsString,
}

/// A container of Docker's. It serves its pages at port 80: `/`, `/busybox` (two megabytes), and `/cgi-bin/who`, the
/// address of who asks. It goes with its daemon.
#[derive(Clone, Debug)]
pub struct DockerContainer {
    client: Client,
    name: String,
    address: Ipv4Addr,
}

/// Name of the image that every daemon has.
const IMAGE: &str = "lab";
/// busybox's commands in it.
const COMMANDS: &[&str] = &["sh", "httpd", "wget", "ping", "sha256sum", "timeout"];
const PAGE: &str = "a page\n";
const WHO: &str = "#!/bin/sh\nprintf \"Content-Type: text/plain\\r\\n\\r\\n$REMOTE_ADDR\"\n";

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
        let mut container = DockerContainer {
            client: self.client.clone(),
            name: name.to_owned(),
            address: Ipv4Addr::UNSPECIFIED,
        };
        container.find_address()?;
        Ok(container)
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

impl Client {
    fn start_daemon(&self, options: &[&str]) -> Result<Running> {
        let folder = self.folder.display();
        // The machine's own /etc/docker/daemon.json is not for the lab.
        fs::write(self.folder.join("daemon.json"), "{}")?;
        let daemon = format!(
            "dockerd --config-file {folder}/daemon.json --data-root {folder}/data --host {} --group root \
             --cgroup-parent /{lab} --exec-opt native.cgroupdriver=cgroupfs --log-level warn",
            self.socket(),
            lab = self.host.namespace().lab(),
        );
        // Needs nothing of the file system below; the image is small.
        let storage = "--storage-driver vfs";
        // Docker's own defaults are higher than what a process without CAP_SYS_RESOURCE may allow.
        let limits = "--default-ulimit nofile=1024:1024 --default-ulimit nproc=1000:1000";
        let daemon = [&daemon, storage, limits, &options.join(" ")].join(" ");
        // tini takes in what lost its parent, as an init must. --kill-child: it dies with the process that waits for it.
        let script = format!("mount -t tmpfs tmpfs /run && exec tini-static -- {daemon}");
        let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"];
        let mut command = self.host.namespace().command(&[&unshare[..], &["sh", "-c", &script]].concat())?;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        command.env("PATH", &self.path);
        Running::start(command.stdout(log.try_clone()?).stderr(log))
    }

    fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.host.namespace().command(&[&["docker"], words].concat())?;
        command.env("PATH", &self.path).env("DOCKER_HOST", self.socket());
        // What the user of this machine has set for the command.
        command.env("DOCKER_CONFIG", &self.folder).env_remove("DOCKER_CONTEXT");
        Ok(command)
    }

    fn docker(&self, line: &str) -> Result<String> {
        command::output(&mut self.command(&line.split_whitespace().collect::<Vec<_>>())?)
    }

    fn socket(&self) -> String {
        format!("unix://{}/socket", self.folder.display())
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl DockerContainer {
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its MAC address.
    pub fn mac(&self) -> Result<String> {
        self.inspect("MacAddress")
    }

    /// Runs a command inside; space-separated, no shell.
    pub fn exec(&self, line: &str) -> Result<String> {
        self.client.docker(&format!("exec {} {line}", self.name))
    }

    /// Pings `address`; fails unless every request is answered.
    pub fn ping(&self, address: Ipv4Addr, count: u32) -> Result<()> {
        let said = self.exec(&format!("ping -c {count} -i 0.05 -W {TIMEOUT} {address}"))?;
        // busybox is content with one answer.
        ensure!(said.contains(" 0% packet loss"), "{} -> {address}: {said}", self.address);
        Ok(())
    }

    /// Whether one ping is answered within a second.
    pub fn reaches(&self, address: Ipv4Addr) -> bool {
        self.exec(&format!("ping -c 1 -W 1 {address}")).is_ok()
    }

    /// Fetches `http://<what>` from inside.
    pub fn fetch(&self, what: &str) -> Result<String> {
        self.exec(&format!("timeout {TIMEOUT} wget -q -O - http://{what}"))
    }

    /// Downloads the two megabytes that a container serves at `from`, and compares them.
    pub fn download(&self, from: impl Display) -> Result<()> {
        let words = [
            "exec",
            &self.name,
            "sh",
            "-c",
            &format!("timeout 20 wget -q -O - http://{from}/busybox | sha256sum"),
        ];
        let got = command::output(&mut self.client.command(&words)?)?;
        let own = self.exec("sha256sum /bin/busybox")?;
        let sum = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        ensure!(sum(&got) == sum(&own), "{} got other bytes from {from} than it has", self.address);
        Ok(())
    }

    /// Stops it.
    pub fn stop(&self) -> Result<()> {
        self.client.docker(&format!("stop {}", self.name)).map(drop)
    }

    /// Starts it again. It may get another address.
    pub fn start(&mut self) -> Result<()> {
        self.client.docker(&format!("start {}", self.name))?;
        self.find_address()
    }

    fn find_address(&mut self) -> Result<()> {
        let address = self.inspect("IPAddress")?;
        self.address =
            address.parse().with_context(|| format!("the address {address:?} of {}", self.name))?;
        Ok(())
    }

    /// What Docker knows of its place in the one network it is in.
    fn inspect(&self, field: &str) -> Result<String> {
        let format = format!("{{{{range.NetworkSettings.Networks}}}}{{{{.{field}}}}}{{{{end}}}}");
        Ok(self.client.docker(&format!("inspect --format {format} {}", self.name))?.trim().to_owned())
    }
}

/// An archive of what the image holds.
fn image(tools: &Tools, folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("image");
    let (programs, pages) = (tree.join("bin"), tree.join("www"));
    fs::create_dir_all(&programs)?;
    fs::create_dir_all(pages.join("cgi-bin"))?;
    let busybox = tools.busybox();
    fs::copy(&busybox, programs.join("busybox")).with_context(|| format!("copy {}", busybox.display()))?;
    for name in COMMANDS {
        symlink("busybox", programs.join(name))?;
    }
    symlink("/bin/busybox", pages.join("busybox"))?;
    fs::write(pages.join("index.html"), PAGE)?;
    let who = pages.join("cgi-bin/who");
    fs::write(&who, WHO)?;
    fs::set_permissions(&who, PermissionsExt::from_mode(0o755))?;
    let archive = folder.join("image.tar");
    let [tree, file] = [&tree, &archive].map(|path| path.display().to_string());
    command::run("tar", ["--directory", &tree, "--create", "--file", &file, "."])?;
    Ok(archive)
}
