//! `overlay-frames SPECIFICATION`: the parts of the benchmark that need BPF. The specification and the answer are JSON;
//! `cargo xtask bench` writes the one and reads the other.
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

mod floor;
mod frames;
mod lasting;
mod peers;
mod wire;

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Specification {
    Floor(floor::Specification),
    Frames(frames::Specification),
    Peers(peers::Specification),
    Wire(wire::Specification),
}

fn main() -> Result<()> {
    let Some(specification) = std::env::args().nth(1) else {
        bail!("overlay-frames takes one argument, JSON: `cargo xtask bench` knows it");
    };
    let answer = match serde_json::from_str(&specification).context("read the specification")? {
        Specification::Floor(specification) => serde_json::to_string(&floor::lay(&specification)?)?,
        Specification::Frames(specification) => serde_json::to_string(&frames::send(&specification)?)?,
        Specification::Peers(specification) => serde_json::to_string(&peers::fill(&specification)?)?,
        Specification::Wire(specification) => serde_json::to_string(&wire::lay(&specification)?)?,
    };
    println!("{answer}");
    Ok(())
}
