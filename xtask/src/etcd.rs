//! A real etcd for tests and the demo: one member, its own ports and folder, gone when dropped.
use std::{
    ffi::OsString,
    fs::File,
    io::ErrorKind,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long it may take to answer after its start.
const START: Duration = Duration::from_secs(20);

/// A running etcd. It is killed when this is dropped, and when the thread that started it ends.
#[derive(Debug)]
pub struct Etcd {
    child: Child,
    folder: PathBuf,
    /// Name of the network namespace it runs in.
    netns: Option<String>,
    address: Ipv4Addr,
    client_port: u16,
    peer_port: u16,
}

impl Etcd {
    /// Starts one on free ports of 127.0.0.1, with its data and its log in `folder`.
    pub fn start(folder: &Path) -> Result<Self> {
        let (client, peer) = (free_port()?, free_port()?);
        let ports = (client.local_addr()?.port(), peer.local_addr()?.port());
        drop((client, peer));
        Self::start_at(folder, None, Ipv4Addr::LOCALHOST, ports)
    }

    /// Starts one in a network namespace below /run/netns, on etcd's own ports of `address`.
    pub fn start_in_netns(folder: &Path, netns: &str, address: Ipv4Addr) -> Result<Self> {
        Self::start_at(folder, Some(netns.to_owned()), address, (2379, 2380))
    }

    fn start_at(folder: &Path, netns: Option<String>, address: Ipv4Addr, ports: (u16, u16)) -> Result<Self> {
        let (client_port, peer_port) = ports;
        let child = spawn(folder, netns.as_deref(), address, ports)?;
        let etcd = Self {
            child,
            folder: folder.to_owned(),
            netns,
            address,
            client_port,
            peer_port,
        };
        etcd.wait_until_it_answers()?;
        Ok(etcd)
    }

    /// What goes into `--etcd-endpoints`.
    pub fn client_url(&self) -> String {
        format!("http://{}:{}", self.address, self.client_port)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes it hang: connections stay, answers do not come.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Ends a [`Etcd::pause`].
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Stops it; data and port stay reserved in `folder` and here.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.child.wait().context("wait for etcd")?;
        Ok(())
    }

    /// Starts it again after a [`Etcd::stop`], on the same data and ports.
    pub fn restart(&mut self) -> Result<()> {
        let ports = (self.client_port, self.peer_port);
        self.child = spawn(&self.folder, self.netns.as_deref(), self.address, ports)?;
        self.wait_until_it_answers()
    }

    /// Forgets all history up to now.
    pub fn compact(&self) -> Result<()> {
        let status = self.ctl(&["endpoint", "status", "--write-out", "json"])?;
        let status: serde_json::Value = serde_json::from_str(&status).context("read etcd's status")?;
        let revision = status[0]["Status"]["header"]["revision"]
            .as_i64()
            .context("etcd's status has no revision")?;
        self.ctl(&["compaction", &revision.to_string()])?;
        Ok(())
    }

    /// Runs etcdctl against it, in its namespace, and returns what it printed.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = in_netns(self.netns.as_deref(), "etcdctl");
        command
            .args(["--endpoints", &self.client_url()])
            .args(arguments)
            .env("ETCDCTL_API", "3")
            .stdin(Stdio::null());
        let output = command.output().map_err(not_installed)?;
        ensure!(
            output.status.success(),
            "etcdctl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn wait_until_it_answers(&self) -> Result<()> {
        let deadline = Instant::now() + START;
        while let Err(error) = self.ctl(&["endpoint", "health"]) {
            if Instant::now() > deadline {
                bail!(
                    "etcd does not answer: {error:#}; see {}",
                    log(&self.folder).display()
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("pid of etcd")?);
        kill(pid, signal).with_context(|| format!("send {signal} to etcd"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // After a stop there is nothing to kill, and that is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path, netns: Option<&str>, address: Ipv4Addr, ports: (u16, u16)) -> Result<Child> {
    let client = format!("http://{address}:{}", ports.0);
    let peer = format!("http://{address}:{}", ports.1);
    let file = File::options()
        .create(true)
        .append(true)
        .open(log(folder))
        .with_context(|| format!("open etcd's log in {}", folder.display()))?;
    // Looked for first: the helpers in front of it would only say that they failed.
    Command::new("etcd")
        .arg("--version")
        .output()
        .map_err(not_installed)?;
    // setpriv ends etcd with us, also when we are killed.
    let mut command = in_netns(netns, "setpriv");
    command
        .args(["--pdeathsig", "KILL", "etcd", "--name", "overlay"])
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("overlay={peer}")])
        .args(["--logger", "zap", "--log-level", "warn"])
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    command.spawn().context("start etcd by setpriv of util-linux")
}

/// nsenter becomes the program, so its pid is the program's.
fn in_netns(netns: Option<&str>, program: &str) -> Command {
    let Some(netns) = netns else {
        return Command::new(program);
    };
    let mut command = Command::new("nsenter");
    let mut option = OsString::from("--net=/run/netns/");
    option.push(netns);
    command.arg(option).arg(program);
    // In a lab it is one of the lab's processes, which Ctrl-C ends too.
    if let Some((lab, _)) = netns.split_once('-') {
        command.env(crate::lab::MARK, lab);
    }
    command
}

fn free_port() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")
}

fn log(folder: &Path) -> PathBuf {
    folder.join("etcd.log")
}

fn not_installed(error: std::io::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::NotFound {
        anyhow::anyhow!("etcd or etcdctl is not installed: run `cargo xtask setup`")
    } else {
        anyhow::Error::new(error).context("run etcd")
    }
}
