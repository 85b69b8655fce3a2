//! A container of the lab: a namespace with one address on its host's bridge.
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail};

use crate::{command, namespace::Namespace};

/// A handle on a container.
#[derive(Clone, Debug)]
pub struct Container {
    namespace: Namespace,
    address: Ipv4Addr,
    port: String,
}

/// The options of a ping.
#[derive(Clone, Copy, Debug)]
pub struct PingOptions {
    /// How many requests.
    pub count: u32,
    /// Seconds between them, if there are more than three.
    pub interval: f32,
    /// Bytes of ICMP payload; the IPv4 packet is 28 longer.
    pub size: u32,
    /// Don't fragment.
    pub df: bool,
    /// Seconds to wait for each answer.
    pub timeout: f32,
}

/// So many pings, or fewer, are sent at once.
const AT_ONCE: u32 = 3;

impl Default for PingOptions {
    fn default() -> Self {
        Self { count: 3, interval: 0.05, size: 56, df: false, timeout: 1.0 }
    }
}

/// What ping said.
#[derive(Clone, Debug, PartialEq)]
pub struct Ping {
    /// Requests sent.
    pub sent: u32,
    /// Answers received.
    pub received: u32,
    /// Shortest round trip in milliseconds, if there was any.
    pub fastest_ms: Option<f32>,
    /// MTU that a router on the way named in a frag-needed message.
    pub frag_needed: Option<u32>,
    /// All it printed.
    pub output: String,
}

impl Ping {
    /// Whether every request was answered.
    pub fn complete(&self) -> bool {
        self.sent > 0 && self.sent == self.received
    }
}

impl Container {
    pub(crate) fn new(namespace: Namespace, address: Ipv4Addr, port: String) -> Self {
        Self { namespace, address, port }
    }

    /// The container's address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The container's network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Name of the container's veth on the host.
    pub fn port(&self) -> &str {
        &self.port
    }

    /// Runs a command in the container. The words are separated by spaces; no shell sees them.
    pub fn exec(&self, line: &str) -> Result<String> {
        self.namespace.exec(line)
    }

    /// Pings `address`. It is no error if nothing answers, only if ping itself cannot run.
    pub fn ping(&self, address: Ipv4Addr, options: PingOptions) -> Result<Ping> {
        let PingOptions { count, interval, size, df, timeout } = options;
        let df = if df { "do" } else { "dont" };
        // ping waits for the last answer only as long as its interval (or twice the longest round trip). A few pings are
        // therefore sent at once, with an interval that they do not wait for unless an answer is late.
        let (interval, at_once) = if count <= AT_ONCE { (timeout, count) } else { (interval, 1) };
        let line =
            format!("ping -n -c {count} -l {at_once} -i {interval} -s {size} -M {df} -W {timeout} {address}");
        let words: Vec<_> = line.split_whitespace().collect();
        let mut command = self.namespace.command(&words)?;
        let output = command.output().with_context(|| format!("start {}", command::show(&command)))?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        match parse(&text) {
            Some(ping) => Ok(ping),
            None => bail!("{} ended with {}: {}", command::show(&command), output.status, text.trim()),
        }
    }

    /// Removes the container and its veth, as a container runtime does.
    pub fn remove(self) -> Result<()> {
        // The veth goes first, because the namespace lives on until its last process ends.
        self.namespace.ip("link delete eth0")?;
        command::sh(&format!("ip netns delete {}", self.namespace.name())).map(drop)
    }
}

fn parse(text: &str) -> Option<Ping> {
    // `3 packets transmitted, 3 received, 0% packet loss, time 101ms`
    let summary = text.lines().find(|line| line.contains("packets transmitted"))?;
    let mut fields = summary.split(", ");
    let number = |field: Option<&str>| field?.split(' ').next()?.parse().ok();
    let sent = number(fields.next())?;
    let received = number(fields.find(|field| field.contains("received")))?;
    // `rtt min/avg/max/mdev = 0.061/0.073/0.086/0.010 ms`
    let fastest_ms = text
        .lines()
        .find_map(|line| line.strip_prefix("rtt ")?.split(" = ").nth(1)?.split('/').next()?.parse().ok());
    // `From 10.244.1.1 icmp_seq=1 Frag needed and DF set (mtu = 1450)`
    let frag_needed = text.split("mtu = ").nth(1).and_then(|rest| rest.split(')').next()?.parse().ok());
    Some(Ping { sent, received, fastest_ms, frag_needed, output: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ping_prints_is_understood() {
        let text = "PING 10.244.2.2 (10.244.2.2) 1500(1528) bytes of data.\n\
                    From 10.244.1.1 icmp_seq=1 Frag needed and DF set (mtu = 1450)\n\n\
                    --- 10.244.2.2 ping statistics ---\n\
                    3 packets transmitted, 2 received, +1 errors, 33% packet loss, time 101ms\n\
                    rtt min/avg/max/mdev = 0.061/0.073/0.086/0.010 ms\n";
        let ping = parse(text).unwrap();
        assert_eq!((ping.sent, ping.received, ping.frag_needed), (3, 2, Some(1450)));
        assert_eq!(ping.fastest_ms, Some(0.061));
        assert!(!ping.complete());
        assert_eq!(parse("ping: connect: Network is unreachable"), None);
    }
}
