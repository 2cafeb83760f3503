//! The source's helper: has the program save itself, holds what it hands over, and tells it how the move ends.
use std::{os::fd::OwnedFd, path::Path, time::Duration};

use super::{
    Ask, Config, Error, Kit, MANIFEST, Manifest, STATE,
    channel::{Channel, Deadline},
    connect, create, file, make_room,
    message::{DESCRIPTOR_LIMIT, Say, Told},
    number, place,
    programs::{self, Role},
    put_json, talk,
};
use crate::{engine::criu::hook::Action, sock};

/// How long a program may take to save itself.
const SAVING: Duration = Duration::from_secs(30);
/// How long it may take to hear a word.
const WORD: Duration = Duration::from_secs(5);
/// How long it has to end.
const LEAVING: Duration = Duration::from_secs(5);

/// Runs to the end of the move. `dir` is the move's.
///
/// # Errors
/// The program does not hand itself over as it should, or the move was cancelled; it has been told to go on.
pub fn run(dir: &Path, ask: Ask<'_>) -> Result<(), Error> {
    let kit = Kit::open(dir)?;
    let Config {
        mv, name, program, ..
    } = &kit.config;
    let program = programs::find(name, Role::Running)
        .filter(|found| Some(found.pid()) == *program)
        .ok_or_else(|| Error::Absent(name.clone()))?;
    let channel = connect(&program)?;
    super::ask(ask, Action::PreDump)?;
    let say = |told: &Told| channel.send(told, Deadline::within(WORD));
    talk(
        name,
        "telling `save`",
        say(&Told::Save { mv: mv.to_string() }),
    )?;
    let saved = take(&kit, &channel).and_then(|held| {
        super::ask(ask, Action::NetworkLock)?;
        super::ask(ask, Action::PostDump)?;
        Ok(held)
    });
    // Its sockets stay open here until it has gone: what it closes by itself must not be the last close before they are silent.
    match saved {
        Ok(_held) => {
            // It may have died meanwhile: it is not needed any more.
            if say(&Told::Leave).is_ok()
                && !channel
                    .hung_up(Some(LEAVING))
                    .map_err(|e| file("waiting for the end of", Path::new(name), e))?
            {
                eprintln!("program {name} has not left within {LEAVING:?}");
            }
            Ok(())
        }
        Err(e) => {
            talk(name, "telling `resume`", say(&Told::Resume))
                .err()
                .into_iter()
                .for_each(|also| eprintln!("{also}"));
            Err(e)
        }
    }
}

/// Takes the state and the descriptors; these under the numbers that the manifest says.
fn take(kit: &Kit, channel: &Channel) -> Result<Vec<OwnedFd>, Error> {
    let name = &kit.config.name;
    let limit = Deadline::within(SAVING);
    let announced = match talk(name, "saving", channel.receive(limit))? {
        Say::State(announced) => announced,
        Say::Refused { why } => {
            return Err(Error::Unfit(format!("program {name} refuses: {why}")));
        }
        other => {
            return Err(Error::Unfit(format!(
                "program {name} said {other:?} where its state is due"
            )));
        }
    };
    make_room(announced.descriptors.min(DESCRIPTOR_LIMIT) as usize)?;
    let mut state = create(&kit.images.join(STATE))?;
    let handed = talk(
        name,
        "saving",
        channel.receive_state(&announced, &mut state, limit),
    )?;
    let count = handed.len();
    let mut held = Vec::with_capacity(count);
    let mut manifest = Manifest {
        version: announced.version,
        labels: Vec::with_capacity(handed.len()),
    };
    for (k, (label, fd)) in handed.into_iter().enumerate() {
        sock::portable(&fd).map_err(|why| {
            Error::Unfit(format!(
                "program {name} handed over descriptor {label}: {why}"
            ))
        })?;
        held.push(
            place(&fd, number(count, k))
                .map_err(|e| file("placing", Path::new("a descriptor"), e))?,
        );
        manifest.labels.push(label);
    }
    put_json(&kit.images.join(MANIFEST), &manifest)?;
    Ok(held)
}
