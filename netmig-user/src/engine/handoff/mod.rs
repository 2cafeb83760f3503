//! A program that saves and loads itself, and hands its descriptors over (docs/handoff.md).
//!
//! A helper process stands where CRIU stands under the other engine: `netmig-user handoff-engine save DIR` at the source, `... load DIR` at the
//! target, a [`Job`](super::job::Job) that calls the agent's hooks at the same moments and waits for its word. It holds the program's
//! connection and its descriptors, so a move survives an agent that dies, and the driver sees no difference.
//!
//! ```text
//! source                                             target
//! Kit::prepare                                       Kit::prepare, Runtime::create, network behind a closed gate
//!                                                    Kit::stand_by: the program is started in the namespace and says `load`
//! save: hook pre-dump     drain; reply 0
//!   `save` -> state, descriptors
//!   hook network-lock     close the gate; reply 0
//!   hook post-dump        read the helper's sockets
//!     images stream  ----------------------------->  images/ filled
//!                                                    load: hook images        all is there; reply 0
//!                                                      sockets made anew in the namespace
//!                                                      hook post-restore  fill them; reply 0
//!                                                      state, descriptors -> `ready`
//!                                                      hook loaded        prepared
//!     <--------------------------------------------    ... grant ...      reply 0
//!                                                      hook pre-resume    open; reply 0
//!   reply 0: `leave`; 1: `resume`                      `go`
//! ```
use std::{
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{fs::DirBuilderExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use netmig_core::{
    container::{Container, Recipe},
    id::MoveId,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use super::{
    Engine, cgroup, criu,
    criu::hook::{HookCall, HookReply, Side},
    job::{Command, write_whole},
};
use crate::runtime::CreatedContainer;
use programs::{Program, Role};

pub mod channel;
pub mod load;
pub mod message;
pub mod programs;
pub mod save;
pub mod start;

/// Subcommand of this binary that is the helper; `save` or `load` and the move's directory follow.
pub const HELPER: &str = "handoff-engine";

/// The state among the images. Files of this beginning are sent while they grow, so it is on its way before the gate closes.
const STATE: &str = "pages-handoff";
/// Which label each descriptor has, among the images.
const MANIFEST: &str = "handoff.json";
/// What a helper must know, in the move's directory.
const CONFIG: &str = "handoff-engine.json";
/// Numbers that a helper needs for itself.
const OWN: RawFd = 512;
/// How long a program may take to come up at the target and say `load`.
const COMING: Duration = Duration::from_secs(20);

/// Handing over failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Talking with the program.
    #[error("{doing} of program {name}: {source}")]
    Program {
        /// What was tried.
        doing: &'static str,
        /// Its name.
        name: String,
        /// Why it failed.
        source: channel::Error,
    },
    /// There is no such program.
    #[error("program {0} has no connection to netmig on this host")]
    Absent(String),
    /// The program, or what it hands over, will not do.
    #[error("{0}")]
    Unfit(String),
    /// The program's cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The sockets.
    #[error(transparent)]
    Sockets(#[from] crate::sock::Error),
    /// The agent said no.
    #[error("cancelled")]
    Cancelled,
}

/// Hands a moment to the agent and waits for its word.
pub type Ask<'a> = &'a dyn Fn(HookCall) -> io::Result<HookReply>;

/// All that the engine needs on one host for one move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kit {
    dir: PathBuf,
    images: PathBuf,
    config: Config,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Config {
    mv: MoveId,
    name: String,
    /// This binary.
    exe: PathBuf,
    /// Source: the program that was looked at, and no later one of its name.
    program: Option<i32>,
    /// Target: the namespace of the program.
    netns: Option<PathBuf>,
}

/// What the source's helper tells the target's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    /// The program's version that saved the state.
    version: String,
    /// Label of each descriptor; the k-th has the [`number`] k.
    labels: Vec<u32>,
}

impl Kit {
    /// Makes the directory ready. `exe` is this binary.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn prepare(
        dir: &Path,
        side: Side,
        container: &Container,
        mv: MoveId,
        exe: &Path,
    ) -> Result<Self, Error> {
        let kit = Self {
            dir: dir.to_owned(),
            images: dir.join("images"),
            config: Config {
                mv,
                name: container.name.clone(),
                exe: exe.to_owned(),
                program: (side == Side::Source).then_some(container.init_pid),
                netns: container.netns.clone().filter(|_| side == Side::Target),
            },
        };
        for made in [dir, &kit.images] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(made)
                .map_err(|e| file("creating", made, e))?;
        }
        put_json(&dir.join(CONFIG), &kit.config)?;
        Ok(kit)
    }

    /// The kit that [`Kit::prepare`] made in `dir`.
    ///
    /// # Errors
    /// There is none.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self {
            dir: dir.to_owned(),
            images: dir.join("images"),
            config: read_json(&dir.join(CONFIG))?,
        })
    }

    fn helper(&self, verb: &str) -> Command {
        let dir = self.dir.display().to_string();
        Command::new([
            self.config.exe.display().to_string().as_str(),
            HELPER,
            verb,
            &dir,
        ])
    }
}

impl Engine for Kit {
    fn images(&self) -> &Path {
        &self.images
    }

    fn criu(&self) -> Option<&criu::Kit> {
        None
    }

    fn stand_by(
        &self,
        container: &Container,
        created: &CreatedContainer,
        given_up: &AtomicBool,
    ) -> Result<(), super::Error> {
        Ok(stand_by(container, created, given_up)?)
    }

    fn words(&self) -> [&'static str; 2] {
        ["the handoff at the source", "the handoff at the target"]
    }

    fn checkpoint_command(&self, _: &Container) -> Result<Command, super::Error> {
        Ok(self.helper("save"))
    }

    fn collect_extras(&self, _: &Container) -> Result<(), super::Error> {
        Ok(())
    }

    fn stage_record(&self, _: &CreatedContainer) -> Result<(), super::Error> {
        Ok(())
    }

    fn stage_images(&self, _: &CreatedContainer) -> Result<(), super::Error> {
        Ok(())
    }

    fn restore_command(
        &self,
        _: &Container,
        _: &CreatedContainer,
    ) -> Result<Command, super::Error> {
        Ok(self.helper("load"))
    }

    /// What the helper says of itself is all.
    fn why(&self, _: usize) -> Vec<String> {
        Vec::new()
    }
}

/// At the target: the program that will take over is there and waits. Without a command its operator has started it.
fn stand_by(
    container: &Container,
    created: &CreatedContainer,
    given_up: &AtomicBool,
) -> Result<(), Error> {
    let name = &container.name;
    if programs::find(name, Role::Waiting).is_some() {
        return Ok(());
    }
    let Recipe::Bare {
        command,
        directory,
        environment,
    } = &container.recipe
    else {
        return Err(Error::Unfit(format!("{name} comes without its command")));
    };
    if command.is_empty() {
        return Err(Error::Unfit(format!(
            "program {name} is not there to take over, and it has named no command that starts it: start it on the target before the move"
        )));
    }
    let (Some(netns), Some(cgroup)) = (&container.netns, created.cgroup()) else {
        return Err(Error::Unfit(format!(
            "there is no namespace or cgroup to start {name} in"
        )));
    };
    let log = programs::log(name);
    let mut child = start::spawn(&start::Start {
        command,
        directory: directory.as_deref(),
        environment,
        netns,
        cgroup: &cgroup,
        log: &log,
    })?;
    let until = Instant::now() + COMING;
    loop {
        if programs::find(name, Role::Waiting).is_some() {
            break;
        }
        let line = command.join(" ");
        let ended = child
            .try_wait()
            .map_err(|e| file("waiting for", Path::new(&command[0]), e))?;
        if let Some(status) = ended {
            return Err(Error::Unfit(format!(
                "{line} ended at the target with {status} before it said load: {}",
                start::tail(&log)
            )));
        }
        if given_up.load(Ordering::SeqCst) {
            return Err(Error::Cancelled);
        }
        if Instant::now() >= until {
            return Err(Error::Unfit(format!(
                "{line} runs at the target and has not said load within {COMING:?}: {}",
                start::tail(&log)
            )));
        }
        thread::sleep(Duration::from_millis(5));
    }
    // It lives on by itself; a thread takes its exit status.
    thread::spawn(move || child.wait());
    Ok(())
}

/// Room for so many descriptors, each under the number that it came with and that of [`number`]; the hard limit can be raised by whoever has
/// CAP_SYS_RESOURCE.
fn make_room(descriptors: usize) -> Result<(), Error> {
    let limit = |e: nix::Error| {
        Error::Unfit(format!(
            "{descriptors} descriptors need a higher RLIMIT_NOFILE than this host's agent may set: {e}"
        ))
    };
    let want = number(descriptors, descriptors) as u64 + OWN as u64;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(limit)?;
    if soft < want {
        setrlimit(Resource::RLIMIT_NOFILE, want, want.max(hard)).map_err(limit)?;
    }
    Ok(())
}

/// The same socket under a number of ours.
fn place(fd: &OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes integers and touches no memory of ours.
    let got = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us and nothing else knows it.
    let placed = unsafe { OwnedFd::from_raw_fd(got) };
    if got != number {
        return Err(io::Error::other(format!("descriptor {number} is taken")));
    }
    Ok(placed)
}

/// The number under which both helpers hold the k-th of so many descriptors: above all numbers under which they can have come.
fn number(descriptors: usize, k: usize) -> RawFd {
    RawFd::try_from(descriptors.saturating_add(k)).map_or(RawFd::MAX, |n| n.saturating_add(OWN))
}

fn create(path: &Path) -> Result<fs::File, Error> {
    fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| file("creating", path, e))
}

fn put_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let json = serde_json::to_vec_pretty(value).map_err(|e| file("encoding", path, e.into()))?;
    write_whole(path, &json).map_err(|e| file("writing", path, io::Error::other(e)))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = fs::read(path).map_err(|e| file("reading", path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| file("reading", path, e.into()))
}

fn file(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File {
        what,
        path: path.to_owned(),
        source,
    }
}

fn ask(ask: Ask<'_>, action: criu::hook::Action) -> Result<(), Error> {
    let call = HookCall {
        action,
        init_pid: i32::try_from(std::process::id()).ok(),
        image_dir: None,
    };
    match ask(call) {
        Ok(HookReply { code: 0 }) => Ok(()),
        Ok(_) => Err(Error::Cancelled),
        Err(e) => Err(file("asking", Path::new("the agent"), e)),
    }
}

fn talk<T>(name: &str, doing: &'static str, result: Result<T, channel::Error>) -> Result<T, Error> {
    result.map_err(|source| Error::Program {
        doing,
        name: name.to_owned(),
        source,
    })
}

fn connect(program: &Program) -> Result<channel::Channel, Error> {
    talk(
        &program.who.name,
        "taking up the connection",
        program.channel().map_err(channel::Error::Io),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_where_both_ends_expect_it() {
        assert_eq!(number(10, 7), 529);
        // Above what the other tests of this process have open.
        const MANY: usize = 9_000;
        make_room(MANY).expect("room");
        let file = OwnedFd::from(tempfile::tempfile().expect("a file"));
        let placed = place(&file, number(MANY, 7)).expect("placed");
        assert_eq!(placed.as_raw_fd(), 9519);
        let taken = place(&file, number(MANY, 7)).expect_err("taken");
        assert!(taken.to_string().contains("9519 is taken"), "{taken}");
        assert_eq!(number(usize::MAX, 0), RawFd::MAX);
        let too_many = make_room(usize::MAX / 4).expect_err("more than any limit");
        assert!(too_many.to_string().contains("RLIMIT_NOFILE"), "{too_many}");
    }
}
