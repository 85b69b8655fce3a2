//! What outlives an agent on this host: where it is pinned, which agent may touch it, and which host and network it belongs
//! to.
mod adoption;
mod covered;
mod error;
mod layouts;
mod lock;
mod moved;
mod name;
mod paths;
mod record;
mod removal;
#[cfg(test)]
mod tests;

pub use self::{
    adoption::Adoption,
    lock::{Lock, Ownership},
    paths::{DEFAULT_BPF_ROOT, Paths},
    record::Record,
};
