//! The path to a host that does not stand on the switch: two routers, and a link between them that may be narrower than
//! the devices at both ends.
use std::net::Ipv4Addr;

use anyhow::Result;

use crate::{
    namespace::Namespace,
    options::{Options, SWITCH},
};

/// A handle on both routers.
///
/// ```text
///   switch --- near --- narrow --- far --- eth0 of the host
///        10.99.0.2xx           10.99.<number>.254
/// ```
///
/// The MTU is lowered on this link alone. A veth drops what is larger than itself silently, but the tests need routers
/// that send an ICMP message or fragment.
#[derive(Clone, Debug)]
pub struct RoutedPath {
    number: u8,
    near: Namespace,
    far: Namespace,
}

impl RoutedPath {
    /// Makes both routers for host number `number`. `host` is the host's namespace, in which its `eth0` is made.
    pub(crate) fn new(
        lab: &str,
        number: u8,
        options: &Options,
        switch: &Namespace,
        host: &Namespace,
    ) -> Result<Self> {
        let namespace = |side: &str| Namespace::named(lab, &format!("h{number}-{side}"), !options.keep);
        let path = Self { number, near: namespace("near"), far: namespace("far") };
        path.near.create()?;
        path.far.create()?;
        let (near, far) = (path.near.name(), path.far.name());
        let mtu = options.mtu;
        switch
            .ip(&format!("link add h{number} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {near}"))?;
        switch.ip(&format!("link set h{number} master br0 up"))?;
        path.near
            .ip(&format!("link add narrow mtu {mtu} type veth peer name narrow mtu {mtu} netns {far}"))?;
        path.far.ip(&format!(
            "link add eth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            host.name()
        ))?;
        path.near.ip(&format!("address add {}/24 dev eth0", path.gateway()))?;
        path.near.ip(&format!("address add 10.98.{number}.1/24 dev narrow"))?;
        path.far.ip(&format!("address add 10.98.{number}.2/24 dev narrow"))?;
        path.far.ip(&format!("address add 10.99.{number}.254/24 dev eth0"))?;
        for router in [&path.near, &path.far] {
            router.ip("link set eth0 up")?;
            router.ip("link set narrow up")?;
            router.sysctl("ipv4/ip_forward", "1")?;
            if options.wire_like {
                for link in ["eth0", "narrow"] {
                    router.exec(&format!("ethtool -K {link} tso off gso off tx off gro on"))?;
                }
            }
        }
        if options.wire_like {
            switch.exec(&format!("ethtool -K h{number} tso off gso off tx off gro on"))?;
        }
        path.near.ip(&format!("route add {} via 10.98.{number}.2", path.network()))?;
        path.far.ip(&format!("route add default via 10.98.{number}.1"))?;
        Ok(path)
    }

    /// The host's address on the underlay.
    pub(crate) fn address(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, number, number)
    }

    /// The network behind the routers, such as `10.99.3.0/24`.
    pub fn network(&self) -> String {
        format!("10.99.{}.0/24", self.number)
    }

    /// The next hop towards that network, as the hosts on the switch see it.
    pub fn gateway(&self) -> Ipv4Addr {
        let [a, b, c, _] = SWITCH.octets();
        Ipv4Addr::new(a, b, c, 200 + self.number)
    }

    /// Sets the MTU of the link between the routers, in bytes, at both ends.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        [&self.near, &self.far].iter().try_for_each(|router| router.ip(&format!("link set narrow mtu {mtu}")))
    }

    /// The router on the switch. It fragments what is too large towards the host, or answers that it is.
    pub fn near(&self) -> &Namespace {
        &self.near
    }

    /// The router beside the host.
    pub fn far(&self) -> &Namespace {
        &self.far
    }
}
