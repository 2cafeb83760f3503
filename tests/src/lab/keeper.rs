//! The keeper: the process that holds a lab together. It is the program `netmig-lab-helper`, or any that becomes it on demand.
use std::{
    env,
    ffi::OsStr,
    io::{self, BufRead as _, BufReader, PipeReader, PipeWriter, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixListener,
    },
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, setsid},
};

use super::{
    cgroup, guest, init, keys, link, network,
    options::{HostSpec, SELF_IS_HELPER, Spec},
    state::{self, HostState, Keeper, State},
};

/// The name of the program that is the keeper.
pub(super) const PROGRAM: &str = "netmig-lab-helper";

/// What the keeper says on its standard output when all hosts are up.
pub(super) const READY: &str = "ready";

/// Becomes the lab's helper, and does not return, if this program was started as that. A program that calls this first thing in
/// `main` needs no other helper program for the labs that it makes.
pub fn helper_main_if_called() {
    let called = env::args_os().next();
    let name = called
        .as_deref()
        .and_then(|path| Path::new(path).file_name());
    if name == Some(OsStr::new(PROGRAM)) {
        std::process::exit(i32::from(helper_main() != ExitCode::SUCCESS));
    }
    SELF_IS_HELPER.get_or_init(|| ());
}

/// The whole of the program `netmig-lab-helper`.
#[must_use]
pub fn helper_main() -> ExitCode {
    let done = match env::args().nth(1).as_deref() {
        Some(guest::VERB) => guest::main(),
        _ => keep(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn keep() -> anyhow::Result<()> {
    let spec: Spec = match env::args().nth(1) {
        Some(name) => Spec::load(&name).with_context(|| format!("reading what lab {name} is"))?,
        None => bail!("started by hand: this program holds a lab together and is started by it"),
    };
    setsid().context("starting a session")?;
    let mut state = State {
        schema: "netmig.lab/1".to_owned(),
        name: spec.name.clone(),
        keeper: Keeper::own().context("looking at this process")?,
        root: spec.root.clone(),
        hosts: Vec::new(),
    };
    state.save().context("writing the lab's state")?;
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGCHLD,
    ] {
        mask.add(signal);
    }
    mask.thread_block().context("blocking signals")?;
    let signals =
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).context("making a signalfd")?;

    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("making the switch's namespaces")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)
        .context("making mounts private")?;

    let keys = keys::make(&spec)?;
    let mut hosts = Vec::new();
    for host in spec.hosts.iter().filter(|host| !host.guest) {
        hosts.push(
            start(&spec, host, &keys).with_context(|| format!("starting host {}", host.name))?,
        );
    }
    for host in &mut hosts {
        host.pid = host.hear("pid")?.parse().context("reading a process id")?;
    }
    let guests = || spec.hosts.iter().filter(|host| host.guest);
    let counts = link::counts_path(&state::directory(&spec.name));
    network::make_switch(
        hosts.iter().map(|host| (host.spec, host.pid)),
        guests(),
        spec.line.map(|line| (line, counts.as_path())),
    )?;
    for host in guests() {
        guest::leave_papers(&spec, host, &keys)
            .with_context(|| format!("writing what host {} is", host.name))?;
    }
    for host in &mut hosts {
        writeln!(host.tell, "linked")
            .with_context(|| format!("telling host {}", host.spec.name))?;
    }
    for host in &mut hosts {
        host.hear("up")?;
    }
    state.hosts = hosts.iter().map(Started::state).collect();
    state.save().context("writing the lab's state")?;
    println!("{READY}");

    let tie = spec.tied.then(io::stdin);
    let told = hold(&signals, tie.as_ref().map(|tie| tie.as_fd()));
    for host in &hosts {
        end(host)?;
    }
    if told? == Why::TieBroke {
        // Nobody is left who would.
        super::sweep(&spec.name)?;
    }
    Ok(())
}

/// A host that was started.
struct Started<'a> {
    spec: &'a HostSpec,
    /// Its PID 1, as this process counts.
    pid: i32,
    /// The process that PID 1 is a child of.
    parent: Pid,
    hear: BufReader<PipeReader>,
    tell: PipeWriter,
}

impl Started<'_> {
    /// Its next word to this process: `KIND VALUE`.
    fn hear(&mut self, kind: &str) -> anyhow::Result<String> {
        let mut line = String::new();
        let name = &self.spec.name;
        self.hear
            .read_line(&mut line)
            .with_context(|| format!("hearing from host {name}"))?;
        match line.trim_end().split_once(' ') {
            Some((said, value)) if said == kind => Ok(value.to_owned()),
            _ => bail!("host {name} did not say `{kind}`"),
        }
    }

    fn state(&self) -> HostState {
        HostState {
            name: self.spec.name.clone(),
            pid: self.pid,
            ipv4: self.spec.ipv4(),
            ipv6: self.spec.ipv6(),
        }
    }
}

fn start<'a>(spec: &Spec, host: &'a HostSpec, keys: &keys::Keys) -> anyhow::Result<Started<'a>> {
    let socket = state::directory(&spec.name).join(format!("{}.sock", host.name));
    let listener =
        UnixListener::bind(&socket).with_context(|| format!("binding {}", socket.display()))?;
    let (hear, mut say) = io::pipe().context("making a pipe")?;
    let (heard, tell) = io::pipe().context("making a pipe")?;
    // SAFETY: this process has one thread, so the child may do whatever it could.
    match unsafe { fork() }.context("forking")? {
        ForkResult::Parent { child } => Ok(Started {
            spec: host,
            pid: 0,
            parent: child,
            hear: BufReader::new(hear),
            tell,
        }),
        ForkResult::Child => {
            drop((hear, tell));
            let status = parent_of_init(spec, host, &mut say, || {
                init::main(spec, host, keys, &listener, heard.as_fd())
            });
            if let Err(error) = &status {
                eprintln!("host {}: {error:#}", host.name);
            }
            std::process::exit(i32::from(status.is_err()));
        }
    }
}

/// Makes the host's namespaces and its PID 1, and waits for the end of that.
fn parent_of_init<'a>(
    spec: &Spec,
    host: &HostSpec,
    say: &mut PipeWriter,
    init: impl FnOnce() -> anyhow::Result<init::Ready<'a>>,
) -> anyhow::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("asking to end with the keeper")?;
    cgroup::enter(&spec.name, &host.name).context("entering the host's control groups")?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID;
    unshare(namespaces).context("making the host's namespaces")?;
    // SAFETY: as above, one thread.
    match unsafe { fork() }.context("forking PID 1")? {
        ForkResult::Parent { child } => {
            writeln!(say, "pid {child}").context("telling the keeper")?;
            match waitpid(child, None).context("waiting for PID 1")? {
                WaitStatus::Exited(_, 0) | WaitStatus::Signaled(_, Signal::SIGKILL, _) => Ok(()),
                other => bail!("PID 1 ended: {other:?}"),
            }
        }
        ForkResult::Child => {
            prctl::set_pdeathsig(Signal::SIGKILL).context("asking to end with the keeper")?;
            let ready = init()?;
            writeln!(say, "up {}", host.name).context("telling the keeper")?;
            ready.serve()
        }
    }
}

#[derive(PartialEq, Eq)]
enum Why {
    Told,
    TieBroke,
}

/// Waits until it is told to end the lab, or the process that it is tied to has ended.
fn hold(signals: &SignalFd, tie: Option<BorrowedFd<'_>>) -> anyhow::Result<Why> {
    loop {
        let mut waits = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        waits.extend(tie.map(|tie| PollFd::new(tie, PollFlags::POLLIN)));
        match poll(&mut waits, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            other => other.context("waiting")?,
        };
        if waits.get(1).and_then(PollFd::any).unwrap_or(false) {
            return Ok(Why::TieBroke);
        }
        let signal = signals.read_signal().context("reading a signal")?;
        match signal.and_then(|signal| Signal::try_from(signal.ssi_signo.cast_signed()).ok()) {
            // A host died by itself: the others go on, so that what happened can be looked at.
            Some(Signal::SIGCHLD) => {
                while let Ok(WaitStatus::Exited(pid, status)) =
                    waitpid(None, Some(WaitPidFlag::WNOHANG))
                {
                    eprintln!("a host ended by itself: process {pid}, status {status}");
                }
            }
            Some(_) => return Ok(Why::Told),
            None => {}
        }
    }
}

/// Kills a host's PID 1, and with it every process of the host, and waits until they are gone.
fn end(host: &Started<'_>) -> anyhow::Result<()> {
    match kill(Pid::from_raw(host.pid), Signal::SIGKILL) {
        Ok(()) | Err(nix::Error::ESRCH) => {}
        Err(e) => return Err(e).with_context(|| format!("killing host {}", host.spec.name)),
    }
    match waitpid(host.parent, None) {
        Ok(_) | Err(nix::Error::ECHILD) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("waiting for host {}", host.spec.name)),
    }
}
