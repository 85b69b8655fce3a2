//! Finds out which containers are behind which ports of this host, from the kernel's events, from probes and from commands.
pub mod learner;
pub mod observe;
pub mod probe;
pub mod view;
pub mod xdp_targets;
