//! Debian's packages: installed without removing anything, or only unpacked into a folder.
use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::{Progress, find_command, is_root, quietly};
use overlay_project::command;

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

/// Unpacks `packages`, and the libraries they need and the system lacks, below `folder`. Installs nothing, so that it
/// cannot conflict with what is installed.
pub(crate) fn unpack(packages: &[&str], folder: &Path, progress: &Progress) -> Result<()> {
    if find_command("apt-get").is_none() {
        bail!("unpack {}: there is no apt-get", packages.join(" "));
    }
    refresh(packages, progress)?;
    let all: Vec<_> = with_libraries(packages)?.into_iter().collect();
    let shown = folder.display();
    progress.say(&format!("unpacking into {shown} (installs nothing): {}", all.join(" ")));
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let archives = tempfile::tempdir_in(folder).context("create a folder for the archives")?;
    with_current_lists(progress, || {
        quietly(apt_get().arg("download").args(&all).current_dir(archives.path()))
    })?;
    for archive in fs::read_dir(archives.path())? {
        quietly(Command::new("dpkg-deb").arg("-x").arg(archive?.path()).arg(folder))?;
    }
    Ok(())
}

/// Lists that are older than the archive name files that are gone: fetches them anew, and tries once more.
fn with_current_lists(progress: &Progress, work: impl Fn() -> Result<()>) -> Result<()> {
    let Err(error) = work() else { return Ok(()) };
    if !is_root() {
        return Err(error);
    }
    progress.say(&format!("{error:#}"));
    progress.say("fetching apt's package lists, in case they are old");
    quietly(apt_get().arg("update"))?;
    work()
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
    // Root's downloads go to folders that apt's own unprivileged user cannot write.
    apt.args(["-o", "APT::Sandbox::User=root"]);
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
    quietly(apt_get().arg("update"))?;
    let unknown = unknown(packages)?;
    if !unknown.is_empty() {
        bail!("apt has no {}, not even after `apt-get update`", unknown.join(", "));
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

/// `packages` and all libraries below them that are not installed. Versions in names (libgit2-1.5, libllvm22) thus
/// follow the distribution.
fn with_libraries(packages: &[&str]) -> Result<BTreeSet<String>> {
    let installed = command::run("dpkg-query", ["--show", "--showformat=${db:Status-Abbrev} ${Package}\n"])?;
    let installed: BTreeSet<_> =
        installed.lines().filter_map(|line| line.strip_prefix("ii ")).map(str::trim).collect();
    let mut wanted = BTreeSet::new();
    let mut open: BTreeSet<String> = packages.iter().map(ToString::to_string).collect();
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
    Ok(wanted)
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
