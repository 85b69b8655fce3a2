//! What xtask and the tools share, built before anything is set up: running other programs, what they cost, and the project's
//! places.

pub mod command;
pub mod cpu;
pub mod project;
