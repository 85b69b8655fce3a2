//! A network namespace for one test, and containers in it.
use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::MetadataExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};

/// Address of the first container.
pub const C1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2));

/// Runs a test in a network namespace that ends with it. A netlink socket stays in the namespace of the thread that
/// opened it, so the test gets a thread and a runtime of its own.
pub fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("make a network namespace: this rung needs root (`cargo xtask test` says more)");
        run("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A container as the host sees it: a process in a network namespace of its own, behind a veth of the bridge.
pub struct Container {
    pub process: Child,
}

impl Container {
    /// Starts a container with `veth` as its port on br0 and `address` inside.
    pub fn start(veth: &str, address: IpAddr) -> Self {
        let container = Self::behind(veth);
        container.run(&format!("ip address add {address}/24 dev eth0"));
        run(&format!("ip link set {veth} master br0 up"));
        container
    }

    /// Starts a container without a bridge, as the CNI plugin `ptp` does: the gateway's address is on the veth, and a
    /// host route leads to the container.
    pub fn start_routed(veth: &str, address: IpAddr) -> Self {
        let container = Self::behind(veth);
        run(&format!("ip address add 10.244.1.1/32 dev {veth}"));
        run(&format!("ip link set {veth} up"));
        run(&format!("ip route add {address}/32 dev {veth} scope host"));
        container.run(&format!("ip address add {address}/32 dev eth0"));
        container.run("ip route add 10.244.1.1/32 dev eth0 scope link");
        container
    }

    pub fn behind(veth: &str) -> Self {
        // The process ends with this test, however the test ends.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "60"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let container = Self { process };
        let pid = container.process.id();
        let own = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        while std::fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino() == own {
            std::thread::sleep(Duration::from_millis(2));
        }
        run(&format!("ip link add {veth} type veth peer name eth0 netns {pid}"));
        container.run("ip link set lo up");
        container.run("ip link set eth0 up");
        container
    }

    pub fn run(&self, command: &str) -> String {
        run(&format!("nsenter --target {} --net {command}", self.process.id()))
    }

    /// Sends a packet, so that the kernel's bridge and neighbour table learn of the container.
    pub fn ping_gateway(&self) {
        self.run("ping -c 1 -W 2 10.244.1.1");
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The only possible error is that the process has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Makes the bridge of the containers.
pub fn bridge() {
    // The bridge has a fixed MAC address. Otherwise it would take that of its lowest port, and the endpoints would
    // change with it.
    run("ip link add br0 address 02:00:0a:f4:01:01 type bridge");
    run("ip address add 10.244.1.1/24 dev br0");
    run("ip link set br0 up");
}
