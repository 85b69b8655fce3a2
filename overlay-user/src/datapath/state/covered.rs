//! Finds what this network has pinned on a bpf file system that another mount covers, and brings it to where it is looked for.
use anyhow::Result;
use log::warn;

use super::paths::Paths;
use crate::datapath::bpffs;

impl Paths {
    /// Moves the pins that the record tells of to the bpf file system that is at their place now, if it is another one. Without
    /// them the programs would go on unseen, beside those that a new agent attaches. The caller must have the lock.
    pub fn uncover(&self) -> Result<()> {
        let Some(record) = self.record().ok().flatten() else { return Ok(()) };
        let (Some(recorded), Some(present)) = (record.bpffs, self.bpffs()) else { return Ok(()) };
        if recorded == present || !record.is_of_this_boot() {
            return Ok(());
        }
        let root = self.bpf_root.display();
        let Some(covered) = bpffs::covered(&self.bpf_root, recorded) else {
            warn!(
                "the bpf filesystem that held what an earlier agent pinned is not mounted at {root} any more: its programs end \
                 with it, unless it is mounted elsewhere"
            );
            return Ok(());
        };
        let (there, here) = (bpffs::inside(&covered).join("overlay"), self.bpf_root.join("overlay"));
        let mut moved = 0;
        for layout in std::fs::read_dir(&there).into_iter().flatten().flatten() {
            let pins = layout.path().join(&self.network);
            if pins.is_dir() {
                moved += bpffs::move_pins(&pins, &here.join(layout.file_name()).join(&self.network))?;
            }
        }
        warn!(
            "somebody mounted another bpf filesystem over the one at {root}: {moved} maps and links of network {} were brought \
             into the new one",
            self.network
        );
        Ok(())
    }
}
