//! A wire between two interfaces: what arrives at one leaves by the other, without passing a bridge that they are ports
//! of.
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::{EbpfLoader, include_bytes_aligned};
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use crate::lasting;

#[derive(Deserialize)]
pub(crate) struct Specification {
    /// The interfaces at its ends, in the network namespace that this program was started in.
    interfaces: [String; 2],
    /// Where the programs' links are pinned. The wire exists as long as they do.
    pins: PathBuf,
}

#[derive(Serialize)]
pub(crate) struct Laid {
    ends: usize,
}

pub(crate) fn lay(specification: &Specification) -> Result<Laid> {
    let Specification { interfaces, pins } = specification;
    let index = |name: &String| if_nametoindex(name.as_str()).with_context(|| format!("no interface {name}"));
    let ends = index(&interfaces[0])? ^ index(&interfaces[1])?;
    let mut ebpf = EbpfLoader::new()
        .override_global("WIRE", &ends, true)
        .load(include_bytes_aligned!(concat!(env!("OUT_DIR"), "/overlay-bench")))
        .context("load the benchmark's programs")?;
    lasting::attach(&mut ebpf, "wire", interfaces.iter().map(String::as_str), pins, "wire")?;
    Ok(Laid { ends: interfaces.len() })
}
