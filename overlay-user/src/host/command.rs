//! Other programs' commands (`nft`, `iptables-save`, `ip`, `ethtool`): where they are, how they are run, and what they answered.
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

/// Folders of the commands that are often missing in PATH: under Debian's plain `su`, under cron, and in an operator's
/// own units.
const FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// How long a command may take. Each waits while another of its kind runs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// The command is not installed. So it has made no rules either.
    #[error("there is no `{0}`: install the package that brings it")]
    Missing(String),
    /// The kernel lacks the part that the command speaks with. Has the command's own words.
    #[error("{0}")]
    Unsupported(String),
    /// Any other failure, in the command's own words.
    #[error("{0}")]
    Other(String),
}

/// Path of a command, which is in PATH or in one of root's folders.
pub fn find(program: &str) -> Option<PathBuf> {
    // The C library looks in these folders if there is no PATH.
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

/// Runs a command, and returns what it printed.
///
/// # Errors
/// Names the command, and tells why it failed and what it said.
pub async fn run(program: &str, words: &[&str], input: &str) -> Result<String, Failed> {
    let file = find(program).ok_or_else(|| Failed::Missing(program.to_owned()))?;
    let line = [&[program], words].concat().join(" ");
    let output = match timeout(PATIENCE, output(&file, words, input)).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(Failed::Other(format!("{line}: {error}"))),
        Err(_) => return Err(Failed::Other(format!("{line}: no end within {PATIENCE:?}"))),
    };
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = match said.trim() {
        "" => format!("{line}: {}", output.status),
        said => format!("{line}: {said}"),
    };
    Err(if is_unsupported(&said) { Failed::Unsupported(said) } else { Failed::Other(said) })
}

/// What a command printed. Names of chains may have bytes in them that are no text. Each becomes a character of its own (of the
/// range for private use), so that different names stay different.
fn text(printed: &[u8]) -> String {
    const PRIVATE: u32 = 0xf700;
    let mut text = String::with_capacity(printed.len());
    for chunk in printed.utf8_chunks() {
        text += chunk.valid();
        text.extend(chunk.invalid().iter().filter_map(|byte| char::from_u32(PRIVATE + u32::from(*byte))));
    }
    text
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
    // A command that fails may end before it has read everything. Then it says itself why.
    if output.status.success() {
        written?;
    }
    Ok(output)
}

/// Whether these words mean that the kernel has no nftables. Without nfnetlink no socket can be opened, and nfnetlink
/// without nf_tables answers that any request for nf_tables is invalid.
fn is_unsupported(said: &str) -> bool {
    let is_first_request = || {
        ["cache initialization failed", "fetch rule set generation id"].iter().any(|what| said.contains(what))
    };
    said.contains("Protocol not supported") || said.contains("Invalid argument") && is_first_request()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_commands_are_found_without_their_folders_in_path() {
        // Debian's plain `su` leaves the user's own PATH in place.
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
        // This is more than a pipe holds, and the command does not read it.
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
    fn names_that_are_no_text_stay_different() {
        let [one, other] = [&b"-N a\xfe"[..], b"-N a\xff"].map(text);
        assert!(one != other && one.starts_with("-N a"), "{one:?} {other:?}");
        assert_eq!(text("Überlauf".as_bytes()), "Überlauf");
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
