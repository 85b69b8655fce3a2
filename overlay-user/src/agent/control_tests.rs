//! Tests of the control socket: a round trip, broken requests, stale and live sockets.
use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Stands for the loop: it answers every request with the request's own text.
async fn serve(path: &Path) -> tokio::task::JoinHandle<()> {
    let (calls, mut asked) = mpsc::channel::<Call>(1);
    let server = Server::bind(path).await.unwrap();
    tokio::spawn(async move {
        let answers = async {
            while let Some(call) = asked.recv().await {
                let _ = call.answer.send(Response::Done(format!("{:?}", call.request)));
            }
        };
        tokio::join!(server.serve(calls), answers);
    })
}

async fn raw(path: &Path, text: &str) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn requests_reach_the_loop_and_answers_come_back() {
    let folder = folder();
    let path = socket_path(&Paths::new(folder.path(), folder.path(), "default"));
    let server = serve(&path).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let request = Request::Attach {
        address: IpAddr::from([10, 244, 1, 2]),
        port: "veth7".to_owned(),
        mac: Some(Mac([2; 6])),
    };
    let Response::Done(said) = ask(&path, &request).await.unwrap() else { panic!("not done") };
    assert_eq!(said, format!("{request:?}"));
    assert_eq!(raw(&path, "\"resync\"\n").await, "{\"done\":\"Resync\"}\n");
    server.abort();
    let _ = server.await;
    assert!(!path.exists(), "the socket goes with its server");
}

#[tokio::test]
async fn broken_requests_get_an_error() {
    let folder = folder();
    let path = socket_path(&Paths::new(folder.path(), folder.path(), "default"));
    let server = serve(&path).await;
    for text in ["\n", "{\n", "\"reboot\"\n", "{\"detach\":{\"address\":\"10.0.0\"}}\n", &"x".repeat(5000)] {
        let answer = raw(&path, text).await;
        assert!(answer.starts_with("{\"error\":\"request not understood"), "{answer}");
    }
    server.abort();
}

#[tokio::test]
async fn a_server_leaves_anothers_file_alone() {
    let folder = folder();
    let path = folder.path().join("control.sock");
    let server = Server::bind(&path).await.unwrap();
    let other = folder.path().join("other");
    std::fs::write(&other, "").unwrap();
    std::fs::rename(&other, &path).unwrap();
    drop(server);
    assert!(path.exists());
    // The first files of these two file systems have the same number.
    let [one, two] = ["/proc", "/sys"].map(|path| identity(Path::new(path)).unwrap());
    assert_eq!(one.1, two.1);
    assert_ne!(one, two);
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_named() {
    let folder = folder();
    let path = socket_path(&Paths::new(folder.path(), folder.path(), "default"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = serve(&path).await;
    let error = Server::bind(&path).await.unwrap_err().to_string();
    assert!(error.contains("another agent answers") && error.contains("control.sock"), "{error}");
    server.abort();
    let _ = server.await;
    let error = format!("{:#}", ask(&path, &Request::Status).await.unwrap_err());
    assert!(error.contains("is the agent of this network running"), "{error}");
}
