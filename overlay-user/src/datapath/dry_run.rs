//! A data path for `overlay agent --dry-run`: it prints what would change, and changes nothing.
use std::io::Write;

use super::{Datapath, DatapathError, Installed};
use crate::model::change::Change;

/// Reads from the data path inside it, and prints changes instead of making them.
///
/// A change that was printed counts as made, so that the loop does not print it again at every audit.
#[derive(Debug)]
pub struct DryRun<D, W> {
    inner: D,
    out: W,
    pretended: Vec<Change>,
}

impl<D: Datapath, W: Write + Send> DryRun<D, W> {
    /// A dry run over a data path. The lines are written to `out`.
    pub fn new(inner: D, out: W) -> Self {
        Self { inner, out, pretended: Vec::new() }
    }
}

impl<D: Datapath, W: Write + Send> Datapath for DryRun<D, W> {
    fn installed(&self) -> Result<Installed, DatapathError> {
        let mut installed = self.inner.installed()?;
        for change in &self.pretended {
            installed.apply(change);
        }
        Ok(installed)
    }

    fn apply(&mut self, change: &Change) -> Result<(), DatapathError> {
        writeln!(self.out, "would {change}").map_err(|error| DatapathError::Failed {
            action: "print a change".to_owned(),
            detail: error.to_string(),
        })?;
        self.pretended.push(*change);
        Ok(())
    }

    fn expire_flows(&mut self) -> Result<(usize, usize), DatapathError> {
        Ok((0, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        datapath::memory::Memory,
        model::{change::PeerChange, entries::Peer},
    };

    #[test]
    fn nothing_changes_but_the_output_and_what_is_read_back() {
        let real = Memory::default();
        let mut out = Vec::new();
        let subnet = "10.244.2.0/24".parse().unwrap();
        let peer =
            Peer { public_ip: [10, 99, 0, 2].into(), vtep_mac: "02:00:00:00:00:02".parse().ok(), ipv6: None };
        let mut dry = DryRun::new(real.clone(), &mut out);
        dry.apply(&PeerChange::Put(subnet, peer).into()).unwrap();
        assert_eq!(dry.installed().unwrap().peers.get(&subnet), Some(&peer));
        dry.apply(&PeerChange::Remove(subnet).into()).unwrap();
        assert!(dry.installed().unwrap().peers.is_empty());
        assert!(real.state().applied.is_empty());
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "would put peer 10.244.2.0/24 via 10.99.0.2 (02:00:00:00:00:02)\nwould remove peer 10.244.2.0/24\n"
        );
    }
}
