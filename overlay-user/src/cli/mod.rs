//! The command line of `overlay`: its options, its commands, and what they print.
pub mod check;
pub mod commands;
pub mod environment;
pub mod options;
mod table;
