//! Programs at TC that outlive the process which attached them.
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType, links::FdLink},
};

/// Loads the program `name`, attaches it to each of these interfaces at ingress, and pins the links in the folder `pins` as
/// `<pin>-<interface>`. It stays as long as they do.
pub(crate) fn attach<'a>(
    ebpf: &mut Ebpf,
    name: &str,
    interfaces: impl IntoIterator<Item = &'a str>,
    pins: &Path,
    pin: &str,
) -> Result<()> {
    let program: &mut SchedClassifier =
        ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
    program.load().with_context(|| format!("load {name}"))?;
    for interface in interfaces {
        let id = program
            .attach(interface, TcAttachType::Ingress)
            .with_context(|| format!("attach {name} to {interface}"))?;
        let link: FdLink = program
            .take_link(id)?
            .try_into()
            .with_context(|| format!("pin the link of {name}: it takes TCX (Linux 6.6)"))?;
        link.pin(pins.join(format!("{pin}-{interface}")))
            .with_context(|| format!("pin the link of {name} in {}", pins.display()))?;
    }
    Ok(())
}
