//! Where etcd's keys of a network begin: flannel joins its prefix and its keys with Go's path.Join, and so does this.

/// A prefix in the form in which path.Join writes it: no empty and no `.` elements, `..` taken back, no slash at the end. A slash
/// in front stays, and none is added.
pub fn clean(prefix: &str) -> String {
    let is_rooted = prefix.starts_with('/');
    let mut elements: Vec<&str> = Vec::new();
    for element in prefix.split('/') {
        match element {
            "" | "." => {}
            ".." if elements.last().is_some_and(|last| *last != "..") => {
                elements.pop();
            }
            // There is nothing above the root.
            ".." if is_rooted => {}
            element => elements.push(element),
        }
    }
    format!("{}{}", if is_rooted { "/" } else { "" }, elements.join("/"))
}

/// What stands in front of each key: the prefix with a slash at its end, or nothing for a prefix without elements and slash.
pub fn folder(prefix: &str) -> String {
    match clean(prefix) {
        empty if empty.is_empty() => empty,
        rooted if rooted.ends_with('/') => rooted,
        prefix => format!("{prefix}/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of the config that flanneld reads with these prefixes: path.Join(prefix, "config").
    #[test]
    fn keys_are_those_of_gos_path_join() {
        for (prefix, key) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com/network/", "/coreos.com/network/config"),
            ("/coreos.com//network", "/coreos.com/network/config"),
            ("//coreos.com/network", "/coreos.com/network/config"),
            ("coreos.com/network", "coreos.com/network/config"),
            ("coreos.com/network/", "coreos.com/network/config"),
            ("./net", "net/config"),
            ("/a/./b", "/a/b/config"),
            ("/a/../b", "/b/config"),
            ("/../b", "/b/config"),
            ("a/..", "config"),
            ("../b", "../b/config"),
            ("/", "/config"),
            ("", "config"),
        ] {
            assert_eq!(folder(prefix) + "config", key, "{prefix}");
        }
    }
}
