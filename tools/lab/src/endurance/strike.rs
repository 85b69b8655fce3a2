//! The faults as they are carried out. Each fault is waited for until it is mended. Otherwise the kill that follows could hit an
//! agent whose pins are gone, and the programs would end with it.
use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_project::random::Random;

use super::{
    clock,
    fault::Fault,
    look::{device, follow, layouts, link_id, missing, pinned, pins, reach},
};
use crate::{
    command::sh,
    host::Host,
    member::{Member, Store},
    numbered::Numbered,
    wait::wait_until,
};

/// What faults are struck at.
pub(super) struct Target<'a> {
    pub(super) members: &'a mut [Member],
    pub(super) store: &'a mut Store,
    pub(super) streams: &'a [Numbered; 2],
    pub(super) random: &'a mut Random,
    /// Whether the stack carries the numbered packets, so that what befalls overlay0 cuts their path.
    pub(super) on_stack: bool,
    /// What has been harmed so far.
    pub(super) harms: Vec<Interval>,
}

/// A time in which something was not whole, and the numbers of the packets that were sent meanwhile.
pub(super) struct Interval {
    pub(super) what: &'static str,
    pub(super) cuts_path: bool,
    pub(super) from: [u64; 2],
    pub(super) to: [u64; 2],
    pub(super) lasted: Duration,
    pub(super) limit: Duration,
}

/// What was done, how long it took until all was well, and what was not whole meanwhile.
pub(super) struct Blow {
    pub(super) fault: Fault,
    pub(super) what: String,
    pub(super) on_stack: bool,
    pub(super) mended: Duration,
    pub(super) harms: Vec<Interval>,
}

/// How long something is waited for at all. What takes longer than its limit below, but not this long, is measured, so that it can
/// be told by how much the limit was missed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long overlay0 may be gone or down. The kernel tells the agent at once; the rest is for a busy machine.
const TUNNEL: Duration = Duration::from_secs(5);
/// How long pins, files and programs may be missing. The agent looks every two seconds whether they are there; the rest is for a busy
/// machine.
const LOOKED_FOR: Duration = Duration::from_secs(10);
/// How long the path may be cut when the host's address changes. The agent follows to an address that has been there for two seconds,
/// and joins again there; its peers must hear of it from etcd. The rest is for a busy machine.
const MOVE: Duration = Duration::from_secs(10);
/// How long the path may be cut by the underlay's link. It is down for two seconds at most, and the rest is the underlay's own: the
/// agents have nothing to mend.
const LINK: Duration = Duration::from_secs(10);
/// An underlay address that no host of the lab has.
const ANOTHER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 77);

impl Target<'_> {
    /// Carries out a fault at a drawn host, and waits until it is mended.
    pub(super) fn strike(mut self, fault: Fault) -> Result<Blow> {
        let victim = self.random.below(self.members.len());
        let host = self.members[victim].host.clone();
        let (started, name) = (Instant::now(), host.name());
        let what = match fault {
            Fault::Links | Fault::Pins => {
                self.harm("pins were missing", LOOKED_FOR, false, |_| unpin(&host, fault == Fault::Links))?
            }
            Fault::Bpffs => self.harm("pins were covered", LOOKED_FOR, false, |_| mount_over(&host))?,
            Fault::Underlay => self.flap(victim)?,
            Fault::Address => self.move_address(victim)?,
            Fault::EtcdPaused => self.pause_etcd(victim)?,
            Fault::EtcdKilled => self.kill_etcd()?,
            Fault::SubnetEnv => self.harm("subnet.env was missing", LOOKED_FOR, false, |_| {
                fs::remove_file(host.subnet_file())?;
                wait_until("subnet.env", PATIENCE, || Ok(host.subnet_file().exists()))?;
                Ok(format!("subnet.env of {name} removed"))
            })?,
            Fault::State => {
                self.harm("the state folder was missing", LOOKED_FOR, false, |_| remove_state(&host))?
            }
            Fault::Clock => self.step_clock(victim)?,
            Fault::TunnelDeleted => {
                let before = device(&host)?;
                self.harm_tunnel(&host, "link delete overlay0", || Ok(device(&host)? != before))?
            }
            Fault::TunnelDown => {
                let is_up = || Ok(host.exec("ip -o link show dev overlay0")?.contains(",UP"));
                self.harm_tunnel(&host, "link set overlay0 down", is_up)?
            }
            Fault::Detached => self.detach(victim)?,
        };
        self.members.iter_mut().try_for_each(Member::wait_ready)?;
        follow(self.members, self.store)?;
        Ok(Blow { fault, what, on_stack: self.on_stack, mended: started.elapsed(), harms: self.harms })
    }

    /// Does `harm`, which lasts until what it harms is whole again, and notes how long that took. If it cuts the path, so does the
    /// note say which packets were under way or sent meanwhile.
    fn harm<T>(
        &mut self,
        what: &'static str,
        limit: Duration,
        cuts_path: bool,
        harm: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let from = [0, 1].map(|at| self.streams[at].sent());
        if cuts_path {
            // What was sent before has arrived then. On a busy machine it may wait in a CPU's queue for longer than `ip` takes.
            self.streams.iter().try_for_each(|stream| stream.flow(PATIENCE))?;
        }
        let started = Instant::now();
        let done = harm(self)?;
        let lasted = started.elapsed();
        // What was sent in a burst that is under way may have been sent before the path was whole.
        let to = [0, 1].map(|at| self.streams[at].begun());
        self.harms.push(Interval { what, cuts_path, from, to, lasted, limit });
        Ok(done)
    }

    /// Waits for a drawn time.
    fn rest(&mut self, least: f64, most: f64) -> Duration {
        let rest = Duration::from_secs_f64(least + (most - least) * self.random.share());
        thread::sleep(rest);
        rest
    }

    fn flap(&mut self, victim: usize) -> Result<String> {
        let host = self.members[victim].host.clone();
        let other = self.members[1 - victim].host.address();
        let mut down = Duration::ZERO;
        self.harm("the underlay's link was down", LINK, true, |target| {
            host.namespace().ip("link set eth0 down")?;
            down = target.rest(0.1, 2.0);
            host.namespace().ip("link set eth0 up")?;
            // The link takes a moment to carry frames again, and the neighbour is asked for by ARP. This is the bare underlay; the
            // overlay must work as soon as that does.
            wait_until("the underlay", PATIENCE, || {
                Ok(host.exec(&format!("ping -n -c 1 -W 0.2 {other}")).is_ok())
            })
        })?;
        Ok(format!("eth0 of {} down for {} ms", host.name(), down.as_millis()))
    }

    fn move_address(&mut self, victim: usize) -> Result<String> {
        let host = self.members[victim].host.clone();
        let home = host.address();
        for (from, to) in [(home, ANOTHER), (ANOTHER, home)] {
            self.harm("the host had lost its address, and the agents followed", MOVE, true, |target| {
                let batch = host.folder().join("batch");
                fs::write(&batch, format!("address del {from}/24 dev eth0\naddress add {to}/24 dev eth0\n"))?;
                host.exec(&format!("ip -batch {}", batch.display()))?;
                let other = &target.members[1 - victim];
                wait_until("a peer at its new address", PATIENCE, || {
                    Ok(other.overlay(&["peers", "--json"])?.contains(&format!("\"{to}\"")))
                })?;
                target.members[victim].wait_ready()?;
                reach(target.members, target.streams)
            })?;
            self.rest(0.5, 1.5);
        }
        Ok(format!("{} moved from {home} to {ANOTHER}, and back", host.name()))
    }

    fn pause_etcd(&mut self, victim: usize) -> Result<String> {
        self.store.as_etcd()?.pause()?;
        let restart = self.random.below(2) == 0;
        if restart {
            self.members[victim].kill_agent()?;
            self.members[victim].start_agent()?;
        }
        let paused = self.rest(1.0, 8.0);
        self.store.as_etcd()?.resume()?;
        let meanwhile = match restart {
            true => {
                format!(", while the agent of {} was killed and started", self.members[victim].host.name())
            }
            false => String::new(),
        };
        Ok(format!("etcd stopped for {} ms{meanwhile}", paused.as_millis()))
    }

    fn kill_etcd(&mut self) -> Result<String> {
        self.store.as_etcd()?.kill9()?;
        let away = self.rest(0.1, 3.0);
        self.store.as_etcd()?.restart()?;
        Ok(format!("etcd killed, away for {} ms", away.as_millis()))
    }

    fn step_clock(&mut self, victim: usize) -> Result<String> {
        const HOUR: i64 = 3600;
        const STEPS: [i64; 6] = [-17_520 * HOUR, -26 * HOUR, -HOUR, HOUR, 26 * HOUR, 17_520 * HOUR];
        let member = &mut self.members[victim];
        let pid = member.agent()?.pid()?;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        ensure!(maps.contains("clock.so"), "the agent of {} has no clock of its own", member.host.name());
        let seconds = self.random.one(&STEPS);
        clock::step(member, seconds)?;
        // Nothing may come of it, at once or a moment later.
        let ends = Instant::now() + Duration::from_secs(2);
        while Instant::now() < ends {
            let (code, why) = member.agent()?.readiness()?;
            ensure!(code == 200, "/readyz of {} is {code}: {why}", member.host.name());
            thread::sleep(Duration::from_millis(100));
        }
        Ok(format!("the clock of {} set to {:+} h off", member.host.name(), seconds / HOUR))
    }

    fn harm_tunnel(
        &mut self,
        host: &Host,
        harm: &str,
        mut is_mended: impl FnMut() -> Result<bool>,
    ) -> Result<String> {
        self.harm("overlay0 was not there", TUNNEL, self.on_stack, |target| {
            host.namespace().ip(harm)?;
            // It may be gone while it is asked about.
            wait_until("overlay0", PATIENCE, || Ok(is_mended().unwrap_or(false)))?;
            target.members.iter_mut().try_for_each(Member::wait_ready)?;
            if target.on_stack { reach(target.members, target.streams) } else { Ok(()) }
        })?;
        Ok(format!("{}: ip {harm}", host.name()))
    }

    fn detach(&mut self, victim: usize) -> Result<String> {
        let host = self.members[victim].host.clone();
        let links: Vec<PathBuf> = pinned(&host)
            .into_iter()
            .filter(|path| path.parent().is_some_and(|folder| folder.ends_with("links")))
            .collect();
        if links.is_empty() {
            return Ok(format!("nothing to detach: no link of {} is pinned", host.name()));
        }
        let link = links[self.random.below(links.len())].clone();
        let (path, name) =
            (pins(&host).join(&link), link.file_name().unwrap_or_default().to_string_lossy().into_owned());
        // A program that is attached anew has another link. Debian's bpftool does not say what a link is attached to.
        let before = link_id(&host, &path).with_context(|| format!("the link {}", path.display()))?;
        // overlay0's programs say where to, and check what comes: without them the stack's tier carries nothing.
        let cuts = self.on_stack && (name.starts_with("send") || name.starts_with("receive"));
        self.harm("a program was not attached", LOOKED_FOR, cuts, |target| {
            host.exec(&format!("bpftool link detach pinned {}", path.display()))?;
            // A program at a container's port is looked for by audits alone, and this asks for one.
            target.members[victim].overlay(&["peers", "--resync"])?;
            wait_until("a program", PATIENCE, || Ok(link_id(&host, &path).is_some_and(|id| id != before)))?;
            if target.on_stack { reach(target.members, target.streams) } else { Ok(()) }
        })?;
        Ok(format!("link {name} of {} detached", host.name()))
    }
}

/// Removes pins, and waits until they are back.
fn unpin(host: &Host, links_only: bool) -> Result<String> {
    let (folder, before) = (pins(host), pinned(host));
    let what = if links_only { "links" } else { "maps and links" };
    for layout in layouts(host) {
        let links = layout.join("default/links");
        if links_only && links.exists() {
            fs::remove_dir_all(links)?;
        }
    }
    if !links_only {
        fs::remove_dir_all(&folder)?;
    }
    // The agent may have pinned some of them again already.
    let removed = before.difference(&pinned(host)).count();
    wait_until("pins", PATIENCE, || Ok(pinned(host) == before)).with_context(|| missing(host, &before))?;
    Ok(format!("pins of {removed} {what} of {} removed", host.name()))
}

/// Mounts a BPF file system over the pins, and waits until they are in there.
fn mount_over(host: &Host) -> Result<String> {
    let before = pinned(host);
    sh(&format!("mount -t bpf bpf {}", host.bpf_root().display()))?;
    wait_until("pins on the new file system", PATIENCE, || Ok(pinned(host) == before))
        .with_context(|| missing(host, &before))?;
    Ok(format!("a bpffs mounted over that of {}", host.name()))
}

/// Removes the state folder, and waits for what an agent keeps in it.
fn remove_state(host: &Host) -> Result<String> {
    let state = host.folder().join("state/default");
    // The agent may write a file meanwhile, and then the folder is not empty.
    wait_until("the state folder's end", PATIENCE, || Ok(fs::remove_dir_all(&state).is_ok()))?;
    for file in ["record.json", "lock", "control.sock", "origin"] {
        wait_until(file, PATIENCE, || Ok(state.join(file).exists()))?;
    }
    Ok(format!("the state folder of {} removed", host.name()))
}
