//! Images: whether the target has one, and how it is sent.
use crate::{
    engine::job::Command,
    runtime::{Error, tool},
};

/// How an image can be named on this host so that it is the one with `id` (64 hex digits): by `name` if that means the same here, else by its id.
/// None if it is not here.
///
/// # Errors
/// podman is missing or fails.
pub fn local_name(id: &str, name: &str) -> Result<Option<String>, Error> {
    if !name.is_empty() && id_of(name)?.as_deref() == Some(id) {
        return Ok(Some(name.to_owned()));
    }
    Ok(id_of(id)?.map(|_| id.to_owned()))
}

fn id_of(name: &str) -> Result<Option<String>, Error> {
    match tool::run(&[
        "podman", "image", "inspect", "--format", "{{.Id}}", "--", name,
    ]) {
        Ok(id) => Ok(Some(id.trim().to_owned())),
        Err(tool::Error::Failed { stderr, .. })
            if stderr.contains("image not known") || stderr.contains("no such image") =>
        {
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Bytes of an image's layers on this host.
///
/// # Errors
/// There is no such image, or podman fails.
pub fn size(id: &str) -> Result<u64, Error> {
    let text = tool::run(&[
        "podman",
        "image",
        "inspect",
        "--format",
        "{{.Size}}",
        "--",
        id,
    ])?;
    let broken = |e: std::num::ParseIntError| tool::Error::Output {
        command: "podman image inspect".into(),
        why: e.to_string(),
    };
    Ok(text.trim().parse().map_err(broken)?)
}

/// The command that writes an image to its standard output, without a name: see [`received`].
#[must_use]
pub fn save(id: &str) -> Command {
    Command::new([
        "podman",
        "image",
        "save",
        "--quiet",
        "--format",
        "docker-archive",
        id,
    ])
}

/// The command that reads an image from its standard input.
#[must_use]
pub fn load() -> Command {
    Command::new(["podman", "image", "load", "--quiet"])
}

/// After [`load`]: the image must be the one that was asked for. It gets its name if no other image has that here.
///
/// # Errors
/// It is another one, or podman fails.
pub fn received(id: &str, name: &str) -> Result<(), Error> {
    if id_of(id)?.is_none() {
        return Err(Error::Refused(format!(
            "the image {name} came over and is not {id} here, as it is at the source: the two podmans keep images differently; \
             pull it at the target (podman pull {name})"
        )));
    }
    // With a digest it is no name that could be given.
    if !name.is_empty() && !name.contains('@') && id_of(name)?.is_none() {
        tool::run(&["podman", "image", "tag", id, name])?;
    }
    Ok(())
}

/// Removes an image that a move brought, unless a container has come to use it. One that is not there is no error.
///
/// # Errors
/// podman is missing or fails.
pub fn remove(id: &str) -> Result<(), Error> {
    if id_of(id)?.is_none() {
        return Ok(());
    }
    match tool::run(&["podman", "image", "rm", "--", id]) {
        Err(tool::Error::Failed { stderr, .. }) if stderr.contains("image is in use") => Ok(()),
        ended => Ok(ended.map(drop)?),
    }
}
