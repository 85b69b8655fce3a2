//! Tells systemd that the service is ready (`Type=notify`), as flanneld does: one datagram to the socket that the variable
//! NOTIFY_SOCKET names (sd_notify(3)).
use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Tells whoever started this process that it serves now. Without the variable there is nobody to tell.
pub fn ready() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = send(&socket, "READY=1") {
        log::warn!("tell {} that the agent is ready (NOTIFY_SOCKET): {error}", socket.to_string_lossy());
    }
}

/// Sends a state to a socket: a path, or a name of the abstract namespace behind an `@`.
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor an abstract name")),
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("overlay-notify-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let sockets = [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{name}").into()),
        ];
        for (listener, socket) in sockets {
            send(&socket, "READY=1").unwrap();
            let mut buffer = [0; 64];
            let length = listener.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1", "{socket:?}");
        }
    }

    #[test]
    fn a_socket_that_is_none_is_an_error_and_no_end() {
        for socket in ["relative", "/nonexistent/notify", "@", "vsock:2:1"] {
            // The name of no letters is an address to nobody.
            assert!(send(OsStr::new(socket), "READY=1").is_err(), "{socket}");
        }
    }
}
