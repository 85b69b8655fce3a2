//! The image that every daemon has.
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::tools::Tools;
use crate::command;

/// Its name.
pub(super) const IMAGE: &str = "lab";
/// The commands of busybox that the image has.
const COMMANDS: &[&str] = &["sh", "httpd", "wget", "ping", "sha256sum", "timeout"];
const PAGE: &str = "a page\n";
const WHO: &str = "#!/bin/sh\nprintf \"Content-Type: text/plain\\r\\n\\r\\n$REMOTE_ADDR\"\n";

/// Makes an archive of the image's files.
pub(super) fn image(tools: &Tools, folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("image");
    let (programs, pages) = (tree.join("bin"), tree.join("www"));
    fs::create_dir_all(&programs)?;
    fs::create_dir_all(pages.join("cgi-bin"))?;
    let busybox = tools.busybox();
    fs::copy(&busybox, programs.join("busybox")).with_context(|| format!("copy {}", busybox.display()))?;
    for name in COMMANDS {
        symlink("busybox", programs.join(name))?;
    }
    symlink("/bin/busybox", pages.join("busybox"))?;
    fs::write(pages.join("index.html"), PAGE)?;
    let who = pages.join("cgi-bin/who");
    fs::write(&who, WHO)?;
    fs::set_permissions(&who, PermissionsExt::from_mode(0o755))?;
    let archive = folder.join("image.tar");
    let [tree, file] = [&tree, &archive].map(|path| path.display().to_string());
    command::run("tar", ["--directory", &tree, "--create", "--file", &file, "."])?;
    Ok(archive)
}
