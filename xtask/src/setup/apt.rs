//! Debian's packages: installed without removing anything, or only unpacked into a folder.
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use overlay_project::command;
use tempfile::TempDir;

use super::{
    machine::{find_command, is_root, quietly},
    progress::Progress,
};

/// Installs `packages`. Nothing installed before is removed: apt refuses rather.
pub(super) fn install(packages: &[&str], progress: &Progress) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    require(&format!("install {}", packages.join(" ")))?;
    refresh(packages, progress)?;
    progress.say(&format!("installing {} (removes nothing)", packages.join(" ")));
    with_current_lists(progress, || {
        let mut apt = apt_get();
        apt.args(["install", "--yes", "--no-remove", "--no-install-recommends"]);
        quietly(apt.args(packages))
    })
}

/// How the folders begin in which packages are unpacked before they come to their place.
const UNPACKING: &str = "unpacking-";

/// Packages that have been unpacked and are not yet in their place. Gone when dropped.
#[derive(Debug)]
pub(crate) struct Unpacked(TempDir);

/// Unpacks `packages`, and nothing else, in a folder of their own below `folder`: an interrupted set-up leaves nothing
/// that looks complete. Installs nothing, so that it cannot conflict with what is installed.
pub(crate) fn unpack(packages: &[String], folder: &Path, progress: &Progress) -> Result<Unpacked> {
    let names = packages.join(" ");
    progress.say(&format!("unpacking below {} (installs nothing): {names}", folder.display()));
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    remove_interrupted(folder)?;
    let unpacked = tempfile::Builder::new()
        .prefix(UNPACKING)
        .tempdir_in(folder)
        .with_context(|| format!("create a folder in {}", folder.display()))?;
    let (archives, tree) = (unpacked.path().join("archives"), unpacked.path().join("tree"));
    fs::create_dir(&archives)?;
    fs::create_dir(&tree)?;
    with_current_lists(progress, || {
        quietly(apt_get().arg("download").args(packages).current_dir(&archives))
    })?;
    for archive in fs::read_dir(&archives)? {
        quietly(Command::new("dpkg-deb").arg("-x").arg(archive?.path()).arg(&tree))?;
    }
    Ok(Unpacked(unpacked))
}

impl Unpacked {
    /// The root of what was unpacked.
    pub(crate) fn tree(&self) -> PathBuf {
        self.0.path().join("tree")
    }

    /// Moves `part` of it (empty: all of it) to `place`, in one step. What stood there, an older or a half-made one, is
    /// removed.
    pub(crate) fn put(&self, part: &str, place: &Path) -> Result<()> {
        let context = || format!("put what was unpacked into {}", place.display());
        if place.exists() {
            fs::remove_dir_all(place).with_context(context)?;
        }
        fs::rename(self.tree().join(part), place).with_context(context)
    }
}

/// Removes what a killed set-up has left. No other set-up can be at work there, since it would hold the lock.
fn remove_interrupted(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNPACKING) {
            fs::remove_dir_all(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Package lists that are older than the archive may name files that it no longer has. So this fetches the lists anew, and
/// tries once more.
fn with_current_lists(progress: &Progress, work: impl Fn() -> Result<()>) -> Result<()> {
    let Err(error) = work() else { return Ok(()) };
    if !is_root() {
        return Err(error);
    }
    progress.say(&format!("{error:#}"));
    progress.say("fetching apt's package lists, in case they are old");
    let said = update()?;
    work().with_context(|| format!("after `apt-get update`{said}"))
}

/// Fetches the package lists. Returns what it complained of: lists that cannot be fetched are no error to apt, and none
/// here, as they may be of a source that is not needed.
fn update() -> Result<String> {
    let done = apt_get().arg("update").stdin(Stdio::null()).output().context("start apt-get")?;
    let said = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        bail!("`apt-get update` ended with {}: {}", done.status, said.trim());
    }
    let said = said.trim();
    Ok(if said.is_empty() { String::new() } else { format!(", which said:\n{said}\n") })
}

fn require(what: &str) -> Result<()> {
    if find_command("apt-get").is_none() {
        bail!("{what}: there is no apt-get");
    }
    if !is_root() {
        bail!("{what}: that takes root");
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet");
    // apt's own unprivileged user cannot write to the folders that root's downloads go to.
    apt.args(["-o", "APT::Sandbox::User=root"]);
    // apt waits, since the machine may be upgrading itself at this moment.
    apt.args(["-o", "DPkg::Lock::Timeout=300"]);
    apt
}

/// Fetches the package lists, once, if apt does not know one of `packages`.
fn refresh(packages: &[&str], progress: &Progress) -> Result<()> {
    if unknown(packages)?.is_empty() {
        return Ok(());
    }
    if !is_root() {
        bail!("apt does not know all of {}: run `apt-get update` as root", packages.join(" "));
    }
    progress.say("fetching apt's package lists");
    let said = update()?;
    let unknown = unknown(packages)?;
    if !unknown.is_empty() {
        bail!("apt has no {}, not even after `apt-get update`{said}", unknown.join(", "));
    }
    Ok(())
}

/// Those of `packages` that apt could not install.
fn unknown<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let answer = command::run("apt-cache", [&["policy"], packages].concat())?;
    let known = installable(&answer);
    Ok(packages.iter().copied().filter(|package| !known.contains(package)).collect())
}

/// Names of the packages that `apt-cache policy` lists with a candidate.
fn installable(listing: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut current = "";
    for line in listing.lines() {
        if !line.starts_with(' ') {
            current = line.trim_end_matches(':');
        } else if line.trim().strip_prefix("Candidate: ").is_some_and(|candidate| candidate != "(none)") {
            names.insert(current);
        }
    }
    names
}

/// `packages` themselves, once apt knows them.
pub(crate) fn known(packages: &[&str], progress: &Progress) -> Result<Vec<String>> {
    if find_command("apt-get").is_none() {
        bail!("unpack {}: there is no apt-get", packages.join(" "));
    }
    refresh(packages, progress)?;
    Ok(packages.iter().map(ToString::to_string).collect())
}

/// `packages` and all libraries below them that are not installed. Versions in names (libgit2-1.5, libllvm22) thus follow
/// the distribution.
pub(crate) fn with_libraries(packages: &[&str], progress: &Progress) -> Result<Vec<String>> {
    let packages = known(packages, progress)?;
    let installed = command::run("dpkg-query", ["--show", "--showformat=${db:Status-Abbrev} ${Package}\n"])?;
    let installed: BTreeSet<_> =
        installed.lines().filter_map(|line| line.strip_prefix("ii ")).map(str::trim).collect();
    let mut wanted = BTreeSet::new();
    let mut open: BTreeSet<String> = packages.into_iter().collect();
    while !open.is_empty() {
        let mut ask = vec!["depends".to_owned(), "--important".to_owned()];
        ask.extend(open.iter().cloned());
        wanted.append(&mut open);
        open = first_choices(&command::run("apt-cache", ask)?)
            .into_iter()
            .filter(|name| name.starts_with("lib"))
            .filter(|name| !wanted.contains(name) && !installed.contains(name.as_str()))
            .collect();
    }
    Ok(wanted.into_iter().collect())
}

/// Names of the real packages that `apt-cache depends` lists, of alternatives (marked `|`) only the first.
fn first_choices(listing: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut alternative = false;
    for line in listing.lines() {
        let Some((kind, name)) = line.trim().split_once("Depends: ") else {
            continue;
        };
        if !alternative && !name.starts_with('<') && !kind.contains("Pre") {
            names.push(name.to_owned());
        }
        alternative = kind.starts_with('|');
    }
    names
}

/// Where the system gets Debian's packages from. It may be a mirror, and the only archive that can be reached.
pub(crate) fn mirror() -> Option<String> {
    // The lists say whose archive it is, but they may not have been fetched yet.
    [&["Created-By: Packages", "Origin: Debian"][..], &["Created-By: Packages"]].iter().find_map(|filter| {
        let ask = [&["indextargets", "--format", "$(REPO_URI)"][..], filter].concat();
        let listed = command::run("apt-get", ask).ok()?;
        let main = listed.lines().find(|uri| !uri.contains("security") && !uri.contains("backports"))?;
        Some(main.trim_end_matches('/').to_owned())
    })
}

/// The value of one of apt's settings, if it has one.
pub(crate) fn setting(name: &str) -> Result<Option<String>> {
    let value = command::run("apt-config", ["dump", "--format", "%v%n", name])?;
    Ok(value.lines().next().filter(|value| !value.is_empty()).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_a_candidate_is_not_installable() {
        let listing = "gcc:\n  Installed: (none)\n  Candidate: 4:12.2.0-3\n  Version table:\n\
                       rustc-gone:\n  Installed: 1.2\n  Candidate: (none)\n";
        assert_eq!(installable(listing), BTreeSet::from(["gcc"]));
    }

    #[test]
    fn of_alternatives_the_first_is_taken_and_virtual_packages_are_skipped() {
        let listing = "rustc-web\n  Depends: libc6\n |Depends: libfoo1\n |Depends: libfoo2\n  Depends: libfoo3\n  \
                       Depends: <libvirtual>\n  Depends: libstd-rust-web-1.96\n  PreDepends: dpkg\n";
        assert_eq!(first_choices(listing), ["libc6", "libfoo1", "libstd-rust-web-1.96"]);
    }
}
