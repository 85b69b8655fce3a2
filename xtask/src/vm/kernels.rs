//! The kernels on which the tests run.

/// A kernel to test with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// The version as in the package's name, such as `6.1`.
    pub(crate) version: &'static str,
    /// Releases of Debian that have this kernel, in any order. The testing release moves on to the next kernel, but
    /// backports keep it for a while.
    pub(super) suites: &'static [&'static str],
}

/// The oldest kernel that is promised to work, the one of the present stable release, and a new one.
pub(crate) const KERNELS: &[Kernel] = &[
    Kernel { version: "6.1", suites: &["bookworm", "bookworm-security"] },
    Kernel { version: "6.12", suites: &["trixie", "trixie-security"] },
    Kernel { version: "7.2", suites: &["forky", "trixie-backports"] },
];
