//! The agent: how a host joins the network, the loop that keeps the data path as the leases say, and what the agent tells of
//! itself.
pub mod assembly;
pub mod control;
pub mod desired;
pub mod device_keeper;
mod fast_path;
mod file_keeper;
pub mod guard;
pub mod health;
pub mod in_front;
pub mod join;
pub mod options;
pub mod origin;
pub mod peers;
mod promotion_keeper;
pub mod reconciler;
pub mod removal;
pub mod status;
pub mod underlay_watch;
