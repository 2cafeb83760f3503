//! A guest: QEMU, its disks, and the way to run commands in it.

use std::env;
use std::fs;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::frame::{Frame, Hello, Kind};
use super::qemu::Qemu;
use super::work_directory::WorkDirectory;
use super::{Disk, Error, Kernel, image, initramfs, mux};
use crate::root;

/// Where the project's programs are in a guest.
pub const PROGRAMS: &str = "/opt/netmig";

/// The name under which the guest's init is among the programs.
pub const INIT: &str = "netmig-lab-init";

const MIB: u64 = 1 << 20;

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The kernel.
    pub kernel: Kernel,
    /// The tree that becomes the guest's root file system. What the guest writes there is gone
    /// with it.
    pub root: PathBuf,
    /// Where disk images are kept.
    pub images: PathBuf,
    /// Programs for [`PROGRAMS`]: name there, path here. [`INIT`] is among them.
    pub programs: Vec<(String, PathBuf)>,
    /// Memory in MiB.
    pub memory: u32,
    /// Processors.
    pub processors: u32,
    /// The host name.
    pub name: String,
    /// Network cards, `eth0` first.
    pub cards: Vec<Card>,
    /// The network namespace that the cards' other ends are in; this process's own if none.
    pub netns: Option<PathBuf>,
    /// How long the start may take.
    pub patience: Duration,
}

impl Spec {
    /// A machine with the kernel that `wanted` names ([`Kernel::find`]) over the test root, with the lab's programs and
    /// netmig-user (NETMIG_USER_BIN if that is set), as far as they are there, from the directory `programs`.
    pub fn new(name: &str, wanted: &str, programs: &Path) -> Result<Self, Error> {
        let chosen = env::var_os("NETMIG_USER_BIN").map(PathBuf::from);
        let user = chosen.unwrap_or_else(|| programs.join("netmig-user"));
        let helper = programs.join("netmig-lab-helper");
        let found = [("netmig-lab-helper", helper), ("netmig-user", user)]
            .into_iter()
            .filter(|(_, path)| path.is_file())
            .map(|(name, path)| (name.to_owned(), path));
        let init = (INIT.to_owned(), programs.join(INIT));
        Ok(Self {
            kernel: Kernel::find(&Kernel::cache(), wanted)?,
            root: root::path(),
            images: root::cache().join("images"),
            programs: [init].into_iter().chain(found).collect(),
            memory: 2048,
            processors: 1,
            name: name.to_owned(),
            cards: Vec::new(),
            netns: None,
            patience: Duration::from_secs(120),
        })
    }

    /// Adds a program under its own name.
    pub fn add_program(&mut self, path: &Path) -> Result<(), Error> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or(io::ErrorKind::InvalidFilename.into());
        let name = name.map_err(Error::io("find the name of", path))?;
        self.programs.push((name.to_owned(), path.to_owned()));
        Ok(())
    }
}

/// A network card of a guest: the other end is a TAP device that exists already.
#[derive(Debug, Clone)]
pub struct Card {
    /// The TAP device's name.
    pub tap: String,
    /// The card's address.
    pub mac: String,
}

/// How long a start went on.
#[derive(Debug, Clone)]
pub struct Started {
    /// What the guest says.
    pub hello: Hello,
    /// From the start of QEMU to that word.
    pub took: Duration,
}

/// A running guest. Dropping it ends it at once: nothing of it is to be kept.
#[derive(Debug)]
pub struct Vm {
    // Before the directory, which holds its files.
    qemu: Qemu,
    directory: WorkDirectory,
    started: Started,
}

impl Vm {
    /// Starts a guest and waits until it takes commands.
    pub fn boot(spec: &Spec) -> Result<Self, Error> {
        let directory = WorkDirectory::new()?;
        let at = |name: &str| directory.path().join(name);
        let disks = disks(spec)?;
        let initramfs = at("initramfs");
        let init = format!("{PROGRAMS}/{INIT}");
        let archive = initramfs::build(&spec.kernel, &busybox()?, &disks, &init)?;
        fs::write(&initramfs, archive).map_err(Error::io("write", &initramfs))?;

        let port = at("port");
        let listener = UnixListener::bind(&port).map_err(Error::io("listen on", &port))?;
        let begun = Instant::now();
        let qemu = Qemu::start(spec, directory.path(), &disks)?;
        let (guest, hello) =
            first_word(&qemu, listener, begun + spec.patience).map_err(|why| Error::Boot {
                release: spec.kernel.release.clone(),
                why,
                console: qemu.console(),
            })?;
        let took = begun.elapsed();

        let socket = at("commands");
        let listener = UnixListener::bind(&socket).map_err(Error::io("listen on", &socket))?;
        mux::serve(guest, listener).map_err(Error::io("serve", &socket))?;
        Ok(Self {
            qemu,
            directory,
            started: Started { hello, took },
        })
    }

    /// How the start went.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// The socket at which any process of this user can run commands in the guest
    /// ([`Remote::start`](super::client::Remote::start)), as long as this value lives.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("commands")
    }

    /// QEMU's process.
    pub fn pid(&self) -> Pid {
        self.qemu.pid()
    }

    /// The last lines of the guest's console: what its kernel complained of.
    pub fn console(&self) -> String {
        self.qemu.console()
    }
}

/// Waits for the guest's agent; an error is what happened instead.
fn first_word(
    qemu: &Qemu,
    listener: UnixListener,
    until: Instant,
) -> Result<(UnixStream, Hello), String> {
    let (sender, word) = mpsc::channel();
    // Blocks for as long as QEMU lives; ends with the connection. If nobody waits any more there is nobody to tell.
    thread::spawn(move || drop(sender.send(hear(&listener))));
    loop {
        match word.recv_timeout(Duration::from_millis(50)) {
            Ok(heard) => {
                return heard.map_err(|error| format!("ended before its first word: {error}"));
            }
            Err(RecvTimeoutError::Disconnected) => return Err("said nothing".to_owned()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(how) = qemu.ended() {
            return Err(format!("ended at once ({how}; {})", qemu.log()));
        }
        if Instant::now() > until {
            return Err("was not up in time".to_owned());
        }
    }
}

fn disks(spec: &Spec) -> Result<Vec<Disk>, Error> {
    let modules = format!("modules-{}", spec.kernel.release);
    Ok(vec![
        Disk {
            image: image::of_tree(&spec.images, "root", &spec.root, 2048 * MIB)?,
            mount_point: "/".to_owned(),
            writable: true,
        },
        Disk {
            image: image::of_tree(&spec.images, &modules, &spec.kernel.modules, 0)?,
            mount_point: format!("/usr/lib/modules/{}", spec.kernel.release),
            writable: false,
        },
        Disk {
            image: image::of_files(&spec.images, "programs", &spec.programs)?,
            mount_point: PROGRAMS.to_owned(),
            writable: false,
        },
    ])
}

fn hear(listener: &UnixListener) -> io::Result<(UnixStream, Hello)> {
    let (mut guest, _) = listener.accept()?;
    match Frame::read(&mut guest)? {
        Some(frame) if frame.kind == Kind::Hello => {
            Ok((guest, serde_json::from_slice(&frame.body)?))
        }
        Some(frame) => Err(io::Error::other(format!("{:?} came first", frame.kind))),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// busybox must be the static one: the initramfs holds no library.
fn busybox() -> Result<PathBuf, Error> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| Error::Tool {
            tool: "busybox",
            source: io::ErrorKind::NotFound.into(),
        })
}
