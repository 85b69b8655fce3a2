//! The names by which everything of a lab is marked. The sweep finds what to remove by these names alone.
use std::path::{Path, PathBuf};

/// The environment variable by which the processes of a lab are recognised.
pub(crate) const MARK: &str = "LAB_OF_OVERLAY";

/// The folder that goes with the lab of this name.
pub(crate) fn folder_of(lab: &str) -> PathBuf {
    Path::new("/tmp").join(lab)
}

/// The process id in a lab's name, which is `ov<pid>n<count>`.
pub(crate) fn owner(name: &str) -> Option<u32> {
    let (pid, count) = name.strip_prefix("ov")?.split_once('n')?;
    count.parse::<u32>().ok()?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_labs_have_an_owner() {
        assert_eq!(owner("ov4711n0"), Some(4711));
        for name in ["ov4711", "over9n1", "ovn1", "ov1n", "x4711n0", "ov4711n0-h1"] {
            assert_eq!(owner(name), None, "{name}");
        }
    }
}
