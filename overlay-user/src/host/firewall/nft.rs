//! What is asked of `nft` in more than one place.
use crate::host::command::{Failed, run};

/// Whether `nft` takes this for the name of a table or chain. Its arguments are read as one script, in which other names may mean
/// something else.
pub fn is_nft_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || "_.".contains(first))
        && name.chars().all(|one| one.is_ascii_alphanumeric() || "/\\-_.".contains(one))
}

/// Whether nftables has such a table. It has none if there is no `nft`, or no nftables in the kernel.
///
/// # Errors
/// When `nft` fails to list the tables.
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
    fn names_that_mean_something_else_to_nft_are_not_given_to_it() {
        for name in ["DOCKER-USER", "filter_FORWARD", "KUBE-SVC-7X", ".x/y"] {
            assert!(is_nft_name(name), "{name}");
        }
        for name in ["", "a; flush ruleset", "a b", "a\nb", "a\"b", "-a", "7a", "ä", "a\u{f7fe}"] {
            assert!(!is_nft_name(name), "{name}");
        }
    }
}
