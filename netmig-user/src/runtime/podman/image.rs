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

/// The command that writes an image to its standard output. Given its name, the target's gets the same one.
#[must_use]
pub fn save(id: &str, name: &str) -> Command {
    let named = if name.is_empty() || name.contains('@') {
        id
    } else {
        name
    };
    Command::new([
        "podman",
        "image",
        "save",
        "--quiet",
        "--format",
        "docker-archive",
        named,
    ])
}

/// The command that reads an image from its standard input.
#[must_use]
pub fn load() -> Command {
    Command::new(["podman", "image", "load", "--quiet"])
}
