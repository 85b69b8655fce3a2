//! Finds out which containers are behind which ports of this host, from the kernel's events, from probes and from commands.
mod announcements;
pub mod learner;
pub mod observe;
mod packet_filter;
pub mod probe;
mod probes;
pub mod view;
pub mod xdp_targets;
