//! The `overlay` binary: parse, log, dispatch, exit code.
use std::process::ExitCode;

use overlay_user::cli::{
    commands::{self, Completion},
    environment,
};

pub(crate) fn main() -> ExitCode {
    let cli = match environment::parse(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let set = std::env::vars_os().filter(|(_, value)| !value.is_empty());
    for ignored in environment::ignored_variables(set.map(|(name, _)| name)) {
        log::warn!("{ignored}");
    }
    // One thread: one task changes the data path, and the kernel carries the packets.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            log::error!("start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(Completion::Done) => ExitCode::SUCCESS,
        Ok(Completion::Problems) => ExitCode::from(3),
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
