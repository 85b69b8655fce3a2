//! What set-up prints while it works, and the lock that keeps two set-ups from working at once.
use std::{
    fs::{self, File},
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, Result};

/// Says what is being done and how long it took to get there.
pub(crate) struct Progress(Instant);

impl Progress {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn say(&self, text: &str) {
        eprintln!("[setup {:6.1} s] {text}", self.0.elapsed().as_secs_f32());
    }
}

/// Keeps another set-up from working at the same folder until the file is dropped, or this process ends in any way.
pub(crate) fn lock(folder: &Path, progress: &Progress) -> Result<File> {
    let context = || format!("lock {}", folder.display());
    fs::create_dir_all(folder).with_context(context)?;
    let file = File::create(folder.join(".setup-lock")).with_context(context)?;
    if file.try_lock().is_err() {
        progress.say(&format!("waiting for another set-up of {}", folder.display()));
        file.lock().with_context(context)?;
    }
    Ok(file)
}
