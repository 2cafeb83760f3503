//! The programs that this binary stands in for during one move: `crun` and `runc`, `conmon`, `netavark`.
//!
//! podman is told of them by `CONTAINERS_CONF_OVERRIDE` and `CONTAINERS_HELPER_BINARY_DIR`, for one command at a time, so that no other container of the host
//! meets them. Each is a link in `<move>/shim/` to this binary, finds `<move>/shim.json` by its own name, and ends by becoming the real program.
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use serde::{Deserialize, Serialize};

use super::{
    flags::{self, Oci, Version},
    hook::{NetavarkCall, NetavarkReply, Side},
};

/// Names of the programs that have a shim.
pub const NAMES: [&str; 4] = ["crun", "runc", "conmon", "netavark"];

/// What podman is told by environment variables, and what its children must not inherit: conmon keeps its environment for the container's life, and
/// with a configuration file that is gone its exit command fails, so that the container's end is never noticed.
pub const CONF_OVERRIDE: &str = "CONTAINERS_CONF_OVERRIDE";
/// See [`CONF_OVERRIDE`].
pub const HELPER_DIR: &str = "CONTAINERS_HELPER_BINARY_DIR";

/// `<move>/shim.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Which end.
    pub side: Side,
    /// Full paths of the real programs by name.
    pub real: BTreeMap<String, PathBuf>,
    /// The container's OCI runtime.
    pub oci: Oci,
    /// Its version.
    pub version: Version,
    /// CRIU's configuration file for this move.
    pub criu_conf: PathBuf,
    /// Directory of the images, in place of what podman says.
    pub images: PathBuf,
    /// Directory of CRIU's logs, in place of what podman says.
    pub logs: PathBuf,
}

/// What to do for one call of an OCI runtime.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    /// Become the real runtime with these arguments.
    Exec(Vec<String>),
    /// The same, once the images are there.
    Restore(Vec<String>),
    /// End with 0 at once.
    Nothing,
}

impl Config {
    /// Reads the configuration that belongs to a shim called as `argv0`, a path in `<move>/shim/`.
    ///
    /// # Errors
    /// `argv0` is no such path, or the file is missing or broken.
    pub fn of(argv0: &Path) -> io::Result<Self> {
        let dir = argv0
            .parent()
            .and_then(Path::parent)
            .filter(|dir| dir.is_absolute());
        let dir = dir.ok_or_else(|| {
            io::Error::other(format!(
                "{} is not a path in a move's directory",
                argv0.display()
            ))
        })?;
        let path = dir.join("shim.json");
        let text = fs::read(&path)
            .map_err(|e| io::Error::new(e.kind(), format!("reading {}: {e}", path.display())))?;
        serde_json::from_slice(&text)
            .map_err(|e| io::Error::other(format!("{}: {e}", path.display())))
    }

    fn runtime(&self, args: &[String]) -> Call {
        let Some(at) = verb(args) else {
            return Call::Exec(args.to_vec());
        };
        // podman asks `crun checkpoint --help` whether there is such a command.
        if args.iter().any(|arg| arg == "--help") {
            return Call::Exec(args.to_vec());
        }
        let added = match (args[at].as_str(), self.side) {
            ("checkpoint", _) => flags::checkpoint(self.oci, self.version),
            ("restore", _) => flags::restore(self.oci, self.version),
            // At the target podman goes through `start` so that its record has a start time; the program itself arrives by restore.
            ("start", Side::Target) => return Call::Nothing,
            _ => return Call::Exec(args.to_vec()),
        };
        let mut new = args.to_vec();
        for (option, dir) in [("--image-path", &self.images), ("--work-path", &self.logs)] {
            replace(&mut new, at, option, &dir.display().to_string());
        }
        new.splice(at + 1..at + 1, added.iter().map(ToString::to_string));
        if args[at] == "restore" && self.side == Side::Target {
            Call::Restore(new)
        } else {
            Call::Exec(new)
        }
    }
}

/// Where the subcommand is: the first argument that is neither a global option nor the value of one.
fn verb(args: &[String]) -> Option<usize> {
    const WITH_VALUE: [&str; 7] = [
        "--log",
        "--log-format",
        "--log-level",
        "--root",
        "--cgroup-manager",
        "--criu",
        "--rootless",
    ];
    let mut at = 0;
    while let Some(arg) = args.get(at) {
        if !arg.starts_with('-') {
            return Some(at);
        }
        at += if WITH_VALUE.contains(&arg.as_str()) {
            2
        } else {
            1
        };
    }
    None
}

/// Sets the value of `option` after `from`; adds it if it is not there.
fn replace(args: &mut Vec<String>, from: usize, option: &str, value: &str) {
    let with_equals = format!("{option}=");
    match args
        .iter()
        .skip(from)
        .position(|arg| arg == option || arg.starts_with(&with_equals))
        .map(|at| at + from)
    {
        Some(at) if args[at] == option && at + 1 < args.len() => {
            value.clone_into(&mut args[at + 1])
        }
        Some(at) => args[at] = format!("{option}={value}"),
        None => {
            args.splice(from + 1..from + 1, [option.to_owned(), value.to_owned()]);
        }
    }
}

/// Main function for `crun`, `runc` and `conmon`: becomes the real program, and returns only if that fails (or nothing is to be done).
///
/// `argv0` is the name as called, a path in `<move>/shim/`. `images` waits until there are images to restore from; false: there will be none.
#[must_use]
pub fn main(
    argv0: &Path,
    args: &[OsString],
    images: impl FnOnce() -> io::Result<bool>,
) -> ExitCode {
    match become_real(argv0, args, images) {
        Ok(code) => code,
        Err(e) => {
            // Standard error of a runtime is what podman shows.
            eprintln!("netmig: {e}");
            ExitCode::FAILURE
        }
    }
}

fn become_real(
    argv0: &Path,
    args: &[OsString],
    images: impl FnOnce() -> io::Result<bool>,
) -> io::Result<ExitCode> {
    let config = Config::of(argv0)?;
    let name = argv0
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    let real = real(&config, name)?;
    let mut command = Command::new(real);
    command.env_remove(CONF_OVERRIDE).env_remove(HELPER_DIR);
    if name == "conmon" {
        command.args(conmon(args));
    } else {
        let text: Option<Vec<String>> = args
            .iter()
            .map(|a| a.to_str().map(ToOwned::to_owned))
            .collect();
        match text.map(|args| config.runtime(&args)) {
            Some(Call::Exec(args)) => command.args(args),
            Some(Call::Restore(args)) => {
                if !images()? {
                    return Err(io::Error::other(
                        "the move is given up, nothing is restored",
                    ));
                }
                command.args(args)
            }
            Some(Call::Nothing) => return Ok(ExitCode::SUCCESS),
            // Nothing of ours is in arguments that are no text.
            None => command.args(args),
        };
        command.env("CRIU_CONFIG_FILE", &config.criu_conf);
    }
    let e = command.exec();
    Err(io::Error::new(
        e.kind(),
        format!("executing {}: {e}", real.display()),
    ))
}

/// Arguments for conmon. While the target's record is being made there is no exit command: podman would clean up by itself when the container that never
/// ran is stopped, and remove one that was created with `--rm`.
fn conmon(args: &[OsString]) -> Vec<OsString> {
    if args.iter().any(|arg| arg == "--restore") {
        return args.to_vec();
    }
    let mut kept = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--exit-command" || arg == "--exit-command-arg" {
            rest.next();
        } else {
            kept.push(arg.clone());
        }
    }
    kept
}

fn real<'a>(config: &'a Config, name: &str) -> io::Result<&'a Path> {
    let path = config.real.get(name).map(PathBuf::as_path);
    path.ok_or_else(|| io::Error::other(format!("no program {name} is known to this move")))
}

/// Main function for `netavark`: reads what podman says, lets `ask` (the agent) decide, and does so.
#[must_use]
pub fn netavark(
    argv0: &Path,
    args: &[OsString],
    ask: impl FnOnce(&NetavarkCall) -> io::Result<NetavarkReply>,
) -> ExitCode {
    match serve_netavark(argv0, args, ask) {
        Ok(code) => code,
        Err(e) => netavark_error(&e.to_string()),
    }
}

fn serve_netavark(
    argv0: &Path,
    args: &[OsString],
    ask: impl FnOnce(&NetavarkCall) -> io::Result<NetavarkReply>,
) -> io::Result<ExitCode> {
    let config = Config::of(argv0)?;
    let Some(call) = NetavarkCall::parse(args, || {
        let mut stdin = Vec::new();
        io::stdin().lock().read_to_end(&mut stdin)?;
        Ok(stdin)
    })?
    else {
        // `--version` and the like.
        let e = Command::new(real(&config, "netavark")?)
            .args(args)
            .env_remove(HELPER_DIR)
            .exec();
        return Err(e);
    };
    match ask(&call)? {
        NetavarkReply::Answer(stdout) => {
            io::stdout().write_all(&stdout)?;
            Ok(ExitCode::SUCCESS)
        }
        NetavarkReply::Fail(why) => Ok(netavark_error(&why)),
        NetavarkReply::PassOn => {
            let mut child = Command::new(real(&config, "netavark")?)
                .args(args)
                .env_remove(HELPER_DIR)
                .stdin(Stdio::piped())
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(&call.stdin)?;
            }
            let code = child
                .wait()?
                .code()
                .and_then(|code| u8::try_from(code).ok());
            Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
        }
    }
}

/// As netavark itself reports: podman reads `{"error": ...}` from standard output.
fn netavark_error(why: &str) -> ExitCode {
    println!(
        "{}",
        serde_json::json!({ "error": format!("netmig: {why}") })
    );
    ExitCode::FAILURE
}

impl NetavarkCall {
    /// From the arguments that podman gives: options, then `setup|teardown|update NETNS`. None for another command. `stdin` is read only for one of these.
    ///
    /// # Errors
    /// Those of `stdin`.
    pub fn parse(
        args: &[OsString],
        stdin: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> io::Result<Option<Self>> {
        let text: Vec<&str> = args.iter().filter_map(|a| a.to_str()).collect();
        let Some(at) = text
            .iter()
            .position(|arg| matches!(*arg, "setup" | "teardown" | "update"))
        else {
            return Ok(None);
        };
        let netns = text[at + 1..]
            .iter()
            .rfind(|arg| arg.starts_with('/'))
            .map(PathBuf::from);
        Ok(Some(Self {
            command: text[at].to_owned(),
            netns,
            stdin: stdin()?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(side: Side, oci: Oci, version: Version) -> Config {
        Config {
            side,
            real: BTreeMap::from([(
                oci.name().to_owned(),
                PathBuf::from("/usr/bin").join(oci.name()),
            )]),
            oci,
            version,
            criu_conf: "/run/m/criu.conf".into(),
            images: "/run/m/images".into(),
            logs: "/run/m/logs".into(),
        }
    }

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(ToOwned::to_owned).collect()
    }

    fn exec(call: Call) -> String {
        match call {
            Call::Exec(args) => args.join(" "),
            Call::Restore(args) => format!("wait, {}", args.join(" ")),
            Call::Nothing => panic!("nothing is done"),
        }
    }

    /// Argument lines as podman 5.4.2 was seen to give them.
    const CHECKPOINT: &str = "checkpoint --image-path /var/lib/c/userdata/checkpoint --work-path /var/lib/c/userdata --file-locks ID";
    const RESTORE: &str = "--log-format=json --log /run/c/oci-log restore --bundle /var/lib/c/userdata --pid-file /run/c/pidfile --detach \
                           --image-path /var/lib/c/userdata/checkpoint --work-path /var/lib/c/userdata ID";

    #[test]
    fn crun_checkpoint_goes_to_the_moves_directory() {
        let c = config(Side::Source, Oci::Crun, Version(1, 21, 0));
        assert_eq!(
            exec(c.runtime(&words(CHECKPOINT))),
            "checkpoint --manage-cgroups-mode=ignore --image-path /run/m/images --work-path /run/m/logs --file-locks ID"
        );
    }

    #[test]
    fn restore_after_global_options() {
        for (version, added) in [(Version(1, 21, 0), ""), (Version(1, 28, 0), "--tcp-close ")] {
            let c = config(Side::Target, Oci::Crun, version);
            let expected = format!(
                "wait, --log-format=json --log /run/c/oci-log restore {added}--bundle /var/lib/c/userdata --pid-file /run/c/pidfile --detach \
                 --image-path /run/m/images --work-path /run/m/logs ID"
            );
            assert_eq!(exec(c.runtime(&words(RESTORE))), expected);
        }
    }

    #[test]
    fn runc_by_version() {
        let old = config(Side::Source, Oci::Runc, Version(1, 1, 15));
        assert_eq!(
            exec(old.runtime(&words("checkpoint ID"))),
            "checkpoint --work-path /run/m/logs --image-path /run/m/images ID"
        );
        let new = config(Side::Source, Oci::Runc, Version(1, 3, 6));
        assert!(
            exec(new.runtime(&words(CHECKPOINT)))
                .starts_with("checkpoint --manage-cgroups-mode ignore --image-path /run/m/images")
        );
    }

    #[test]
    fn other_calls_pass_untouched() {
        let c = config(Side::Target, Oci::Crun, Version(1, 21, 0));
        for line in [
            "checkpoint --help",
            "--version",
            "kill ID 9",
            "delete --force restore",
            "--log start create --bundle /b ID",
        ] {
            assert_eq!(exec(c.runtime(&words(line))), line);
        }
    }

    #[test]
    fn start_does_nothing_at_the_target_alone() {
        let line = words("--log-format=json start ID");
        assert_eq!(
            config(Side::Target, Oci::Crun, Version(1, 21, 0)).runtime(&line),
            Call::Nothing
        );
        assert_eq!(
            exec(config(Side::Source, Oci::Crun, Version(1, 21, 0)).runtime(&line)),
            line.join(" ")
        );
    }

    #[test]
    fn conmon_has_an_exit_command_only_for_a_restored_container() {
        let args = |line: &str| -> Vec<OsString> { line.split(' ').map(OsString::from).collect() };
        let create = "--api-version 1 -c ID --exit-dir /x --exit-command /usr/bin/podman --exit-command-arg container --exit-command-arg cleanup";
        assert_eq!(
            conmon(&args(create)),
            args("--api-version 1 -c ID --exit-dir /x")
        );
        let restore = format!("{create} --restore /checkpoint");
        assert_eq!(conmon(&args(&restore)), args(&restore));
    }

    #[test]
    fn netavark_call_as_podman_makes_it() {
        let args: Vec<OsString> = "--config /run/containers/networks --rootless=false --aardvark-binary=/usr/lib/podman/aardvark-dns setup \
                                   /run/netns/netns-364d0036"
            .split(' ')
            .map(OsString::from)
            .collect();
        let call = NetavarkCall::parse(&args, || Ok(b"{}".to_vec()))
            .unwrap()
            .unwrap();
        assert_eq!(call.command, "setup");
        assert_eq!(
            call.netns.as_deref(),
            Some(Path::new("/run/netns/netns-364d0036"))
        );
        let none = NetavarkCall::parse(&["--version".into()], || panic!("stdin is read")).unwrap();
        assert_eq!(none, None);
    }

    #[test]
    fn shim_called_by_a_bare_name_says_so() {
        let error = Config::of(Path::new("crun")).unwrap_err().to_string();
        assert!(
            error.contains("not a path in a move's directory"),
            "{error}"
        );
    }
}
