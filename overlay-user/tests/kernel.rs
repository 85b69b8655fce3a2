//! The kernel rung: the real programs, run by the kernel on one frame at a time; frame in, verdict, reason and frame out.
mod kernel {
    pub mod bed;
    pub mod decap;
    pub mod encap;
    pub mod stack;
}
mod support;
