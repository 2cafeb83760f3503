//! Running the filters' own tools in the network namespace of the calling thread.
use std::{
    env, fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use super::super::Error;

/// Where tools of an administrator are, besides the places that this program was given.
const ADMIN: &str = "/usr/sbin:/sbin";

/// What a tool wrote.
pub struct Said {
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs `tool` with `input` to its end.
///
/// # Errors
/// [`Error::Missing`] if it is not there, [`Error::Tool`] with its own words if it does not end well.
pub fn run(what: &str, tool: &str, args: &[&str], input: Option<&str>) -> Result<Said, Error> {
    let failed = |said: String| Error::Tool {
        what: what.to_owned(),
        said: format!("{tool}: {said}"),
    };
    let path = format!("{}:{ADMIN}", env::var("PATH").unwrap_or_default());
    let Some(program) = find(tool, &path) else {
        return Err(Error::Missing {
            what: what.to_owned(),
            tool: tool.to_owned(),
            package: package(tool),
        });
    };
    // The child is of the calling thread's namespace: clone() copies what that thread has.
    let mut child = Command::new(program)
        .args(args)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let stdin = child.stdin.take();
    let (written, output) = match (stdin, input) {
        (Some(mut stdin), Some(input)) => thread::scope(|scope| {
            let writer = scope.spawn(move || stdin.write_all(input.as_bytes()));
            let output = child.wait_with_output();
            let written = writer
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (written, output)
        }),
        _ => (Ok(()), child.wait_with_output()),
    };
    let output = output.map_err(|e| failed(e.to_string()))?;
    let said = Said {
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    if !output.status.success() {
        let words = said.err.trim();
        return Err(failed(if words.is_empty() {
            output.status.to_string()
        } else {
            words.to_owned()
        }));
    }
    // A tool that ended well may have left a rest unread.
    match written {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(failed(e.to_string())),
        _ => Ok(said),
    }
}

/// Where a program is. Only one that is started by its path is started without a copy of this process's page tables (posix_spawn()): where
/// the child is given another PATH, a name means fork(), which takes the longer the more memory an agent has.
fn find(tool: &str, path: &str) -> Option<PathBuf> {
    const EXECUTABLE: u32 = 0o111;
    path.split(':')
        .map(|directory| Path::new(directory).join(tool))
        .find(|file| {
            fs::metadata(file)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & EXECUTABLE != 0)
        })
}

fn package(tool: &str) -> &'static str {
    match tool {
        "nft" => "nftables",
        "ipset" => "ipset",
        _ => "iptables",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_is_not_there_is_named_with_its_package() {
        let error = run("reading", "nft-that-is-not-there", &[], None)
            .err()
            .unwrap();
        assert!(
            matches!(&error, Error::Missing { tool, .. } if tool == "nft-that-is-not-there"),
            "{error}"
        );
    }

    #[test]
    fn a_tool_says_why_it_failed_and_takes_more_than_a_pipe_holds() {
        let large = "x\n".repeat(1 << 20);
        let said = run("counting", "wc", &["-l"], Some(&large)).unwrap();
        assert_eq!(said.out.trim(), (1 << 20).to_string());
        let error = run(
            "trying",
            "sh",
            &["-c", "echo no such table >&2; exit 3"],
            None,
        )
        .err()
        .unwrap();
        assert_eq!(error.to_string(), "trying: sh: no such table");
    }
}
