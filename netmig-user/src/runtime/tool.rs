//! Programs of the host: where they are, what they print.
use std::{
    env, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::engine::criu::flags::Version;

/// Places beside PATH: an ssh command often runs without the sbin ones.
const PLACES: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// A program could not be run, or ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is nowhere.
    #[error("{name} is not installed on this host")]
    Missing {
        /// The program.
        name: String,
    },
    /// It could not be started.
    #[error("starting {command}: {source}")]
    Start {
        /// The command line.
        command: String,
        /// Why it failed.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("{command}: {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// What it wrote to standard error (or its exit status, if nothing).
        stderr: String,
    },
    /// What it printed is not what was expected.
    #[error("what {command} printed cannot be read: {why}")]
    Output {
        /// The command line.
        command: String,
        /// Why.
        why: String,
    },
}

/// Full path of a program.
///
/// # Errors
/// [`Error::Missing`].
pub fn find(name: &str) -> Result<PathBuf, Error> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(PLACES.iter().map(PathBuf::from))
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|file| executable(file))
        .ok_or_else(|| Error::Missing {
            name: name.to_owned(),
        })
}

fn executable(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Runs `argv` with added environment and gives what it printed. Standard input is /dev/null.
///
/// # Errors
/// It is missing, or ends with anything but 0.
pub fn run_with(argv: &[&str], env: &[(String, String)]) -> Result<String, Error> {
    let program = find(argv[0])?;
    let line = || argv.join(" ");
    let output = Command::new(program)
        .args(&argv[1..])
        .envs(env.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Start {
            command: line(),
            source,
        })?;
    if !output.status.success() {
        let mut stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if stderr.is_empty() {
            stderr = output.status.to_string();
        }
        return Err(Error::Failed {
            command: line(),
            stderr,
        });
    }
    String::from_utf8(output.stdout).map_err(|e| Error::Output {
        command: line(),
        why: e.to_string(),
    })
}

/// [`run_with`] without added environment.
///
/// # Errors
/// As there.
pub fn run(argv: &[&str]) -> Result<String, Error> {
    run_with(argv, &[])
}

/// Runs `argv` and parses the JSON that it prints.
///
/// # Errors
/// As [`run_with`], or it is no such JSON.
pub fn json<T: serde::de::DeserializeOwned>(argv: &[&str]) -> Result<T, Error> {
    let text = run(argv)?;
    serde_json::from_str(&text).map_err(|e| Error::Output {
        command: argv.join(" "),
        why: e.to_string(),
    })
}

/// Version of a program, by its `--version`.
///
/// # Errors
/// As [`run`], or it prints no version.
pub fn version(name: &str) -> Result<Version, Error> {
    let text = run(&[name, "--version"])?;
    text.parse().map_err(|()| Error::Output {
        command: format!("{name} --version"),
        why: format!("no version in {text:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_program_is_named() {
        let error = run(&["no-such-program-of-netmig"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no-such-program-of-netmig is not installed on this host"
        );
    }

    #[test]
    fn error_text_is_the_programs_own() {
        let error = run(&["sh", "-c", "echo no such thing >&2; exit 3"]).unwrap_err();
        assert!(error.to_string().ends_with(": no such thing"), "{error}");
        let silent = run(&["sh", "-c", "exit 3"]).unwrap_err();
        assert!(silent.to_string().contains("exit status: 3"), "{silent}");
    }
}
