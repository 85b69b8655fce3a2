//! What xtask and the tools share, built before anything is set up: running other programs, what they cost, the project's
//! places, random numbers, and lines through what was measured.

pub mod command;
pub mod cpu;
pub mod line;
pub mod project;
pub mod random;
