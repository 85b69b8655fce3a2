//! Debian's kernels: they are found and downloaded, and what a VM needs of them is unpacked below target/vm. Nothing is
//! installed.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    files::{files, name},
    kernels::Kernel,
    modules,
};
use overlay_project::command;

use crate::setup::{apt, progress::Progress};

/// A kernel that has been unpacked.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) version: &'static str,
    pub(super) image: PathBuf,
    /// The modules in the order in which they can be loaded.
    pub(super) modules: Vec<PathBuf>,
}

/// The keys of Debian's archive, from the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org/debian";

/// Unpacks the newest package of `kernel`. A kernel that is unpacked already is used without asking the archive; to get
/// a newer one, remove the folder.
pub(super) fn kernel(kernel: &Kernel, folder: &Path, tools: &Path, progress: &Progress) -> Result<Unpacked> {
    let kept = folder.join(kernel.version);
    let mark = kept.join("ready");
    let wanted = [kernel.suites, modules::WANTED].concat().join(" ");
    if !fs::read_to_string(&mark).is_ok_and(|unpacked| unpacked == wanted) {
        // Of other suites, or half-made.
        if kept.exists() {
            fs::remove_dir_all(&kept).with_context(|| format!("remove {}", kept.display()))?;
        }
        fs::create_dir_all(&kept).with_context(|| format!("make {}", kept.display()))?;
        fetch(kernel, &kept, tools, progress)?;
        fs::write(&mark, wanted)?;
    }
    let mut modules = files(&kept.join("modules"))?;
    modules.sort();
    Ok(Unpacked { version: kernel.version, image: kept.join("vmlinuz"), modules })
}

fn fetch(kernel: &Kernel, kept: &Path, tools: &Path, progress: &Progress) -> Result<()> {
    let lists = Lists::fetch(kernel.suites, kept, progress)?;
    let names = lists.ask(&["pkgnames", "linux-image-"])?;
    let package = newest(&names, kernel.version).with_context(|| {
        format!(
            "{} of Debian offer no linux-image-{}.*-amd64: give it other suites in xtask/src/vm/kernels.rs",
            kernel.suites.join(", "),
            kernel.version
        )
    })?;
    let mut packages = vec![package.to_owned()];
    packages.extend(parts(package, &lists.ask(&["depends", "--important", package])?));
    progress.say(&format!("unpacking below {} (installs nothing): {}", kept.display(), packages.join(" ")));
    let work = tempfile::tempdir_in(kept).context("make a folder for the packages")?;
    lists.download(&packages, work.path())?;
    let whole = work.path().join("unpacked");
    for archive in files(work.path())? {
        command::output(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&whole))?;
    }
    let all = files(&whole)?;
    let is_image = |path: &&PathBuf| name(path).starts_with("vmlinuz");
    let image = all.iter().find(is_image).with_context(|| format!("{package} holds no vmlinuz"))?;
    fs::copy(image, kept.join("vmlinuz"))?;
    modules::collect(&all, &kept.join("modules"), &tools.join("bin/busybox"))
        .with_context(|| format!("the modules of {package}"))
}

/// Package lists, in a folder of their own, of releases that the system itself does not use.
struct Lists {
    folder: PathBuf,
}

impl Lists {
    fn fetch(suites: &[&str], folder: &Path, progress: &Progress) -> Result<Self> {
        ensure!(Path::new(KEYRING).exists(), "{KEYRING} is missing: install debian-archive-keyring");
        let lists = Self { folder: folder.join("apt") };
        fs::create_dir_all(lists.folder.join("lists/partial"))?;
        let mirror = apt::mirror().unwrap_or_else(|| MIRROR.to_owned());
        let line = |suite: &&str| {
            let security = if suite.ends_with("-security") { "-security" } else { "" };
            format!("deb [signed-by={KEYRING} target=Packages] {mirror}{security} {suite} main\n")
        };
        fs::write(lists.folder.join("sources.list"), suites.iter().map(line).collect::<String>())?;
        progress.say(&format!("fetching the package lists of {} from {mirror}", suites.join(", ")));
        command::output(lists.command("apt-get").args(["--quiet", "update"]))?;
        Ok(lists)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let at = |name: &str| self.folder.join(name).display().to_string();
        for option in [
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::Lists={}", at("lists")),
            // Without these options the system's packages and caches would be mixed in.
            "Dir::State::status=/dev/null".to_owned(),
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            // apt's own unprivileged user cannot write to the folders that root's downloads go to.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        command::output(self.command("apt-cache").args(words))
    }

    fn download(&self, packages: &[String], folder: &Path) -> Result<()> {
        command::output(self.command("apt-get").arg("download").args(packages).current_dir(folder)).map(drop)
    }
}

/// The newest `linux-image-<version>.*-amd64` of these names, which is neither -cloud nor -rt, and unsigned only if
/// there is no other.
fn newest<'a>(names: &'a str, version: &str) -> Option<&'a str> {
    let ending = |end: &'static str| {
        let of_version = names.lines().filter_map(move |name| {
            let release = name.strip_prefix("linux-image-")?.strip_suffix(end)?;
            let rest = release.strip_prefix(version)?.strip_prefix('.')?;
            // In names such as 6.1.0-56 and 6.12.117+deb13 there are no other words.
            let plain = rest.replace("+deb", ".").replace("+bpo", ".");
            let numbers = plain.split(['.', '-', '+']).map(|number| number.parse::<u32>().ok());
            Some((numbers.collect::<Option<Vec<_>>>()?, name))
        });
        of_version.max().map(|(_, name)| name)
    };
    ending("-amd64").or_else(|| ending("-amd64-unsigned"))
}

/// Packages that `apt-cache depends` lists and that are parts of `package`, because newer kernels come in several
/// packages.
fn parts(package: &str, listing: &str) -> Vec<String> {
    let release = package.trim_start_matches("linux-image-");
    let names = listing.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.filter(|name| name.starts_with("linux-") && name.ends_with(release)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_plain_kernel_is_chosen() {
        let names = "linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-47-amd64\nlinux-image-6.1.0-47-amd64-unsigned\n\
                     linux-image-6.1.0-56-cloud-amd64\nlinux-image-6.1.0-56-rt-amd64\nlinux-image-amd64\n\
                     linux-image-6.1.0-56-amd64-dbg\nlinux-image-6.12.117+deb13-amd64\n\
                     linux-image-6.12.107+deb13-amd64\nlinux-image-7.2.3+deb14-amd64-unsigned";
        assert_eq!(newest(names, "6.1"), Some("linux-image-6.1.0-47-amd64"));
        assert_eq!(newest(names, "6.12"), Some("linux-image-6.12.117+deb13-amd64"));
        assert_eq!(newest(names, "7.2"), Some("linux-image-7.2.3+deb14-amd64-unsigned"));
        assert_eq!(newest(names, "6.11"), None);
    }

    #[test]
    fn newer_kernels_come_in_parts() {
        let listing = "linux-image-7.2.12+deb14-amd64\n |Depends: dracut\n  Depends: initramfs-tools\n  \
                       Depends: linux-base\n  Depends: linux-binary-7.2.12+deb14-amd64\n  \
                       Depends: linux-modules-7.2.12+deb14-amd64\n";
        let expected = ["linux-binary-7.2.12+deb14-amd64", "linux-modules-7.2.12+deb14-amd64"];
        assert_eq!(parts("linux-image-7.2.12+deb14-amd64", listing), expected);
    }
}
