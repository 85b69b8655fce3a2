//! A real etcd for tests and the demo. It has one member, or is a member of a cluster, its own ports and its own folder, and it
//! ends when it is dropped.
mod cluster;

use std::{
    ffi::OsString,
    fs::{self, File},
    io::ErrorKind,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};

use crate::{command, names::MARK};

/// How long etcd may take to answer after its start.
const START: Duration = Duration::from_secs(20);

/// A running etcd. It is killed when this is dropped, and when the thread that started it ends.
#[derive(Debug)]
pub struct Etcd {
    child: Child,
    place: Place,
}

/// Where an etcd runs. It is the same after a restart.
#[derive(Debug)]
struct Place {
    /// The member's name.
    name: String,
    folder: PathBuf,
    /// All members, as `--initial-cluster` names them; `None` if there is no other.
    members: Option<String>,
    /// Name of the network namespace it runs in.
    netns: Option<String>,
    address: Ipv4Addr,
    client_port: u16,
    peer_port: u16,
    tls: Option<Tls>,
    /// A part of the cluster's identity, besides its members' names and addresses.
    token: u32,
}

/// Certificates as PEM files, used by etcd and etcdctl alike. A client must show a certificate of the same authority.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// A certificate for 127.0.0.1.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Etcd {
    /// Starts an etcd on free ports of 127.0.0.1, with its data and its log in `folder`.
    pub fn start(folder: &Path) -> Result<Self> {
        Self::start_on_loopback(folder, None)
    }

    /// Starts an etcd as [`Etcd::start`] does, with TLS, for clients that have a certificate.
    pub fn start_with_tls(folder: &Path, tls: Tls) -> Result<Self> {
        Self::start_on_loopback(folder, Some(tls))
    }

    /// Starts an etcd in a network namespace below /run/netns, on etcd's usual ports of `address`.
    pub fn start_in_netns(folder: &Path, netns: &str, address: Ipv4Addr) -> Result<Self> {
        Self::start_at(folder, Some(netns.to_owned()), address, (2379, 2380), None)
    }

    fn start_on_loopback(folder: &Path, tls: Option<Tls>) -> Result<Self> {
        let mut tries = 0;
        loop {
            let (client, peer) = (free_port()?, free_port()?);
            let ports = (client.local_addr()?.port(), peer.local_addr()?.port());
            drop((client, peer));
            let etcd = Self::start_at(folder, None, Ipv4Addr::LOCALHOST, ports, tls.clone());
            // A port that was free may be somebody else's a moment later, of tests that run at the same time.
            tries += 1;
            if etcd.is_ok() || tries == 3 {
                return etcd;
            }
        }
    }

    fn start_at(
        folder: &Path,
        netns: Option<String>,
        address: Ipv4Addr,
        (client_port, peer_port): (u16, u16),
        tls: Option<Tls>,
    ) -> Result<Self> {
        let (name, folder) = ("overlay".to_owned(), folder.to_owned());
        let place =
            Place { name, folder, members: None, netns, address, client_port, peer_port, tls, token: 0 };
        let mut etcd = Self { child: place.spawn()?, place };
        etcd.wait_until_it_answers()?;
        Ok(etcd)
    }

    /// The address for `--etcd-endpoints`.
    pub fn client_url(&self) -> String {
        self.place.client_url()
    }

    /// Process id of etcd.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes etcd hang: connections to it stay open, but no answers come.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        // On a busy machine, some threads still answer for a while after the signal was sent.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        waitid(Id::Pid(pid), WaitPidFlag::WSTOPPED).context("wait until etcd has stopped").map(drop)
    }

    /// Ends an [`Etcd::pause`].
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Stops etcd. Its data and its port stay reserved, for [`Etcd::restart`].
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.child.wait().context("wait for etcd")?;
        Ok(())
    }

    /// Kills etcd with `kill -9`.
    pub fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait().context("wait for etcd")?;
        Ok(())
    }

    /// Copies etcd's data aside. It must be stopped.
    pub fn back_up(&self) -> Result<()> {
        let [data, copy] =
            ["etcd", "etcd.backup"].map(|name| self.place.folder.join(name).display().to_string());
        command::run("cp", ["--recursive", &data, &copy]).map(drop)
    }

    /// Puts back what [`Etcd::back_up`] copied. Etcd must be stopped.
    pub fn restore(&self) -> Result<()> {
        self.wipe()?;
        let folder = &self.place.folder;
        fs::rename(folder.join("etcd.backup"), folder.join("etcd")).context("restore etcd's data")
    }

    /// Removes etcd's data. It must be stopped. When it is started again, the cluster has the same identity but another
    /// history.
    pub fn wipe(&self) -> Result<()> {
        fs::remove_dir_all(self.place.folder.join("etcd")).context("remove etcd's data")
    }

    /// Removes etcd's data, and has a cluster of another identity start under the same address. Etcd must be stopped.
    pub fn replace(&mut self) -> Result<()> {
        self.place.token += 1;
        self.wipe()
    }

    /// Starts etcd again after an [`Etcd::stop`], on the same data and ports.
    pub fn restart(&mut self) -> Result<()> {
        self.child = self.place.spawn()?;
        self.wait_until_it_answers()
    }

    /// Has etcd compact its history up to now, so that a watch from an earlier revision fails.
    pub fn compact(&self) -> Result<()> {
        let status = self.ctl(&["endpoint", "status", "--write-out", "json"])?;
        let status: serde_json::Value = serde_json::from_str(&status).context("read etcd's status")?;
        let revision =
            status[0]["Status"]["header"]["revision"].as_i64().context("etcd's status has no revision")?;
        self.ctl(&["compaction", &revision.to_string()])?;
        Ok(())
    }

    /// Runs etcdctl against this etcd, in the same namespace, and returns what it printed.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = in_netns(self.place.netns.as_deref(), "etcdctl");
        if let Some(Tls { ca, cert, key }) = &self.place.tls {
            command.arg("--cacert").arg(ca).arg("--cert").arg(cert).arg("--key").arg(key);
        }
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

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let answer = self.ctl(&["endpoint", "health"]);
            // Asked after the answer, which may have been that of another etcd at the same port.
            if let Some(status) = self.child.try_wait().context("wait for etcd")? {
                bail!("etcd ended with {status}; see {}", self.place.log().display());
            }
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    bail!("etcd does not answer: {error:#}; see {}", self.place.log().display());
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("pid of etcd")?);
        kill(pid, signal).with_context(|| format!("send {signal} to etcd"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // After a stop there is nothing left to kill, which is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Place {
    fn spawn(&self) -> Result<Child> {
        let client = self.client_url();
        let peer = self.peer_url();
        let members = self.members.clone().unwrap_or_else(|| format!("{}={peer}", self.name));
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .with_context(|| format!("open {}", self.log().display()))?;
        // etcd is looked for first, because nsenter and setpriv in front of it would only say that they failed to start
        // it.
        Command::new("etcd").arg("--version").output().map_err(not_installed)?;
        // setpriv has the kernel end etcd when we end, even if we are killed.
        let mut command = in_netns(self.netns.as_deref(), "setpriv");
        command
            .args(["--pdeathsig", "KILL", "etcd", "--name", &self.name])
            .arg("--data-dir")
            .arg(self.folder.join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &members])
            .args(["--initial-cluster-token", &format!("overlay-{}", self.token)])
            .args(["--logger", "zap", "--log-level", "warn"]);
        if let Some(Tls { ca, cert, key }) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            command.arg("--cert-file").arg(cert).arg("--key-file").arg(key);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().context("start etcd by setpriv of util-linux")
    }

    fn client_url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.address, self.client_port)
    }

    fn peer_url(&self) -> String {
        format!("http://{}:{}", self.address, self.peer_port)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("etcd.log")
    }
}

/// nsenter executes the program in its own place, so that its process id is the program's.
fn in_netns(netns: Option<&str>, program: &str) -> Command {
    let Some(netns) = netns else {
        return Command::new(program);
    };
    let mut command = Command::new("nsenter");
    let mut option = OsString::from("--net=/run/netns/");
    option.push(netns);
    command.arg(option).arg(program);
    // In a lab, etcd carries the lab's mark, so that Ctrl-C ends it with the rest of the lab.
    if let Some((lab, _)) = netns.split_once('-') {
        command.env(MARK, lab);
    }
    command
}

fn free_port() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")
}

fn not_installed(error: std::io::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::NotFound {
        anyhow::anyhow!("etcd or etcdctl is not installed: run `cargo xtask setup`")
    } else {
        anyhow::Error::new(error).context("run etcd")
    }
}
