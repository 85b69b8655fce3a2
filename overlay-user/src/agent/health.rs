//! Serves `/healthz`, `/readyz` and `/status` over HTTP, for machines. The answers tell the present state, not what was once
//! true.
use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{debug, warn};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};

use crate::{
    agent::status::Status,
    datapath::losses::{self, Loss},
    host::netlink::Netlink,
    store::local_lease::LeaseState,
};

/// The loop gives a sign of life every second. After this long without one, it counts as stuck.
const STUCK: Duration = Duration::from_secs(15);
/// A store that answered within this time counts as reached, even while its stream of changes is being opened again.
const REACHED: Duration = Duration::from_secs(30);
/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much of the agent clients may use: the limit of open files holds for the data path, too.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// How many connections there may be at once. More wait in the listener's queue.
    connections: usize,
    /// How long a connection may last, whatever it does: a client may send requests without end and never read the answers.
    lasts: Duration,
}

const LIMITS: Limits = Limits { connections: 64, lasts: Duration::from_secs(30) };

/// Listens on `--healthz-ip` and `--healthz-port`.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("listen on {address} (--healthz-ip, --healthz-port)"))
}

/// Serves until the future is dropped. `pins` is the network's folder of pins.
pub async fn serve(listener: TcpListener, status: watch::Receiver<Status>, pins: PathBuf) {
    serve_within(LIMITS, listener, status, pins).await;
}

async fn serve_within(limits: Limits, listener: TcpListener, status: watch::Receiver<Status>, pins: PathBuf) {
    let places = Arc::new(Semaphore::new(limits.connections));
    while let Ok(place) = places.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => TokioIo::new(stream),
            Err(error) => {
                warn!("accept a health request: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (status, pins) = (status.clone(), pins.clone());
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(|request: Request<Incoming>| {
                let (status, pins) = (status.borrow().clone(), &pins);
                async move {
                    let path = request.uri().path();
                    let losses =
                        if path == "/status" { device_losses(&status, pins).await } else { Vec::new() };
                    Ok::<_, Infallible>(answer(request.method(), path, &status, losses))
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(stream, service);
            match timeout(limits.lasts, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!("health connection: {error}"),
                Err(_) => debug!("health connection: closed after {:?}", limits.lasts),
            }
        });
    }
}

/// What devices lost, as `/status` shows it. This is empty if the kernel does not tell.
async fn device_losses(status: &Status, pins: &Path) -> Vec<Loss> {
    let read = async { anyhow::Ok(losses::read(&Netlink::open()?, pins).await?) };
    match read.await {
        Ok(now) => losses::assess(now, Some(&status.lost_before)),
        Err(error) => {
            warn!("{error:#}");
            Vec::new()
        }
    }
}

/// The body of `/status`.
#[derive(Serialize)]
struct Page<'a> {
    #[serde(flatten)]
    status: &'a Status,
    device_losses: Vec<Loss>,
}

fn answer(method: &Method, path: &str, status: &Status, device_losses: Vec<Loss>) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n".to_owned());
    }
    match path {
        "/healthz" => verdict("the loop lives", stuck(status).into_iter().collect()),
        "/readyz" => verdict("ready", not_ready(status)),
        "/status" => match serde_json::to_string_pretty(&Page { status, device_losses }) {
            Ok(json) => {
                let mut response = text(StatusCode::OK, json + "\n");
                let json = header::HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("write the status: {error}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, "try /healthz, /readyz or /status\n".to_owned()),
    }
}

/// Why the loop counts as stuck, if it does.
fn stuck(status: &Status) -> Option<String> {
    let silent = status.beat.elapsed();
    (silent > STUCK).then(|| format!("loop: no sign of life for {} s", silent.as_secs()))
}

/// Everything that keeps the agent from being ready, with one line for each.
pub fn not_ready(status: &Status) -> Vec<String> {
    let mut reasons: Vec<String> = stuck(status).into_iter().collect();
    let heard = status.answered.map(|at| Instant::now().saturating_duration_since(at));
    if !status.store.following && heard.is_none_or(|ago| ago > REACHED) {
        let why = status.store.error.as_deref().unwrap_or("no answer yet");
        reasons.push(format!("store: {why}"));
    }
    let lease = &status.lease;
    match &lease.state {
        LeaseState::Held if lease.ends.is_some_and(|end| end <= Instant::now()) => {
            reasons.push(format!("lease: {} has expired", lease.key));
        }
        LeaseState::Held => {
            if let Some(alteration) = lease.alteration.as_ref().filter(|alteration| alteration.stands) {
                reasons.push(format!("lease: {} was altered from outside ({})", lease.key, alteration.what));
            }
        }
        LeaseState::Missing => reasons.push(format!("lease: {} is gone from the store", lease.key)),
        LeaseState::Lost { to } => reasons.push(format!("lease: {} is held by {to}", lease.key)),
    }
    if let Some(why) = &status.underlay.error {
        reasons.push(format!("underlay: {why}"));
    }
    if !status.datapath.attached {
        let why = status.datapath.error.as_deref().unwrap_or("not read yet");
        reasons.push(format!("data path: {why}"));
    }
    reasons
}

fn verdict(good: &str, reasons: Vec<String>) -> Response<Full<Bytes>> {
    if reasons.is_empty() {
        text(StatusCode::OK, format!("{good}\n"))
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
    }
}

fn text(code: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    fn status() -> Status {
        let mut status = Status::new(
            [10, 99, 0, 1].into(),
            "10.244.1.0/24".parse().unwrap(),
            "10.244.0.0/16".parse().unwrap(),
            crate::model::backend::Backend::DEFAULT,
        );
        status.store.following = true;
        status.datapath.attached = true;
        status.lease.key = "10.244.1.0-24".to_owned();
        status.lease.ends = Some(Instant::now() + Duration::from_secs(60));
        status
    }

    async fn get(address: SocketAddr, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let text = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        (code, body.to_owned())
    }

    #[tokio::test]
    async fn tells_the_truth_over_tcp() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (changed, watched) = watch::channel(status());
        let server = tokio::spawn(serve(listener, watched, "/nowhere".into()));
        assert_eq!(get(address, "GET /healthz").await, (200, "the loop lives\n".to_owned()));
        assert_eq!(get(address, "GET /readyz").await, (200, "ready\n".to_owned()));
        let (code, body) = get(address, "GET /status").await;
        let read: Status = serde_json::from_str(&body).unwrap();
        assert_eq!((code, read.subnet), (200, status().subnet));
        assert_eq!(get(address, "GET /").await.0, 404);
        assert_eq!(get(address, "POST /healthz").await.0, 405);

        changed.send_modify(|status| {
            status.store.following = false;
            status.store.error = Some("etcd does not answer".to_owned());
            status.lease.state = LeaseState::Lost { to: "10.99.0.9".to_owned() };
            status.datapath.attached = false;
            status.underlay.error = Some("eth0 is down".to_owned());
        });
        assert_eq!(
            get(address, "GET /readyz").await,
            (
                503,
                "store: etcd does not answer\nlease: 10.244.1.0-24 is held by 10.99.0.9\nunderlay: eth0 is down\n\
                 data path: not read yet\n"
                    .to_owned()
            )
        );
        assert_eq!(get(address, "GET /healthz").await.0, 200);
        server.abort();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error = format!("{:#}", bind(taken.local_addr().unwrap()).await.unwrap_err());
        assert!(error.contains("--healthz-port"), "{error}");
    }

    #[tokio::test]
    async fn who_never_reads_has_its_place_for_a_while_only() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_changed, watched) = watch::channel(status());
        let limits = Limits { connections: 2, lasts: Duration::from_secs(1) };
        let server = tokio::spawn(serve_within(limits, listener, watched, "/nowhere".into()));
        let start = Instant::now();
        let mut held = Vec::new();
        for _ in 0..limits.connections {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let requests = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
            // The client sends without end, until the server cuts the connection off.
            held.push(tokio::spawn(
                async move { while stream.write_all(requests.as_bytes()).await.is_ok() {} },
            ));
        }
        // Both clients have their places, because they came first.
        assert_eq!(get(address, "GET /healthz").await.0, 200);
        assert!(start.elapsed() >= limits.lasts, "{:?}", start.elapsed());
        for client in held {
            timeout(PATIENCE, client).await.expect("cut off").unwrap();
        }
        server.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn silence_of_loop_and_store_counts_after_a_while() {
        let mut status = status();
        status.store.following = false;
        status.answered = Some(Instant::now());
        tokio::time::advance(Duration::from_secs(14)).await;
        assert_eq!(not_ready(&status), [""; 0]);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(not_ready(&status), ["loop: no sign of life for 16 s"]);
        status.beat = Instant::now();
        tokio::time::advance(Duration::from_secs(15)).await;
        assert_eq!(not_ready(&status), ["store: no answer yet"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_lease_is_not_ready_and_the_time_of_day_ends_none() {
        let mut status = status();
        status.beat = Instant::now() + Duration::from_secs(60);
        // As after the host's clock was set a day ahead.
        status.lease.expires = Some(1);
        assert_eq!(not_ready(&status), [""; 0]);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(not_ready(&status), ["lease: 10.244.1.0-24 has expired"]);
        status.lease.state = LeaseState::Missing;
        assert_eq!(not_ready(&status), ["lease: 10.244.1.0-24 is gone from the store"]);
    }
}
