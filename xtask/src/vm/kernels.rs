//! The kernels that are tested with.

/// A kernel to test with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// As in its package's name: `6.1`.
    pub(crate) version: &'static str,
    /// Debian's releases that have it, in any order. Testing moves on to the next kernel; backports keep it for a while.
    pub(super) suites: &'static [&'static str],
}

/// The oldest that is promised, the present stable release's, and a new one.
pub(crate) const KERNELS: &[Kernel] = &[
    Kernel { version: "6.1", suites: &["bookworm", "bookworm-security"] },
    Kernel { version: "6.12", suites: &["trixie", "trixie-security"] },
    Kernel { version: "7.2", suites: &["forky", "trixie-backports"] },
];
