//! Two containers with nothing but one veth between them: the limit of what any network between them can be.
use std::net::Ipv4Addr;

use anyhow::Result;

use crate::{container::Container, lab::Lab, namespace::Namespace};

impl Lab {
    /// Makes two containers that are connected by one veth, without any host.
    pub fn connect_directly(&self) -> Result<[Container; 2]> {
        let namespaces = ["a", "b"].map(|name| Namespace::named(&self.name, name, !self.options.keep));
        let [a, b] = &namespaces;
        a.create()?;
        b.create()?;
        let mtu = self.options.mtu;
        a.ip(&format!("link add eth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", b.name()))?;
        for (namespace, last) in [(a, 1), (b, 2)] {
            namespace.ip(&format!("address add 10.244.0.{last}/24 dev eth0"))?;
            namespace.ip("link set eth0 up")?;
            if self.options.wire_like {
                namespace.exec("ethtool -K eth0 tso off gso off tx off gro on")?;
            }
        }
        let [a, b] = namespaces;
        let container =
            |namespace, last| Container::new(namespace, Ipv4Addr::new(10, 244, 0, last), "eth0".to_owned());
        Ok([container(a, 1), container(b, 2)])
    }
}
