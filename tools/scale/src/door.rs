//! A way to etcd that can be closed: hosts that take it are cut off from etcd while it is.
use anyhow::{Context as _, Result};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// A port of this machine behind which etcd is, unless the door is closed.
#[derive(Debug)]
pub(crate) struct Door {
    url: String,
    is_open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Door {
    /// Makes an open door to the etcd with this address.
    pub(crate) async fn to(etcd: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("find a free port")?;
        let url = format!("http://{}", listener.local_addr()?);
        let (is_open, state) = watch::channel(true);
        let etcd = etcd.trim_start_matches("http://").to_owned();
        let task = tokio::spawn(async move {
            loop {
                // What arrives at a closed door is let go, which the host sees as a connection that ends.
                if let Ok((host, _)) = listener.accept().await
                    && *state.borrow()
                {
                    tokio::spawn(pass(host, etcd.clone(), state.clone()));
                }
            }
        });
        Ok(Self { url, is_open, task })
    }

    /// What hosts take for etcd's address.
    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// Ends all connections, and refuses new ones.
    pub(crate) fn close(&self) {
        self.is_open.send_replace(false);
    }

    pub(crate) fn open(&self) {
        self.is_open.send_replace(true);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
        self.close();
    }
}

/// Carries bytes both ways until either side ends the connection, or the door is closed.
async fn pass(mut host: TcpStream, etcd: String, mut state: watch::Receiver<bool>) {
    let Ok(mut to) = TcpStream::connect(etcd).await else { return };
    for stream in [&host, &to] {
        // It would only make small messages late.
        let _ = stream.set_nodelay(true);
    }
    tokio::select! {
        _ = copy_bidirectional(&mut host, &mut to) => {}
        _ = state.wait_for(|is_open| !*is_open) => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_closed_door_ends_connections_and_an_open_one_lets_new_ones_through() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = Door::to(&format!("http://{}", echo.local_addr().unwrap())).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        let url = door.url();
        let address = url.trim_start_matches("http://");
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'x');
            door.close();
            assert!(stream.read_u8().await.is_err());
            let mut refused = TcpStream::connect(address).await.unwrap();
            assert!(refused.read_u8().await.is_err());
            door.open();
        }
    }
}
