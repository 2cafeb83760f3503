//! `cargo xtask vm`: a command in a virtual machine with another kernel.
use std::{
    env,
    io::{self, IsTerminal as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::Args;
use netmig_lab::{
    Cmd, Host, Options,
    vm::{self, Pair, VmHost},
};

use crate::{
    cargo::{self, Profile},
    setup::{self, Purpose, Tell},
};

/// What a shell's `timeout` exits with.
const TOOK_TOO_LONG: u8 = 124;

/// Runs a command as root in a virtual machine with another kernel, over the test root with netmig's programs. What it writes to
/// its standard output and error comes out here, and its exit code is this one's (124 if it took too long).
///
/// With --pair there are two machines, hosts `a` and `b` of a lab whose `peer` is on this machine: the command runs in `a`, or in the
/// host that --on names.
///
/// A machine is emulated unless NETMIG_VM_ACCEL=kvm, so everything takes many times as long. What is written to its disks goes with it.
#[derive(Args)]
pub struct Arguments {
    /// The kernel: the beginning of its release (6.12), a Debian suite (sid), or `newest`
    #[arg(long, default_value = "newest", value_name = "VERSION")]
    kernel: String,
    /// Two machines with these kernels instead of one
    #[arg(long, value_name = "A,B", value_parser = two, conflicts_with = "kernel")]
    pair: Option<[String; 2]>,
    /// Where the command runs, with --pair
    #[arg(long, value_name = "HOST", value_parser = ["a", "b", "peer"], default_value = "a", requires = "pair")]
    on: String,
    /// Instead of a command, run a test program of tests/tests/ in the machine, with labs inside it; what follows `--` are its arguments
    #[arg(long, value_name = "NAME", conflicts_with = "pair")]
    test: Option<String>,
    /// Memory of the machine in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Processors of the machine
    #[arg(long, default_value_t = 1)]
    processors: u32,
    /// Another program of this machine to be in /opt/netmig and /usr/bin there
    #[arg(long, value_name = "FILE")]
    program: Vec<PathBuf>,
    /// How many seconds the command may take
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// The command and its arguments; a shell if there is none
    #[arg(last = true)]
    command: Vec<String>,
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    setup::require_root("the test root")?;
    setup::ready(&[Purpose::Build, Purpose::Lab, Purpose::Vm], Tell::Work)?;
    let programs = programs()?;
    if let Some([a, b]) = &arguments.pair {
        let options = Options {
            binary: newest_binary(&programs),
            ..Options::default()
        };
        let name = format!("pair-{}", std::process::id());
        let specs = [
            spec(arguments, a, &programs)?,
            spec(arguments, b, &programs)?,
        ];
        let pair = Pair::up(&name, &options, specs)?;
        tell(pair.a());
        tell(pair.b());
        let host = pair.host(&arguments.on).context("no such host")?;
        let code = match (arguments.on.as_str(), arguments.command.is_empty()) {
            ("b", true) => shell(pair.b())?,
            (_, true) => shell(pair.a())?,
            (_, false) => run(host, &line(&arguments.command), arguments.timeout)?,
        };
        pair.down()?;
        return Ok(code);
    }
    let mut spec = spec(arguments, &arguments.kernel, &programs)?;
    let command = match &arguments.test {
        Some(test) => {
            let stories = spec.add_stories(&test_program(test)?, &programs)?;
            stories.args(arguments.command.iter().cloned())
        }
        None => line(&arguments.command),
    };
    let host = VmHost::boot(&spec)?;
    tell(&host);
    let code = match command.argv() {
        [] => shell(&host),
        _ => run(&host, &command, arguments.timeout),
    };
    code.with_context(|| format!("the end of its console:\n{}", host.vm().console()))
}

fn spec(arguments: &Arguments, kernel: &str, programs: &Path) -> anyhow::Result<vm::Spec> {
    let mut spec = vm::Spec::new("vm", kernel, programs)?;
    for path in &arguments.program {
        spec.add_program(path)?;
    }
    spec.memory = arguments.memory;
    spec.processors = arguments.processors;
    Ok(spec)
}

fn two(kernels: &str) -> Result<[String; 2], &'static str> {
    let (a, b) = kernels
        .split_once(',')
        .ok_or("two kernels, as in 6.12,newest")?;
    Ok([a.to_owned(), b.to_owned()])
}

fn line(command: &[String]) -> Cmd {
    Cmd::new(command.iter().cloned())
}

fn newest_binary(programs: &Path) -> Option<PathBuf> {
    Some(programs.join("netmig-user")).filter(|path| path.is_file())
}

/// A test program of the lab's, built now.
fn test_program(test: &str) -> anyhow::Result<PathBuf> {
    let mut build = cargo::whole("test")?;
    build.args(["--no-run", "--message-format", "json-render-diagnostics"]);
    build.args(["--test", test]);
    let told = build.stderr(Stdio::inherit()).output();
    let told = told.context("starting cargo")?;
    ensure!(told.status.success(), "the test {test} was not built");
    let messages = String::from_utf8_lossy(&told.stdout).into_owned();
    let program = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == test)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.with_context(|| format!("cargo built no program for the test {test}"))
}

/// Builds what belongs into a machine, and tells in which directory it is.
fn programs() -> anyhow::Result<PathBuf> {
    cargo::programs_of_tests()?;
    let init = cargo::program(vm::INIT, Profile::Debug);
    let directory = init.parent().map(Path::to_owned);
    directory.context("programs are built into no directory")
}

fn tell(host: &VmHost) {
    let started = host.vm().started();
    eprintln!(
        "{}: {} up after {:.1} s",
        host.name(),
        started.hello.release,
        started.took.as_secs_f64()
    );
}

fn run(host: &dyn Host, command: &Cmd, seconds: u64) -> anyhow::Result<ExitCode> {
    let mut process = host.spawn(&command.clone().inherit())?;
    let ended = process.wait_for(Duration::from_secs(seconds))?;
    Ok(ended.map_or_else(
        || {
            eprintln!("killed after {seconds} s");
            ExitCode::from(TOOK_TOO_LONG)
        },
        exit_code,
    ))
}

/// A shell for a person, or for a script on the standard input.
fn shell(host: &VmHost) -> anyhow::Result<ExitCode> {
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        let mut shell = host.spawn(&Cmd::new(["sh"]).inherit())?;
        return Ok(exit_code(shell.wait()?));
    }
    let raw = Raw::new()?;
    let term = env::var("TERM").unwrap_or_else(|_| "linux".to_owned());
    let shell = Cmd::new(["bash", "-l"]).env("TERM", term);
    let status = host.on_terminal(&shell, raw.size())?.wait();
    drop(raw);
    Ok(exit_code(status?))
}

/// As a shell tells it: the code, or 128 and the signal's number.
fn exit_code(status: ExitStatus) -> ExitCode {
    let by_signal = || status.signal().map(|signal| 128 + signal);
    let code = status.code().or_else(by_signal);
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The terminal passes every key on until this is dropped.
struct Raw(libc::termios);

impl Raw {
    fn new() -> anyhow::Result<Self> {
        // SAFETY: termios is plain data, for which zeros are valid.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a termios, which tcgetattr fills.
        if unsafe { libc::tcgetattr(0, &raw mut before) } == -1 {
            return Err(io::Error::last_os_error()).context("reading the terminal's settings");
        }
        let mut raw = before;
        // SAFETY: both pointers are to a termios.
        let set = unsafe {
            libc::cfmakeraw(&raw mut raw);
            libc::tcsetattr(0, libc::TCSANOW, &raw const raw)
        };
        if set == -1 {
            return Err(io::Error::last_os_error()).context("setting the terminal");
        }
        Ok(Self(before))
    }

    /// Rows and columns; the classic ones if the terminal does not tell.
    fn size(&self) -> (u16, u16) {
        let mut size = libc::winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the pointer is to a winsize, which TIOCGWINSZ fills or leaves as it is.
        unsafe { libc::ioctl(0, libc::TIOCGWINSZ, &raw mut size) };
        (size.ws_row, size.ws_col)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: the pointer is to what tcgetattr gave. A terminal that has gone needs nothing.
        unsafe { libc::tcsetattr(0, libc::TCSANOW, &raw const self.0) };
    }
}
