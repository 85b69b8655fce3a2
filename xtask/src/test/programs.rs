//! The programs of the tests: all that are wanted, built by one cargo, and where they are.
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use overlay_project::{
    command,
    project::{self, Next, cargo, target},
};

/// A program with tests in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TestProgram {
    pub(super) name: String,
    /// Of a file in `tests/`, rather than of a library's or a program's own files.
    pub(super) integration: bool,
    /// The package's folder: where its tests expect to be.
    folder: PathBuf,
    pub(super) file: PathBuf,
}

/// An integration test of the agent's package. For such a test cargo builds the package's programs, `overlay` among them,
/// with the crates as the tests have them; otherwise it would build many of them twice.
const BESIDE_OVERLAY: &str = "bad_input";

/// Which tests are to be built.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted<'a> {
    All,
    /// Those in the files of libraries and programs, if `own`, and these integration tests.
    These {
        own: bool,
        names: Vec<&'a str>,
    },
}

/// Builds the tests that are wanted, and the agent. cargo's messages are shown.
pub(super) fn build(wanted: &Wanted) -> Result<Vec<TestProgram>> {
    let mut words = vec!["test", "--no-run", "--message-format", "json-render-diagnostics"];
    words.extend(project::PACKAGES);
    if let Wanted::These { own, names } = wanted {
        if *own {
            words.extend(["--lib", "--bins"]);
        }
        for name in names.iter().chain([&BESIDE_OVERLAY]) {
            words.extend(["--test", name]);
        }
    }
    let messages = command::output(cargo(&words).stderr(Stdio::inherit()))?;
    let programs: Vec<_> = messages.lines().filter_map(program).collect();
    ensure!(!programs.is_empty(), "cargo names no test that it built");
    Ok(programs)
}

/// Builds what tests of hosts start beside the agent, and returns the folder of all programs.
pub(super) fn build_beside() -> Result<PathBuf> {
    // The lab itself finds leaks in the end.
    for program in ["overlay-frames", "overlay-lab"] {
        project::build(program)?;
    }
    for next in [Next::Layout, Next::Program] {
        project::build_next(next)?;
    }
    Ok(target().join("debug"))
}

/// What a line of cargo's says of a program with tests, if it does.
fn program(line: &str) -> Option<TestProgram> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    if message["profile"]["test"] != true {
        return None;
    }
    let manifest = Path::new(message["manifest_path"].as_str()?);
    Some(TestProgram {
        name: message["target"]["name"].as_str()?.to_owned(),
        integration: message["target"]["kind"][0] == "test",
        folder: manifest.parent()?.to_owned(),
        file: PathBuf::from(message["executable"].as_str()?),
    })
}

/// Among `programs` that of this integration test.
pub(super) fn find<'a>(programs: &'a [TestProgram], name: &str) -> Result<&'a TestProgram> {
    let found = programs.iter().find(|program| program.integration && program.name == name);
    found.with_context(|| format!("cargo names no program of the test {name}"))
}

impl TestProgram {
    /// To be run as cargo would, with so many tests at a time; as many as there are CPUs if it does not matter.
    pub(super) fn command(&self, at_a_time: Option<usize>) -> Command {
        let mut command = Command::new(&self.file);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command.args(at_a_time.map(|number| format!("--test-threads={number}")));
        command
    }
}

#[cfg(test)]
impl TestProgram {
    /// An integration test of this name, which nobody has built.
    pub(super) fn named(name: &str) -> Self {
        Self { name: name.to_owned(), integration: true, folder: PathBuf::new(), file: PathBuf::from(name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_with_tests_are_read_from_what_cargo_says() {
        let line = |kind: &str, test: bool, file: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/a b/tools/lab/Cargo.toml","target":{{"kind":["{kind}"],
                "name":"lab"}},"profile":{{"test":{test}}},"executable":{file}}}"#
            )
        };
        let found = program(&line("test", true, "\"/t/deps/lab-1\"")).unwrap();
        assert_eq!((found.name.as_str(), found.integration), ("lab", true));
        assert_eq!(
            (found.folder, found.file),
            (PathBuf::from("/a b/tools/lab"), PathBuf::from("/t/deps/lab-1"))
        );
        assert!(!program(&line("lib", true, "\"/t/deps/lab-2\"")).unwrap().integration);
        // A program that is none of a test, a library, and what is no message at all.
        assert_eq!(program(&line("bin", false, "\"/t/lab\"")), None);
        assert_eq!(program(&line("lib", false, "null")), None);
        assert_eq!(program("   Compiling x"), None);
    }
}
