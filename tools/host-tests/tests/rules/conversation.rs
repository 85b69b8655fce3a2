//! Conversations whose every socket is served by one thread, so that what is said in them does not depend on time.
use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket,
        sockopt::{Linger, ReuseAddr},
    },
};
use overlay_lab::Namespace;

use super::arrivals::Names;

/// Bytes of every third datagram. The others are short.
const LONG: usize = 600;

/// The name of an error.
fn said(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| format!("{:?}", Errno::from_raw(number)))
}

/// The servers of one machine, which answer each line with the address that they saw it come from.
#[derive(Debug)]
pub struct Servers {
    listeners: Vec<TcpListener>,
    datagrams: Vec<UdpSocket>,
    /// These receive and do not answer.
    _mute: Vec<UdpSocket>,
    streams: Vec<(TcpStream, SocketAddr)>,
}

impl Servers {
    /// Listens on these ports of an address.
    pub fn start(
        namespace: &Namespace,
        address: Ipv4Addr,
        tcp: &'static [u16],
        udp: &'static [u16],
        mute: &'static [u16],
    ) -> Self {
        let datagrams = move |ports: &[u16]| {
            let open = |port: &u16| {
                let socket = UdpSocket::bind((address, *port))?;
                socket.set_nonblocking(true)?;
                Ok::<_, std::io::Error>(socket)
            };
            ports.iter().map(open).collect::<Result<Vec<_>, _>>()
        };
        let opened = namespace.enter(move || {
            let listen = |port: &u16| {
                let listener = TcpListener::bind((address, *port))?;
                listener.set_nonblocking(true)?;
                Ok::<_, std::io::Error>(listener)
            };
            Ok(Self {
                listeners: tcp.iter().map(listen).collect::<Result<_, _>>()?,
                datagrams: datagrams(udp)?,
                _mute: datagrams(mute)?,
                streams: Vec::new(),
            })
        });
        opened.unwrap()
    }

    /// Accepts what waits, and answers what was said.
    pub fn answer(&mut self, names: &Names) {
        for listener in &self.listeners {
            while let Ok((stream, from)) = listener.accept() {
                stream.set_nonblocking(true).unwrap();
                abort_when_closed(&stream);
                self.streams.push((stream, from));
            }
        }
        let mut buffer = [0; 2048];
        for (stream, from) in &mut self.streams {
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                for line in buffer[..length].split_inclusive(|byte| *byte == b'\n') {
                    // The client may be gone already.
                    let _ = stream.write_all(reply(line, *from, names).as_bytes());
                }
            }
        }
        for socket in &self.datagrams {
            loop {
                match socket.recv_from(&mut buffer) {
                    Ok((length, from)) => {
                        let _ = socket.send_to(reply(&buffer[..length], from, names).as_bytes(), from);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // An earlier answer has been refused.
                    Err(_) => {}
                }
            }
        }
    }

    /// Closes what was accepted.
    pub fn hang_up(&mut self) {
        self.streams.clear();
    }
}

/// Makes the socket send a reset when it is closed, so that nothing of it is sent again later.
fn abort_when_closed(stream: &TcpStream) {
    setsockopt(stream, Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

fn reply(heard: &[u8], from: SocketAddr, names: &Names) -> String {
    let heard = String::from_utf8_lossy(heard);
    let heard = heard.trim_end_matches(['\n', '.']);
    let SocketAddr::V4(from) = from else { unreachable!("the lab has no IPv6") };
    format!("{heard} from {}\n", names.address(*from.ip()))
}

/// Either kind of a client's socket.
#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

/// One client of one server.
#[derive(Debug)]
pub struct Conversation {
    /// What it is called in what is heard and seen.
    pub name: String,
    socket: Socket,
    /// How the connection came about, which is known after it was looked at.
    opened: String,
    /// What came back, by the number of the question.
    answers: BTreeMap<u64, String>,
    /// Errors in their order.
    errors: Vec<String>,
    asked: u64,
}

impl Conversation {
    /// Begins a TCP connection from a port, and does not wait for it.
    pub fn tcp(name: String, from: &Namespace, port: u16, to: SocketAddrV4) -> Self {
        let socket = from.enter(move || {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
            setsockopt(&socket, ReuseAddr, &true)?;
            bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port))?;
            // The connection is in progress, or its failure is kept in the socket.
            let begun = connect(socket.as_raw_fd(), &SockaddrIn::from(to));
            Ok((TcpStream::from(socket), begun.err()))
        });
        let (stream, error) = socket.unwrap();
        abort_when_closed(&stream);
        let mut begun = Self::new(name, Socket::Tcp(stream));
        begun
            .errors
            .extend(error.filter(|error| *error != Errno::EINPROGRESS).map(|error| format!("{error:?}")));
        begun
    }

    /// Opens a UDP socket at a port.
    pub fn udp(name: String, from: &Namespace, port: u16, to: SocketAddrV4) -> Self {
        let socket = from.enter(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            socket.set_nonblocking(true)?;
            socket.connect(to)?;
            Ok(socket)
        });
        Self::new(name, Socket::Udp(socket.unwrap()))
    }

    fn new(name: String, socket: Socket) -> Self {
        Self { name, socket, opened: String::new(), answers: BTreeMap::new(), errors: Vec::new(), asked: 0 }
    }

    /// Looks whether a TCP connection has come about.
    pub fn look(&mut self) {
        if let Socket::Tcp(stream) = &self.socket {
            self.opened = match (stream.take_error().unwrap(), stream.peer_addr()) {
                (Some(error), _) => said(&error),
                (None, Ok(_)) => "open".to_owned(),
                (None, Err(_)) => "no answer".to_owned(),
            };
        }
    }

    /// Forgets what was heard so far.
    pub fn forget(&mut self) {
        self.answers.clear();
        self.errors.clear();
    }

    /// Asks the next question. A datagram is filled up to `size` bytes.
    pub fn ask(&mut self) {
        let size = if self.asked % 3 == 2 { LONG } else { 0 };
        self.say(size);
    }

    /// Says something, in a datagram of so many bytes at least.
    pub fn say(&mut self, size: usize) {
        let number = self.asked;
        self.asked += 1;
        let text = format!("{}#{number}", self.name);
        let result = match &mut self.socket {
            Socket::Tcp(_) if self.opened != "open" => return,
            Socket::Tcp(stream) => stream.write_all(format!("{text}\n").as_bytes()),
            Socket::Udp(socket) => socket.send(format!("{text:.<size$}").as_bytes()).map(drop),
        };
        if let Err(error) = result {
            self.errors.push(said(&error));
        }
    }

    /// Takes what has come back.
    pub fn listen(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            let result = match &mut self.socket {
                Socket::Tcp(_) if self.opened != "open" => return,
                Socket::Tcp(stream) => stream.read(&mut buffer),
                Socket::Udp(socket) => socket.recv(&mut buffer),
            };
            let text = match result {
                Ok(0) => return,
                Ok(length) => String::from_utf8_lossy(&buffer[..length]).into_owned(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.errors.push(said(&error));
                    continue;
                }
            };
            for line in text.lines() {
                // `new-udp-a>b:8080#3 from a`
                let answer = line.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('#'));
                match answer.and_then(|rest| rest.split_once(' ')) {
                    Some((number, rest)) => {
                        self.answers.insert(number.parse().unwrap(), rest.to_owned());
                    }
                    None => self.errors.push(format!("heard {line:?}")),
                }
            }
        }
    }

    /// What came of it, in one line.
    pub fn line(&self) -> String {
        let mut line = format!("{} {}", self.name, self.opened);
        let mut heard: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (number, answer) in &self.answers {
            heard.entry(answer).or_default().push(*number);
        }
        for (answer, numbers) in heard {
            line += &format!(", answered {numbers:?} {answer}");
        }
        if !self.errors.is_empty() {
            line += &format!(", errors {:?}", self.errors);
        }
        line
    }
}
