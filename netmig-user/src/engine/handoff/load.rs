//! The target's helper: makes the sockets in the program's namespace, hands them to the program that waits, and lets it go on.
use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use netmig_core::image::v1::sock::Sockets;

use super::{
    Ask, Error, Kit, MANIFEST, Manifest, STATE,
    channel::{Channel, Deadline},
    connect, file, make_room,
    message::{Announcement, Say, Told},
    number, place,
    programs::{self, Role},
    read_json, start, talk,
};
use crate::{engine::criu::hook::Action, sock, sys::netns::within};

/// How long a program may take to load its state.
const LOADING: Duration = Duration::from_secs(30);
/// How long it may take to hear a word.
const WORD: Duration = Duration::from_secs(5);

/// Runs until the program goes on. `dir` is the move's, with the images and `sockets`. The process enters the program's cgroup, by which the
/// driver finds all that a discard must end.
///
/// # Errors
/// The sockets cannot be made, the program does not load, or the move was cancelled; it has been told to leave.
pub fn run(dir: &Path, ask: Ask<'_>) -> Result<(), Error> {
    let kit = Kit::open(dir)?;
    let name = &kit.config.name;
    let netns = kit
        .config
        .netns
        .as_deref()
        .ok_or_else(|| Error::Unfit("no namespace was named".to_owned()))?;
    start::enter_cgroup(name)?;
    super::ask(ask, Action::Images)?;
    let manifest: Manifest = read_json(&kit.images.join(MANIFEST))?;
    make_room(manifest.labels.len())?;
    // They stay here to the end: an agent that is restarted takes them up from this process. The process itself stays in the host's
    // namespace, as it may have to start that agent.
    let held = make(&dir.join("sockets"), netns, &manifest)?;

    let program = programs::find(name, Role::Waiting).ok_or_else(|| Error::Absent(name.clone()))?;
    let channel = connect(&program)?;
    let say = |told: &Told| channel.send(told, Deadline::within(WORD));
    let loaded = super::ask(ask, Action::PostRestore).and_then(|()| {
        give(&kit, &channel, &manifest, &held)?;
        let watched = watch(&channel, name)?;
        super::ask(ask, Action::Loaded)?;
        watched.store(false, Ordering::SeqCst);
        super::ask(ask, Action::PreResume)
    });
    if let Err(e) = loaded {
        talk(name, "telling `leave`", say(&Told::Leave))
            .err()
            .into_iter()
            .for_each(|also| eprintln!("{also}"));
        return Err(e);
    }
    talk(name, "telling `go`", say(&Told::Go))?;
    program
        .promote()
        .map_err(|e| file("noting", Path::new(name), e))
}

/// The image's sockets, each under the number that it had in the source's helper.
fn make(path: &Path, netns: &Path, manifest: &Manifest) -> Result<Vec<OwnedFd>, Error> {
    let bytes = fs::read(path).map_err(|e| file("reading", path, e))?;
    let image: Sockets =
        postcard::from_bytes(&bytes).map_err(|e| file("reading", path, io::Error::other(e)))?;
    let made = within(netns, || sock::make(&image))?;
    let mut by_number = HashMap::new();
    for (numbers, fd) in &made {
        by_number.extend(numbers.iter().map(|number| (*number, fd)));
    }
    let count = manifest.labels.len();
    let mut held = Vec::with_capacity(count);
    for (k, label) in manifest.labels.iter().enumerate() {
        let fd = by_number.get(&number(count, k)).ok_or_else(|| {
            Error::Unfit(format!(
                "no socket came for descriptor {label}: it ended while it was handed over"
            ))
        })?;
        held.push(
            place(fd, number(count, k)).map_err(|e| file("placing", Path::new("a socket"), e))?,
        );
    }
    Ok(held)
}

/// Hands state and descriptors over, and waits until the program is ready.
fn give(kit: &Kit, channel: &Channel, manifest: &Manifest, held: &[OwnedFd]) -> Result<(), Error> {
    let name = &kit.config.name;
    let path = kit.images.join(STATE);
    let mut state = File::open(&path).map_err(|e| file("opening", &path, e))?;
    let bytes = state
        .metadata()
        .map_err(|e| file("looking at", &path, e))?
        .len();
    let descriptors: Vec<_> = manifest.labels.iter().copied().zip(held).collect();
    let announced = Announcement {
        version: manifest.version.clone(),
        bytes,
        descriptors: u32::try_from(descriptors.len()).unwrap_or(u32::MAX),
    };
    let limit = Deadline::within(LOADING);
    let said = channel
        .send(&Told::State(announced), limit)
        .and_then(|()| channel.send_state(&mut state, &descriptors, limit))
        .and_then(|()| channel.receive(limit));
    match talk(name, "loading", said)? {
        Say::Ready => Ok(()),
        Say::Refused { why } => Err(Error::Unfit(format!(
            "program {name} does not load at the target: {why}"
        ))),
        other => Err(Error::Unfit(format!(
            "program {name} said {other:?} where ready is due"
        ))),
    }
}

/// Ends this process if the program dies while the grant is waited for. The flag ends the watch.
fn watch(channel: &Channel, name: &str) -> Result<Arc<AtomicBool>, Error> {
    let other = channel
        .again()
        .map_err(|e| file("duplicating", Path::new("the connection"), e))?;
    let (flag, name) = (Arc::new(AtomicBool::new(true)), name.to_owned());
    let watched = flag.clone();
    thread::spawn(move || {
        let gone = other.hung_up(None);
        if watched.load(Ordering::SeqCst) {
            match gone {
                Ok(_) => {
                    eprintln!("program {name} died at the target before the move was released")
                }
                Err(e) => eprintln!("watching program {name}: {e}"),
            }
            std::process::exit(1);
        }
    });
    Ok(flag)
}
