//! Calls of overlay-frames: it gets a specification and returns an answer, both in JSON.
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

use overlay_lab::{Namespace, command};

/// Has overlay-frames carry out `specification` in this network namespace.
pub(super) fn ask<T: DeserializeOwned>(program: &Path, at: &Namespace, specification: &Value) -> Result<T> {
    let path = program.to_str().context("the path of overlay-frames is not UTF-8")?;
    let answer = command::output(&mut at.command(&[path, &specification.to_string()])?)?;
    serde_json::from_str(&answer).context("read overlay-frames's answer")
}
