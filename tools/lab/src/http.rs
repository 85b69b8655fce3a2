//! Asking a host's web servers.
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::host::Host;

/// Asks the web server at `address` (`host:port`) for `path`, and returns its whole answer, head and body. By HTTP/1.0, since the body
/// may come in chunks by later versions.
///
/// # Errors
/// When nobody answers, or nothing comes for longer than `patience`.
pub fn ask(address: &str, path: &str, patience: Duration) -> Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(patience))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    Ok(answer)
}

impl Host {
    /// Asks a web server on the host: sends `GET path` to 127.0.0.1:`port` and returns the status code and the body.
    pub fn http_get(&self, port: u16, path: &str) -> Result<(u16, String)> {
        let path = path.to_owned();
        self.namespace().enter(move || {
            let answer = ask(&format!("127.0.0.1:{port}"), &path, Duration::from_secs(5))?;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
            let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
            Ok((code.context("an answer without a status code")?, body.to_owned()))
        })
    }
}
