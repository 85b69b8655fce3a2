//! An etcd of several members, each a process of its own on this machine.
use std::{fs, net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Etcd, Place, free_port};

impl Etcd {
    /// Starts the members of a cluster on free ports of 127.0.0.1, each with its data and its log in a folder of its own.
    pub fn start_members(folder: &Path, count: usize) -> Result<Vec<Self>> {
        let mut tries = 0;
        loop {
            let members = Self::try_members(folder, count);
            // A port that was free may be somebody else's a moment later.
            tries += 1;
            if members.is_ok() || tries == 3 {
                return members;
            }
            fs::remove_dir_all(folder).context("remove what members left")?;
        }
    }

    fn try_members(folder: &Path, count: usize) -> Result<Vec<Self>> {
        // All ports are held until all are known, so that they differ.
        let listeners = (0..2 * count).map(|_| free_port()).collect::<Result<Vec<_>>>()?;
        let ports = listeners.iter().map(|listener| Ok(listener.local_addr()?.port()));
        let ports = ports.collect::<Result<Vec<_>>>()?;
        drop(listeners);
        let place = |(number, ports): (usize, &[u16])| {
            let name = format!("member{number}");
            let (folder, address) = (folder.join(&name), Ipv4Addr::LOCALHOST);
            let (client_port, peer_port) = (ports[0], ports[1]);
            Place {
                name,
                folder,
                members: None,
                netns: None,
                address,
                client_port,
                peer_port,
                tls: None,
                token: 0,
            }
        };
        let mut places: Vec<Place> = ports.chunks(2).enumerate().map(place).collect();
        let all: Vec<_> = places.iter().map(|place| format!("{}={}", place.name, place.peer_url())).collect();
        let mut members = Vec::new();
        for mut place in places.drain(..) {
            place.members = Some(all.join(","));
            fs::create_dir_all(&place.folder).with_context(|| format!("make {}", place.folder.display()))?;
            members.push(Self { child: place.spawn()?, place });
        }
        // A cluster answers only when more than half of its members run, so all are started before any is waited for.
        for member in &mut members {
            member.wait_until_it_answers()?;
        }
        Ok(members)
    }

    /// Starts members again that were stopped. A cluster answers only when more than half of its members run, so all are started
    /// before any is waited for.
    pub fn restart_members(members: &mut [Self]) -> Result<()> {
        for member in &mut *members {
            member.child = member.place.spawn()?;
        }
        members.iter_mut().try_for_each(Self::wait_until_it_answers)
    }

    /// Makes another member the leader of the cluster, and returns which one it was and which one it is.
    pub fn move_leader(members: &[Self]) -> Result<(usize, usize)> {
        let ids = members.iter().map(Self::ids).collect::<Result<Vec<_>>>()?;
        let leader = ids.iter().position(|(own, leader)| own == leader).context("no member is the leader")?;
        let next = (leader + 1) % members.len();
        members[leader].ctl(&["move-leader", &format!("{:x}", ids[next].0)])?;
        Ok((leader, next))
    }

    /// The identities of this member, and of the one that it takes for the leader.
    fn ids(&self) -> Result<(u64, u64)> {
        let text = self.ctl(&["endpoint", "status", "--write-out", "json"])?;
        let status: Value = serde_json::from_str(&text).context("read etcd's status")?;
        let status = &status[0]["Status"];
        let ids = status["header"]["member_id"].as_u64().zip(status["leader"].as_u64());
        ids.with_context(|| format!("no member and leader in {text}"))
    }
}
