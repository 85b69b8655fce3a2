//! protoc, which the build of the etcd client starts: whether the one it will find is new enough.
use std::{env, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use overlay_project::command;

use super::machine::find_command;

/// The version that Debian 11 has. Older ones may do, but were not tried.
const OLDEST: (u32, u32) = (3, 12);

/// Fails, and says what to do, if the build would find one that is too old. Debian's is installed by now if there was none.
pub(super) fn check() -> Result<()> {
    let found = env::var_os("PROTOC").map(PathBuf::from).or_else(|| find_command("protoc"));
    let protoc = found.context("there is no protoc: the etcd client's build needs it")?;
    let shown = protoc.display().to_string();
    let said = command::run(&shown, ["--version"]).context("the etcd client's build needs protoc")?;
    ensure!(
        is_new_enough(&said),
        "{shown} says `{}`, and the etcd client's build needs {}.{} or newer. Debian's package protobuf-compiler brings \
         /usr/bin/protoc; the variable PROTOC says which one to use",
        said.trim(),
        OLDEST.0,
        OLDEST.1
    );
    Ok(())
}

/// Of `libprotoc 3.21.12`; since 2022 the major number is left out: `libprotoc 25.1`.
fn is_new_enough(said: &str) -> bool {
    let numbers = said.trim().strip_prefix("libprotoc ").unwrap_or_default();
    let mut numbers = numbers.split('.').map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= OLDEST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_both_schemes_are_compared() {
        for new in ["libprotoc 3.12.4\n", "libprotoc 3.21.12\n", "libprotoc 25.1\n", "libprotoc 29.3"] {
            assert!(is_new_enough(new), "{new}");
        }
        for old in ["libprotoc 3.6.1\n", "libprotoc 2.6.1\n", "", "command not found"] {
            assert!(!is_new_enough(old), "{old}");
        }
    }
}
