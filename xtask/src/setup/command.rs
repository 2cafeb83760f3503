//! Commands of set-up: quiet when they work, with one clear line when they do not.
use std::{
    fs,
    io::{Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, bail};
use netmig_lab::root;

/// Runs it with its output in a log in the cache.
pub fn run(name: &str, command: &mut Command) -> anyhow::Result<()> {
    let path = log(name)?;
    let mut file = fs::File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    let begin = file
        .seek(SeekFrom::End(0))
        .context("reading the log's length")?;
    writeln!(file, "$ {command:?}").context("writing to the log")?;
    let twice = file.try_clone().context("duplicating the log")?;
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .stdin(std::process::Stdio::null())
        .stdout(file)
        .stderr(twice)
        .status()
        .with_context(|| format!("starting {program}"))?;
    if status.success() {
        return Ok(());
    }
    let output = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let begin = usize::try_from(begin).unwrap_or(0).min(output.len());
    let text = String::from_utf8_lossy(&output[begin..]);
    bail!(
        "{} ({program}: {status}; all it said is in {})",
        cause(&text),
        path.display()
    );
}

/// The output of a command that must work.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        bail!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn log(name: &str) -> anyhow::Result<PathBuf> {
    let directory = root::cache().join("log");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory.join(name))
}

/// What went wrong, in one line, from what a tool printed.
fn cause(output: &str) -> String {
    let has = |words: &[&str]| {
        output
            .lines()
            .find(|line| words.iter().any(|word| line.contains(word)))
            .map(str::trim)
    };
    if let Some(line) = has(&["No space left on device", "don't have enough free space"]) {
        return format!("no space: {line}");
    }
    let network = [
        "Temporary failure resolving",
        "Temporary failure in name resolution",
        "Could not resolve",
        "Could not connect",
        "Couldn't resolve host",
        "Could not handshake",
        "Network is unreachable",
        "Connection timed out",
        "Connection refused",
        "Connection failed",
        "Connection reset by peer",
        "Error reading from server",
        "failed to download from",
    ];
    if let Some(line) = has(&network) {
        return format!("no network: {line}");
    }
    let is_error = |line: &&str| {
        let line = line.trim_start();
        ["E:", "error", "mmdebstrap: error"]
            .iter()
            .any(|word| line.starts_with(word))
    };
    let told = output.lines().find(is_error);
    let told = told.or_else(|| output.lines().rfind(|line| !line.trim().is_empty()));
    told.unwrap_or("it said nothing").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::cause;

    #[test]
    fn no_network_and_no_space_are_told_in_one_line() {
        let apt = "Err:1 http://mirror.example trixie InRelease\n  Temporary failure resolving 'mirror.example'\nE: Failed to fetch\n";
        assert_eq!(
            cause(apt),
            "no network: Temporary failure resolving 'mirror.example'"
        );
        let cut = "E: Failed to fetch http://mirror.example/x.deb  Error reading from server. Remote end closed connection\n";
        assert_eq!(cause(cut), format!("no network: {}", cut.trim_end()));
        let tar = "tar: ./usr: Cannot write: No space left on device\nE: it broke\n";
        assert_eq!(
            cause(tar),
            "no space: tar: ./usr: Cannot write: No space left on device"
        );
    }

    #[test]
    fn otherwise_the_first_error_counts() {
        assert_eq!(
            cause("W: x\nE: Unable to locate package y\nE: it failed\nbye\n"),
            "E: Unable to locate package y"
        );
        assert_eq!(cause("a\nb\n\n"), "b");
        assert_eq!(cause(""), "it said nothing");
    }
}
