//! How many tests passed and failed, from what cargo's test programs print.
use std::{
    fmt,
    io::{BufRead as _, BufReader},
    ops::AddAssign,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::Context as _;

use crate::cargo;

/// A count of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
}

impl Tally {
    /// One test that passed.
    pub fn one() -> Self {
        Self {
            passed: 1,
            failed: 0,
        }
    }

    /// What a closing line of a test program counts.
    fn of_line(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut fields = counts.split("; ");
        let mut number = |what: &str| fields.next()?.strip_suffix(what)?.trim().parse().ok();
        Some(Self {
            passed: number("passed")?,
            failed: number("failed")?,
        })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Runs a command in sight and counts the tests in its output. A test program that died before it could count is one failure.
pub fn watch(command: &mut Command) -> anyhow::Result<(Tally, ExitStatus)> {
    let line = cargo::line(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{line}`"))?;
    let mut tally = Tally::default();
    let mut open = 0_u64;
    if let Some(output) = child.stdout.take() {
        for text in BufReader::new(output).split(b'\n') {
            let text = text.with_context(|| format!("reading the output of `{line}`"))?;
            let text = String::from_utf8_lossy(&text);
            println!("{text}");
            if text.starts_with("running ") && text.contains(" test") {
                open += 1;
            }
            if let Some(counted) = Tally::of_line(&text) {
                tally += counted;
                open = open.saturating_sub(1);
            }
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("waiting for `{line}`"))?;
    tally.failed += open;
    Ok((tally, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_read() {
        let ok = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(
            Tally::of_line(ok),
            Some(Tally {
                passed: 12,
                failed: 0
            })
        );
        let bad = "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s";
        assert_eq!(
            Tally::of_line(bad),
            Some(Tally {
                passed: 2,
                failed: 3
            })
        );
        assert_eq!(Tally::of_line("test a ... ok"), None);
    }

    #[test]
    fn programs_that_die_before_they_count_are_failures() {
        let script = "echo 'running 3 tests'; echo 'test result: ok. 3 passed; 0 failed; 0 ignored'; echo 'running 2 tests'; exit 101";
        let (tally, status) = watch(Command::new("sh").args(["-c", script])).expect("sh");
        assert_eq!(
            tally,
            Tally {
                passed: 3,
                failed: 1
            }
        );
        assert!(!status.success());
    }
}
