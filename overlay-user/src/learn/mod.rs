//! Which containers live behind which ports of this host: learned from the kernel's events, probes and commands.
pub mod learner;
pub mod observe;
pub mod probe;
pub mod view;
pub mod xdp_targets;
