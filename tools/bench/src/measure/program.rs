//! Calls of overlay-frames: it gets a specification and returns an answer, both in JSON.
use std::{
    io::Read as _,
    path::Path,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

use overlay_lab::{Namespace, command};

/// Has overlay-frames carry out `specification` in this network namespace.
pub(super) fn ask<T: DeserializeOwned>(program: &Path, at: &Namespace, specification: &Value) -> Result<T> {
    let path = program.to_str().context("the path of overlay-frames is not UTF-8")?;
    let answer = command::output(&mut at.command(&[path, &specification.to_string()])?)?;
    serde_json::from_str(&answer).context("read overlay-frames's answer")
}

/// Does the same with two specifications at once, which must ask for `waits`: both begin when both are ready.
pub(super) fn ask_at_once<T: DeserializeOwned>(
    program: &Path,
    asked: [(&Namespace, Value); 2],
) -> Result<[T; 2]> {
    let path = program.to_str().context("the path of overlay-frames is not UTF-8")?;
    let mut running = asked.map(|(at, specification)| {
        let mut command = at.command(&[path, &specification.to_string()])?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("start overlay-frames")
    });
    // One that fails says nothing more, so this does not wait for ever. Its error comes below.
    running.iter_mut().flatten().for_each(wait_until_ready);
    for child in running.iter_mut().flatten() {
        drop(child.stdin.take());
    }
    // Both are waited for, even if one has failed: it would disturb the next sample.
    let [one, other] = running.map(|child| finished(child?));
    Ok([one?, other?])
}

/// Reads the line that says `ready`, byte by byte, so that the answer behind it is left.
fn wait_until_ready(child: &mut Child) {
    let Some(output) = &mut child.stdout else { return };
    let mut byte = [0];
    while matches!(output.read(&mut byte), Ok(1)) && byte != *b"\n" {}
}

fn finished<T: DeserializeOwned>(child: Child) -> Result<T> {
    let output = child.wait_with_output().context("wait for overlay-frames")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "overlay-frames ended with {}: {}", output.status, error.trim());
    serde_json::from_slice(&output.stdout).context("read overlay-frames's answer")
}
