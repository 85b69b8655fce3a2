//! Both ends of the control socket: a request is one line of JSON, and so is its answer.
use std::{
    net::IpAddr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use log::{debug, warn};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use crate::{
    agent::status::Status,
    datapath::state::Paths,
    learn::{learner::ClaimError, observe, view::View},
    model::{
        entries::{Endpoint, Peer},
        mac::Mac,
    },
};

/// The longest request that is accepted, in bytes.
const LONGEST: u64 = 4096;
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether the socket's file is still there.
const LOOK: Duration = Duration::from_secs(2);

/// What can be asked of a running agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Asks for the agent's status.
    Status,
    /// Asks for all peers.
    Peers,
    /// Asks for all endpoints.
    Endpoints,
    /// Names an endpoint, which learning will neither move nor remove.
    Attach {
        /// The container's address, inside the own subnet.
        address: IpAddr,
        /// Name of the host side of the container's veth.
        port: String,
        /// MAC address inside the container. Without it, the agent takes the one that the kernel knows.
        mac: Option<Mac>,
    },
    /// Removes an endpoint. From then on the stack carries its packets.
    Detach {
        /// The container's address.
        address: IpAddr,
    },
    /// Carries out every removal that the mass-delete guard holds back.
    AcceptDeletions,
    /// Reads all leases and the whole data path again.
    Resync,
}

/// What the agent answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// The answer to [`Request::Status`].
    Status(Box<Status>),
    /// The answer to [`Request::Peers`].
    Peers(Vec<PeerLine>),
    /// The answer to [`Request::Endpoints`].
    Endpoints(Vec<EndpointLine>),
    /// The request was carried out. The text says what was done.
    Done(String),
    /// The request was not carried out. The text says why.
    Error(String),
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLine {
    /// The peer's subnet.
    pub subnet: IpNet,
    /// Where the peer is reached.
    #[serde(flatten)]
    pub peer: Peer,
    /// Revision of the lease that asks for this peer; `None` if no lease does any more.
    pub revision: Option<i64>,
    /// Whether the peer is in force as its lease asks.
    pub installed: bool,
    /// Whether the peer's lease is gone, and the mass-delete guard keeps the peer.
    pub held: bool,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointLine {
    /// The endpoint's address.
    pub address: IpAddr,
    /// Where the endpoint lives.
    #[serde(flatten)]
    pub endpoint: Endpoint,
}

/// A request on its way to the loop.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Response>,
}

/// Where the agent of a network listens.
pub fn socket_path(paths: &Paths) -> PathBuf {
    paths.state.join("control.sock")
}

/// The server's end. Dropping it removes the socket file, if that still is this server's.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// The file's identity, by which it is known from another one at the same path.
    identity: Option<(u64, u64)>,
}

impl Server {
    /// Listens on the socket. The socket of an agent that is gone is replaced; one that is answered is left to its agent, and
    /// the call fails.
    pub async fn bind(path: &Path) -> anyhow::Result<Self> {
        if UnixStream::connect(path).await.is_ok() {
            bail!(
                "another agent answers on {}: stop it, or use another --network or --state-dir",
                path.display()
            );
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("replace the old socket {}", path.display()));
            }
            _ => {}
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let listener = listen(path).with_context(|| format!("listen on {}", path.display()))?;
        Ok(Self { listener, path: path.to_owned(), identity: identity(path) })
    }

    /// Serves requests until the future is dropped.
    pub async fn serve(mut self, calls: mpsc::Sender<Call>) {
        loop {
            match timeout(LOOK, self.listener.accept()).await {
                Ok(Ok((stream, _))) => {
                    let calls = calls.clone();
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, calls).await {
                            debug!("control connection: {error:#}");
                        }
                    });
                }
                Ok(Err(error)) => {
                    warn!("accept on {}: {error}", self.path.display());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(_) if self.path.parent().is_some_and(Path::exists) && !self.path.exists() => {
                    match listen(&self.path) {
                        Ok(listener) => {
                            warn!("somebody removed {}: listening there again", self.path.display());
                            (self.listener, self.identity) = (listener, identity(&self.path));
                        }
                        Err(error) => debug!("listen on {} again: {error}", self.path.display()),
                    }
                }
                Err(_) => {}
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds the socket under another name first, so that nobody can connect before its permissions are right.
fn listen(path: &Path) -> std::io::Result<UnixListener> {
    let private = path.with_extension("new");
    let _ = std::fs::remove_file(&private);
    let listener = UnixListener::bind(&private)?;
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&private, path)?;
    Ok(listener)
}

/// Device and number of a file. A number says nothing alone: somebody may have mounted another file system over the folder.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

async fn converse(mut stream: UnixStream, calls: mpsc::Sender<Call>) -> anyhow::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader.take(LONGEST));
    let mut line = String::new();
    timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let too_long = line.len() as u64 == LONGEST && !line.ends_with('\n');
    let response = match serde_json::from_str(&line) {
        _ if too_long => Response::Error(format!("request not understood: longer than {LONGEST} bytes")),
        Ok(request) => ask_loop(request, &calls).await,
        Err(error) => Response::Error(format!("request not understood: {error}")),
    };
    let mut text = serde_json::to_vec(&response)?;
    text.push(b'\n');
    timeout(PATIENCE, writer.write_all(&text)).await??;
    if too_long {
        // If the socket were closed over unread bytes, the connection would be reset, and the answer lost with it.
        writer.shutdown().await?;
        let mut rest = reader.into_inner().into_inner();
        timeout(PATIENCE, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await??;
    }
    Ok(())
}

/// Divides requests between those who decide: the learner decides about endpoints, the loop about everything else. This ends
/// when nobody can ask any more.
pub async fn divide(
    mut calls: mpsc::Receiver<Call>,
    to_loop: mpsc::Sender<Call>,
    to_learning: mpsc::Sender<observe::EndpointCommand>,
    view: watch::Receiver<View>,
) -> anyhow::Result<()> {
    while let Some(Call { request, answer }) = calls.recv().await {
        let (to_loop, to_learning, view) = (to_loop.clone(), to_learning.clone(), view.clone());
        tokio::spawn(async move {
            let response = match request {
                Request::Attach { address, port, mac } => {
                    let (reply, replied) = oneshot::channel();
                    let done = format!("endpoint {address} attached to {port}");
                    let command = observe::EndpointCommand::Attach { address, interface: port, mac, reply };
                    learned(to_learning.send(command).await.is_ok(), replied, done).await
                }
                Request::Detach { address } => {
                    let (reply, replied) = oneshot::channel();
                    let command = observe::EndpointCommand::Detach { address, reply };
                    let done = format!("endpoint {address} detached");
                    learned(to_learning.send(command).await.is_ok(), replied, done).await
                }
                other => match ask_loop(other, &to_loop).await {
                    Response::Status(mut status) => {
                        status.learned = view.borrow().clone();
                        Response::Status(status)
                    }
                    other => other,
                },
            };
            // The result is ignored, because whoever asked may have hung up.
            let _ = answer.send(response);
        });
    }
    Ok(())
}

async fn learned(sent: bool, replied: oneshot::Receiver<Result<(), ClaimError>>, done: String) -> Response {
    match replied.await {
        Ok(Ok(())) if sent => Response::Done(done),
        Ok(Err(error)) => Response::Error(error.to_string()),
        Ok(Ok(())) | Err(_) => Response::Error("the agent is ending".to_owned()),
    }
}

async fn ask_loop(request: Request, calls: &mpsc::Sender<Call>) -> Response {
    let (answer, answered) = oneshot::channel();
    let asked = async {
        calls.send(Call { request, answer }).await.ok()?;
        answered.await.ok()
    };
    match timeout(PATIENCE, asked).await {
        Ok(Some(response)) => response,
        Ok(None) => Response::Error("the agent is ending".to_owned()),
        Err(_) => Response::Error(format!("the agent's loop does not answer within {PATIENCE:?}")),
    }
}

/// Asks a running agent. If the answer is [`Response::Error`], this returns an error.
pub async fn ask(path: &Path, request: &Request) -> anyhow::Result<Response> {
    let talk = async {
        let mut stream = UnixStream::connect(path).await.with_context(|| {
            format!("connect to {}: is the agent of this network running, and are you root?", path.display())
        })?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await.context("send the request")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.context("read the answer")?;
        serde_json::from_str(&answer).context("understand the answer: is the agent of another version?")
    };
    // The server may use up its own patience before it answers.
    match timeout(PATIENCE * 2, talk).await {
        Ok(Ok(Response::Error(error))) => bail!(error),
        Ok(answer) => answer,
        Err(_) => bail!("no answer on {} within {:?}", path.display(), PATIENCE * 2),
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
