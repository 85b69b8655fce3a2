//! Connections that live through a move.
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

use overlay_lab::{Container, Namespace, Steady};

use super::{
    super::bed::{flannels, overlay},
    scene::Scene,
};

/// Both ends of a connection.
pub struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(from: &Namespace, to: (Ipv4Addr, u16), server: &Container, port: u16) -> Self {
        let address = (server.address(), port);
        let listener = server.namespace().enter(move || Ok(TcpListener::bind(address)?)).unwrap();
        let client = from.enter(move || Ok(TcpStream::connect(to)?)).unwrap();
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        Self { client, server }
    }

    /// Lets the server speak first, because a packet of the client would tell the host about the connection.
    pub fn talk(&mut self) {
        let mut heard = [0; 4];
        self.server.write_all(b"news").unwrap();
        self.client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"news");
        self.client.write_all(b"seen").unwrap();
        self.server.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"seen");
    }
}

/// A connection of the moved host itself to the container on the other host, over which both ends have talked.
pub fn of_the_host(scene: &Scene) -> Connection {
    let server = &scene.other().container;
    let mut connection =
        Connection::open(scene.moved().host.namespace(), (server.address(), 8080), server, 8080);
    connection.talk();
    connection
}

#[test]
fn live_connections_lose_nothing_where_invalid_packets_are_dropped_and_may_return_to_the_stack() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        scene.bed.flannel[0].stop();
        let (a, b) = scene.containers();
        let ways = [(a, b), (b, a)].into_iter().cycle().take(8);
        let live: Vec<_> = ways.map(|(from, to)| Steady::start(from, to).unwrap()).collect();
        let traffic = super::scene::Traffic::start(&scene);
        scene.done(&[]);
        traffic.flow_on();
        assert_eq!(scene.invalid(), 0, "packets that connection tracking called invalid");
        // The stack has not seen what the fast path has carried since.
        let etcd = scene.etcd.clone();
        let arguments = ["--etcd-endpoints", &etcd, "--fast-path", "off"];
        let mut agent = scene.moved().host.start_agent(overlay(), &arguments).unwrap();
        agent.wait_ready(Duration::from_secs(60)).unwrap();
        traffic.flow_on();
        for report in traffic.finish() {
            assert_eq!(report.lost, 0, "{report:?}");
        }
        for connection in live {
            connection.finish().unwrap();
        }
        assert_eq!(scene.invalid(), 0, "packets that connection tracking called invalid");
    }
}

#[test]
fn connections_that_the_host_translates_live_through_it() {
    for flannel in flannels() {
        let mut scene = Scene::new(&flannel);
        scene.bed.flannel[0].stop();
        let (a, b) = scene.containers();
        // One connection goes to a service whose backend is on the other host, another to a port that is published
        // here.
        let service = Ipv4Addr::new(10, 96, 0, 10);
        let here: Ipv4Addr = scene.moved().subnet.replace("0/24", "1").parse().unwrap();
        let rules = format!(
            "add table ip services\n\
             add chain ip services pre {{ type nat hook prerouting priority dstnat; }}\n\
             add rule ip services pre ip daddr {service} tcp dport 80 dnat to {}:8080\n\
             add rule ip services pre ip daddr {here} tcp dport 81 dnat to {}:8081\n",
            b.address(),
            a.address()
        );
        let file = scene.moved().host.folder().join("services");
        fs::write(&file, rules).unwrap();
        scene.moved().host.exec(&format!("nft -f {}", file.display())).unwrap();
        let mut asked = Connection::open(a.namespace(), (service, 80), b, 8080);
        let mut published = Connection::open(b.namespace(), (here, 81), a, 8081);
        asked.talk();
        published.talk();
        scene.done(&[]);
        for _ in 0..3 {
            asked.talk();
            published.talk();
        }
        scene.done(&["--back"]);
        asked.talk();
        published.talk();
    }
}
