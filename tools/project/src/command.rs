//! Running other programs. There is one way to start them, and one form of error, which names the program and repeats
//! what it printed.
use std::{
    ffi::OsStr,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

/// Prints the error of a command of ours that failed, with all its causes, and returns the exit code that says so.
pub fn exit_code(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs `program` to its end and returns what it wrote to stdout. If it fails, the error contains its stderr.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
    output(Command::new(program).args(args))
}

/// Runs a space-separated command line (no quoting, no shell).
pub fn sh(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    run(words.next().context("an empty command line")?, words)
}

/// Runs `command` to its end and returns what it wrote to stdout. If it fails, the error contains its stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {}", show(command)))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let said = if stderr.trim().is_empty() { stdout.trim() } else { stderr.trim() };
        bail!("{} ended with {}: {said}", show(command), output.status);
    }
    Ok(stdout)
}

/// Runs `command` with this process's own stdout and stderr.
pub fn pass_through(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {}", show(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", show(command));
    }
    Ok(())
}

/// The command as one would type it in a shell.
pub fn show(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    format!("`{}`", words.join(" "))
}
