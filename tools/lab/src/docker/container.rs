//! A container of a Docker daemon.
use std::{fmt::Display, net::Ipv4Addr};

use anyhow::{Context as _, Result, ensure};

use super::client::Client;
use crate::command;

/// How long a container waits for an answer, in seconds. Debian's busybox has no such option for `wget`.
const TIMEOUT: &str = "5";

/// A container that the Docker daemon runs. It serves three pages at port 80: `/`, `/busybox` (two megabytes), and
/// `/cgi-bin/who`, which shows the address that the request came from. It ends with its daemon.
#[derive(Clone, Debug)]
pub struct DockerContainer {
    client: Client,
    name: String,
    address: Ipv4Addr,
}

impl DockerContainer {
    /// The one of this name, which runs.
    pub(super) fn running(client: Client, name: &str) -> Result<Self> {
        let mut container = Self { client, name: name.to_owned(), address: Ipv4Addr::UNSPECIFIED };
        container.find_address()?;
        Ok(container)
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its MAC address.
    pub fn mac(&self) -> Result<String> {
        self.inspect("MacAddress")
    }

    /// Runs a command in the container. The words are separated by spaces; no shell sees them.
    pub fn exec(&self, line: &str) -> Result<String> {
        self.client.docker(&format!("exec {} {line}", self.name))
    }

    /// Pings `address`; fails unless every request is answered.
    pub fn ping(&self, address: Ipv4Addr, count: u32) -> Result<()> {
        let said = self.exec(&format!("ping -c {count} -i 0.05 -W {TIMEOUT} {address}"))?;
        // busybox's ping succeeds if a single request is answered, so its summary is read.
        ensure!(said.contains(" 0% packet loss"), "{} -> {address}: {said}", self.address);
        Ok(())
    }

    /// Whether one ping is answered within a second.
    pub fn reaches(&self, address: Ipv4Addr) -> bool {
        self.exec(&format!("ping -c 1 -W 1 {address}")).is_ok()
    }

    /// Fetches `http://<what>` from inside.
    pub fn fetch(&self, what: &str) -> Result<String> {
        self.exec(&format!("timeout {TIMEOUT} wget -q -O - http://{what}"))
    }

    /// Downloads the two megabytes that a container serves at `from`, and compares their checksum with that of the same
    /// file here.
    pub fn download(&self, from: impl Display) -> Result<()> {
        let words = [
            "exec",
            &self.name,
            "sh",
            "-c",
            &format!("timeout 20 wget -q -O - http://{from}/busybox | sha256sum"),
        ];
        let got = command::output(&mut self.client.command(&words)?)?;
        let own = self.exec("sha256sum /bin/busybox")?;
        let sum = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        ensure!(sum(&got) == sum(&own), "{} got other bytes from {from} than it has", self.address);
        Ok(())
    }

    /// Stops it.
    pub fn stop(&self) -> Result<()> {
        self.client.docker(&format!("stop {}", self.name)).map(drop)
    }

    /// Starts the container again. Docker may give it another address.
    pub fn start(&mut self) -> Result<()> {
        self.client.docker(&format!("start {}", self.name))?;
        self.find_address()
    }

    fn find_address(&mut self) -> Result<()> {
        let address = self.inspect("IPAddress")?;
        self.address =
            address.parse().with_context(|| format!("the address {address:?} of {}", self.name))?;
        Ok(())
    }

    /// A field of what Docker says about the container's one network.
    fn inspect(&self, field: &str) -> Result<String> {
        let format = format!("{{{{range.NetworkSettings.Networks}}}}{{{{.{field}}}}}{{{{end}}}}");
        Ok(self.client.docker(&format!("inspect --format {format} {}", self.name))?.trim().to_owned())
    }
}
