//! What a fresh root gets beside Debian's base: the way to Debian's and cargo's archives as this machine has it, rustup with
//! the toolchain that is in use here, and a clean clone of the project.
use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use overlay_project::{command, project::root as project};

use super::base::SUITE;
use crate::setup::{apt, machine::find_command, progress::Progress};

/// Where the clone is in the root. The path has a space, so that the rung shows that spaces do no harm.
pub(super) const CLONE: &str = "root/a clone/overlay";
/// Where certificates of authorities are looked for without being told.
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";
/// Cargo's folder in the root, and rustup's.
const CARGO: &str = "root/.cargo";
const RUSTUP: &str = "opt/rustup";
/// Under these names rustup starts the toolchain's programs.
const PROXIES: &[&str] =
    &["cargo", "cargo-clippy", "cargo-fmt", "clippy-driver", "rustc", "rustdoc", "rustfmt"];

/// A toolchain of this machine, and where it belongs in the root. It is mounted there, to be read only.
pub(super) struct Toolchain {
    pub(super) here: PathBuf,
    pub(super) there: PathBuf,
}

/// Copies `base` to `root` and adds everything. No file of this machine is shared with it.
pub(super) fn furnish(base: &Path, root: &Path, progress: &Progress) -> Result<Toolchain> {
    progress.say(&format!("making a root below {}", root.display()));
    if let Some(folder) = root.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    copy(base, root)?;
    network(root)?;
    archives(root)?;
    cargo(root)?;
    let toolchain = rustup(root)?;
    clone(root, progress)?;
    Ok(toolchain)
}

/// Copies a folder with all that is in it, and keeps owners, modes and times.
fn copy(from: &Path, to: &Path) -> Result<()> {
    command::output(Command::new("cp").arg("--archive").args([from, to])).map(drop)
}

fn write(file: &Path, text: &str) -> Result<()> {
    let context = || format!("write {}", file.display());
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(context)?;
    }
    fs::write(file, text).with_context(context)
}

/// Copies what resolves host names, and the certificates of authorities.
fn network(root: &Path) -> Result<()> {
    for file in ["etc/resolv.conf", "etc/hosts"] {
        // This is often a link into /run, which the root does not have.
        let text = fs::read_to_string(Path::new("/").join(file)).unwrap_or_default();
        write(&root.join(file), &text)?;
    }
    let told = ["CARGO_HTTP_CAINFO", "SSL_CERT_FILE"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let certificates = told.chain([Path::new("/").join(CERTIFICATES)]).find(|file| file.is_file());
    if let Some(file) = certificates {
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        write(&root.join(CERTIFICATES), &text)?;
    }
    Ok(())
}

/// apt's sources: the mirror that this machine uses, and how it is reached.
fn archives(root: &Path) -> Result<()> {
    let mirror = apt::mirror().context("apt names no mirror of Debian: run `apt-get update`")?;
    let lines = [
        format!("deb {mirror} {SUITE} main\n"),
        format!("deb {mirror} {SUITE}-updates main\n"),
        format!("deb {mirror}-security {SUITE}-security main\n"),
    ];
    write(&root.join("etc/apt/sources.list"), &lines.concat())?;
    let settings = command::run("apt-config", ["dump", "Acquire"])?;
    write(&root.join("etc/apt/apt.conf.d/90reached-as-outside"), &reached_by(&settings))?;
    for folder in ["etc/apt/auth.conf.d", "etc/apt/keyrings", "etc/apt/trusted.gpg.d"] {
        let here = Path::new("/").join(folder);
        if here.is_dir() {
            copy(&here.join("."), &root.join(folder))?;
        }
    }
    Ok(())
}

/// The settings among those that `apt-config dump` prints which say how archives are reached and which are trusted.
fn reached_by(settings: &str) -> String {
    let others = ["IndexTargets", "Changelogs", "cdrom", "Languages", "CompressionTypes", "GzipIndexes"];
    let wanted = |line: &&str| {
        !line.ends_with(" \"\";") && !others.iter().any(|other| line.contains(&format!("Acquire::{other}")))
    };
    settings.lines().filter(wanted).map(|line| format!("{line}\n")).collect()
}

/// Cargo's downloads, and its settings that say where from.
fn cargo(root: &Path) -> Result<()> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"));
    let here = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).context("where is CARGO_HOME?")?;
    let there = root.join(CARGO);
    for part in ["registry/cache", "registry/index"] {
        if here.join(part).is_dir() {
            fs::create_dir_all(there.join(part))?;
            copy(&here.join(part).join("."), &there.join(part))?;
        }
    }
    for name in ["config", "config.toml"] {
        if let Ok(text) = fs::read_to_string(here.join(name)) {
            write(&there.join(name), &where_from(&text))?;
        }
    }
    Ok(())
}

/// The tables of cargo's configuration that say where crates come from. Others are left out: a linker of this machine, say,
/// does not exist in the root.
fn where_from(config: &str) -> String {
    let mut wanted = false;
    let mut kept = String::new();
    for line in config.lines() {
        if let Some(table) = line.trim().strip_prefix('[') {
            let name = table.trim_start_matches('[').split(['.', ']']).next().unwrap_or_default().trim();
            wanted = matches!(name, "source" | "registries" | "registry" | "net" | "http");
        }
        if wanted {
            kept += line;
            kept.push('\n');
        }
    }
    kept
}

/// Sets up rustup with the one toolchain that is in use here, so that others on this machine have no influence.
fn rustup(root: &Path) -> Result<Toolchain> {
    let rustup = find_command("rustup").context("there is no rustup, as the README asks for")?;
    let programs = root.join(CARGO).join("bin");
    fs::create_dir_all(&programs)?;
    fs::copy(&rustup, programs.join("rustup")).with_context(|| format!("copy {}", rustup.display()))?;
    for name in PROXIES {
        symlink("rustup", programs.join(name))?;
    }
    let sysroot = command::output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(project()))?;
    let here = fs::canonicalize(sysroot.trim()).with_context(|| format!("find {sysroot}"))?;
    let name =
        here.file_name().and_then(|name| name.to_str()).context("the toolchain's folder has no name")?;
    let settings = format!("version = \"12\"\nprofile = \"default\"\ndefault_toolchain = \"{name}\"\n");
    write(&root.join(RUSTUP).join("settings.toml"), &settings)?;
    let there = Path::new(RUSTUP).join("toolchains").join(name);
    fs::create_dir_all(root.join(&there))?;
    Ok(Toolchain { here, there })
}

/// Clones what is committed, as others would get it.
fn clone(root: &Path, progress: &Progress) -> Result<()> {
    let git = |words: &[&str]| command::output(Command::new("git").args(words).current_dir(project()));
    let head = git(&["log", "-1", "--format=%h %s"])?;
    progress.say(&format!("cloning {}", head.trim()));
    let changed = git(&["status", "--porcelain"])?.lines().count();
    if changed > 0 {
        progress.say(&format!("not in the clone: {changed} files with changes that are not committed"));
    }
    let mut clone = Command::new("git");
    clone.args(["clone", "--quiet", "--no-hardlinks"]).arg(project()).arg(root.join(CLONE));
    command::output(&mut clone).map(drop)
}

/// The environment in the root: a bare one, with those of this process's variables that say how archives are reached.
pub(super) fn environment() -> Vec<(String, String)> {
    let own = [
        ("HOME", "/root".to_owned()),
        ("PATH", format!("/{CARGO}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")),
        ("LANG", "C.UTF-8".to_owned()),
        ("CARGO_HOME", format!("/{CARGO}")),
        ("RUSTUP_HOME", format!("/{RUSTUP}")),
        ("SSL_CERT_FILE", format!("/{CERTIFICATES}")),
        ("RUST_BACKTRACE", "1".to_owned()),
    ];
    let handed_in = env::vars().filter(|(name, _)| is_handed_in(name));
    own.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(handed_in).collect()
}

fn is_handed_in(name: &str) -> bool {
    let archives = ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_"];
    let path = name == "CARGO_HTTP_CAINFO";
    !path && archives.iter().any(|start| name.starts_with(start))
        || name.to_ascii_lowercase().ends_with("_proxy")
        || matches!(name, "CI" | "CARGO_INCREMENTAL" | "RUSTUP_AUTO_INSTALL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_and_checks_are_handed_in_and_what_is_fetched_is_not() {
        let settings = "Acquire \"\";\nAcquire::http::Proxy \"http://p:3128\";\nAcquire::Languages:: \"none\";\n\
                        Acquire::IndexTargets::deb::Packages::Optional \"0\";\nAcquire::Check-Date \"false\";\n";
        let expected = "Acquire::http::Proxy \"http://p:3128\";\nAcquire::Check-Date \"false\";\n";
        assert_eq!(reached_by(settings), expected);
    }

    #[test]
    fn of_cargos_configuration_a_mirror_is_handed_in_and_a_linker_is_not() {
        let config = "[build]\njobs = 1\n[source.crates-io]\nreplace-with = \"m\"\n\n[target.'cfg(unix)']\n\
                      linker = \"mold\"\n[ source.m ]\nregistry = \"sparse+http://m/\"\n[[env]]\n[net]\nretry = 9\n";
        let expected = "[source.crates-io]\nreplace-with = \"m\"\n\n[ source.m ]\nregistry = \"sparse+http://m/\"\n\
                        [net]\nretry = 9\n";
        assert_eq!(where_from(config), expected);
    }

    #[test]
    fn the_environment_is_bare_but_for_the_way_to_archives() {
        for name in ["http_proxy", "NO_PROXY", "CARGO_REGISTRIES_CRATES_IO_PROTOCOL", "CI"] {
            assert!(is_handed_in(name), "{name}");
        }
        for name in ["CARGO_TARGET_DIR", "OVERLAY_EBPF_TOOLCHAIN", "RUSTFLAGS", "CARGO_HTTP_CAINFO", "PATH"] {
            assert!(!is_handed_in(name), "{name}");
        }
    }
}
