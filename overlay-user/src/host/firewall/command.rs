//! The packet filter's commands: where they are, how they are run, and what they answered.
use std::{
    env,
    ffi::OsStr,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

/// Where they are, and PATH often does not lead: under Debian's plain `su`, cron, units of an operator's own.
const FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// How long one may take: each waits for others of its kind.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a command did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// It is not installed, and so has made nothing.
    #[error("there is no `{0}`: install the package that brings it")]
    Missing(String),
    /// The kernel has none of what it asks for: what it said.
    #[error("{0}")]
    Unsupported(String),
    /// Anything else: what it said.
    #[error("{0}")]
    Other(String),
}

/// Where a command is, in PATH or where root's commands live.
pub fn find(program: &str) -> Option<PathBuf> {
    // Without PATH the C library looks in these.
    find_in(&env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into()), program)
}

fn find_in(path: &OsStr, program: &str) -> Option<PathBuf> {
    let can_run = |file: &Path| {
        file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(path)
        .chain(FOLDERS.map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| can_run(file))
}

/// Runs a command; what it printed.
///
/// # Errors
/// Why it did not do it, with its name and what it said.
pub async fn run(program: &str, words: &[&str], input: &str) -> Result<String, Failed> {
    let file = find(program).ok_or_else(|| Failed::Missing(program.to_owned()))?;
    let line = [&[program], words].concat().join(" ");
    let output = match timeout(PATIENCE, output(&file, words, input)).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(Failed::Other(format!("{line}: {error}"))),
        Err(_) => return Err(Failed::Other(format!("{line}: no end within {PATIENCE:?}"))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = match said.trim() {
        "" => format!("{line}: {}", output.status),
        said => format!("{line}: {said}"),
    };
    Err(if is_unsupported(&said) { Failed::Unsupported(said) } else { Failed::Other(said) })
}

async fn output(file: &Path, words: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(file)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(input.as_bytes()).await,
        None => Ok(()),
    };
    let output = child.wait_with_output().await?;
    // A command that fails may not read to the end, and says why itself.
    if output.status.success() {
        written?;
    }
    Ok(output)
}

/// Without nfnetlink there is no socket, and nfnetlink without nf_tables calls any request for it invalid.
fn is_unsupported(said: &str) -> bool {
    let is_first_request = || {
        ["cache initialization failed", "fetch rule set generation id"].iter().any(|what| said.contains(what))
    };
    said.contains("Protocol not supported") || said.contains("Invalid argument") && is_first_request()
}

/// Whether nftables has such a table. Where there is no `nft`, or no nftables in the kernel, it has none.
///
/// # Errors
/// When `nft` does not say.
pub async fn nft_has_table(family: &str, name: &str) -> Result<bool, Failed> {
    match run("nft", &["list", "tables", family], "").await {
        Ok(tables) => Ok(tables.lines().any(|line| line.trim() == format!("table {family} {name}"))),
        Err(error @ (Failed::Missing(_) | Failed::Unsupported(_))) => {
            log::debug!("{error}");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_commands_are_found_without_their_folders_in_path() {
        // Debian's plain `su` leaves the user's own.
        let path = OsStr::new("/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games");
        let nft = find_in(path, "nft").unwrap();
        assert!(nft == Path::new("/usr/sbin/nft") || nft == Path::new("/sbin/nft"), "{nft:?}");
        assert_eq!(find_in(path, "no-such-command"), None);
    }

    #[test]
    fn path_comes_first_and_what_cannot_be_run_is_passed_over() {
        let folder = env::temp_dir().join(format!("overlay-command-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("nft");
        std::fs::write(&file, "").unwrap();
        let modes = [0o644, 0o755].map(|mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            find_in(folder.as_os_str(), "nft").unwrap() == file
        });
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(modes, [false, true]);
    }

    #[tokio::test]
    async fn a_command_that_fails_is_no_missing_command() {
        assert_eq!(run("no-such-command", &[], "").await, Err(Failed::Missing("no-such-command".into())));
        // More than a pipe takes, to one that does not read.
        let Err(Failed::Other(said)) = run("sh", &["-c", "echo why >&2; exit 3"], &"x".repeat(1 << 20)).await
        else {
            panic!()
        };
        assert_eq!(said, "sh -c echo why >&2; exit 3: why");
        let Err(Failed::Other(said)) = run("false", &[], "").await else { panic!() };
        assert_eq!(said, "false: exit status: 1");
        assert_eq!(run("cat", &[], "all of it").await.as_deref(), Ok("all of it"));
    }

    #[test]
    fn a_kernel_without_support_is_told_from_a_refusal() {
        for said in [
            "iptables-nft-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Invalid argument",
            "iptables/1.8.9 Failed to initialize nft: Protocol not supported",
            "netlink.c:64: Unable to initialize Netlink socket: Protocol not supported",
            "netlink: Error: cache initialization failed: Invalid argument",
        ] {
            assert!(is_unsupported(said), "{said}");
        }
        for said in [
            "netlink: Error: cache initialization failed: Operation not permitted",
            "iptables-nft-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)",
            "Error: Could not process rule: Invalid argument",
            "nft: error while loading shared libraries: libnftables.so.1: cannot open shared object file",
        ] {
            assert!(!is_unsupported(said), "{said}");
        }
    }
}
