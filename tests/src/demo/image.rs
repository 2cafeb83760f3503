//! The container's image: a few programs of the test root and `netmig-peer`, with the libraries that they need, as a docker archive
//! (<https://github.com/moby/docker-image-spec/blob/main/v1.2.md>).
//!
//! The archive is written here rather than by `podman import` so that every host gets the same image id: a move asks for the image by
//! its digest. It is cached by the content of what goes into it.
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{Error, processes};
use crate::{Cmd, Host, Input};

/// Programs of the test root.
const PROGRAMS: [&str; 5] = ["redis-server", "redis-cli", "iperf3", "sh", "sleep"];
/// Changes when the way of building does.
const VERSION: u32 = 1;

const REDIS_CONF: &str =
    "bind * -::*\nport 6379\nprotected-mode no\ndir /data\nsave \"\"\ndaemonize no\n";
/// What the image is called, and its archive in the cache; the key of its content follows.
const NAME: &str = "localhost/netmig-demo";
const ARCHIVE: &str = "demo-";
const PASSWD: &str = "root:x:0:0:root:/:/bin/sh\n";

/// An image in the cache.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    archive: PathBuf,
}

/// A file of the image: its path there, and where its content comes from.
struct Part {
    path: PathBuf,
    source: PathBuf,
}

impl Image {
    /// Builds the image from the test root at `root` and the program `netmig-peer`, or finds it in the directory `cache`.
    ///
    /// # Errors
    /// The root lacks a program or a library, or a file cannot be read or written.
    pub fn build(root: &Path, netmig_peer: &Path, cache: &Path) -> Result<Self, Error> {
        let parts = parts(root, netmig_peer)?;
        let key = content_key(&parts)?;
        let archive = cache.join(format!("{ARCHIVE}{key}.tar"));
        let name = format!("{NAME}:{key}");
        if !archive.exists() {
            fs::create_dir_all(cache).map_err(Error::file("creating", cache))?;
            let room =
                TempDir::new_in(cache).map_err(Error::file("making a directory in", cache))?;
            let whole = write_archive(room.path(), &parts, &name)?;
            // A half-written archive never bears the final name.
            fs::rename(&whole, &archive).map_err(Error::file("renaming to", &archive))?;
        }
        Ok(Self { name, archive })
    }

    /// The image in an archive that [`build`](Image::build) has made, under the name that it had there.
    ///
    /// # Errors
    /// [`Error::File`] if the archive has another name.
    pub fn built(archive: PathBuf) -> Result<Self, Error> {
        let name = archive.file_stem().and_then(|stem| stem.to_str());
        match name.and_then(|name| name.strip_prefix(ARCHIVE)) {
            Some(key) => Ok(Self {
                name: format!("{NAME}:{key}"),
                archive,
            }),
            None => Err(Error::file(
                "finding an image's key in the name of",
                archive,
            )(io::ErrorKind::InvalidFilename.into())),
        }
    }

    /// The image's name with its tag.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The archive.
    #[must_use]
    pub fn archive(&self) -> &Path {
        &self.archive
    }

    /// Gives the image to podman on `host`, if it is not there.
    ///
    /// # Errors
    /// What podman said.
    pub fn load(&self, host: &dyn Host) -> Result<(), Error> {
        if host
            .exec(&Cmd::new(["podman", "image", "exists", self.name()]))?
            .status
            .success()
        {
            return Ok(());
        }
        let bytes = fs::read(&self.archive).map_err(Error::file("reading", &self.archive))?;
        let load = Cmd::new(["podman", "load", "--quiet"])
            .stdin(Input::Bytes(bytes))
            .limit(Duration::from_secs(120));
        host.run_cmd(&load)?;
        Ok(())
    }
}

/// Everything that goes into the image from elsewhere, each path once, in order.
fn parts(root: &Path, netmig_peer: &Path) -> Result<Vec<Part>, Error> {
    let mut parts = vec![Part {
        path: "bin/netmig-peer".into(),
        source: netmig_peer.to_owned(),
    }];
    let mut libraries = needed(Command::new("ldd").arg(netmig_peer))?;
    for program in PROGRAMS {
        let found = ["usr/bin", "usr/sbin"]
            .iter()
            .map(|d| root.join(d).join(program))
            .find(|p| p.exists());
        let source = found.ok_or_else(|| Error::Root {
            root: root.to_owned(),
            what: program.to_owned(),
        })?;
        let inside = Path::new("/").join(source.strip_prefix(root).unwrap_or(&source));
        libraries.extend(needed(
            Command::new("chroot").arg(root).arg("ldd").arg(inside),
        )?);
        parts.push(Part {
            path: Path::new("bin").join(program),
            source,
        });
    }
    for library in libraries {
        // A library of this machine has its namesake of the root, which is at least as new.
        let source = root.join(library.strip_prefix("/").unwrap_or(&library));
        if !source.exists() {
            return Err(Error::Root {
                root: root.to_owned(),
                what: library.display().to_string(),
            });
        }
        parts.push(Part {
            path: library.strip_prefix("/").unwrap_or(&library).to_owned(),
            source,
        });
    }
    parts.sort_by(|a, b| a.path.cmp(&b.path));
    parts.dedup_by(|a, b| a.path == b.path);
    Ok(parts)
}

/// The libraries that ldd names.
fn needed(ldd: &mut Command) -> Result<Vec<PathBuf>, Error> {
    let text = run(ldd)?;
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(PathBuf::from)
        .collect())
}

fn content_key(parts: &[Part]) -> Result<String, Error> {
    let mut sum = Sha256::new();
    sum.update(format!(
        "{VERSION}\n{REDIS_CONF}\n{}\n",
        processes().join("\n")
    ));
    for part in parts {
        let content = fs::read(&part.source).map_err(Error::file("reading", &part.source))?;
        sum.update(format!("{}\n{}\n", part.path.display(), content.len()));
        sum.update(content);
    }
    Ok(hexadecimal(&sum.finalize())[..16].to_owned())
}

fn write_archive(room: &Path, parts: &[Part], name: &str) -> Result<PathBuf, Error> {
    let files = room.join("files");
    for directory in ["data", "proc", "sys", "dev", "run", "tmp", "etc"] {
        let path = files.join(directory);
        fs::create_dir_all(&path).map_err(Error::file("creating", path))?;
    }
    write(&files.join("etc/redis.conf"), REDIS_CONF.as_bytes())?;
    write(&files.join("etc/passwd"), PASSWD.as_bytes())?;
    for part in parts {
        let path = files.join(&part.path);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(Error::file("creating", directory))?;
        }
        fs::copy(&part.source, &path).map_err(Error::file("copying", &part.source))?;
    }
    let image = room.join("image");
    fs::create_dir(&image).map_err(Error::file("creating", &image))?;
    let layer = image.join("layer.tar");
    tar(&files, &layer)?;
    let config = serde_json::to_vec(&config(&digest_of(&layer)?)).map_err(json_error(&image))?;
    let config_name = format!("{}.json", hexadecimal(&Sha256::digest(&config)));
    write(&image.join(&config_name), &config)?;
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"] }]);
    write(
        &image.join("manifest.json"),
        &serde_json::to_vec(&manifest).map_err(json_error(&image))?,
    )?;
    let whole = room.join("image.tar");
    tar(&image, &whole)?;
    Ok(whole)
}

fn config(layer_digest: &str) -> serde_json::Value {
    let mut command = vec!["/bin/netmig-peer".to_owned(), "init".to_owned()];
    for (i, process) in processes().iter().enumerate() {
        if i > 0 {
            command.push("--and".to_owned());
        }
        command.extend(process.split(' ').map(str::to_owned));
    }
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": { "Cmd": command, "Env": ["PATH=/bin"], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "netmig demo" }],
    })
}

/// Packs the content of `directory` so that the same files give the same bytes.
fn tar(directory: &Path, archive: &Path) -> Result<(), Error> {
    let same = [
        "--sort=name",
        "--mtime=@0",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--format=gnu",
    ];
    run(Command::new("tar")
        .args(same)
        .arg("-C")
        .arg(directory)
        .arg("-cf")
        .arg(archive)
        .arg("."))
    .map(drop)
}

fn digest_of(path: &Path) -> Result<String, Error> {
    let content = fs::read(path).map_err(Error::file("reading", path))?;
    Ok(hexadecimal(&Sha256::digest(content)))
}

fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    fs::write(path, content).map_err(Error::file("writing", path))
}

fn run(command: &mut Command) -> Result<String, Error> {
    match command.output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => Err(Error::Command {
            command: format!("{command:?}"),
            said: format!(
                "{}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim_end()
            ),
        }),
        Err(e) => Err(Error::Command {
            command: format!("{command:?}"),
            said: e.to_string(),
        }),
    }
}

fn json_error(path: &Path) -> impl Fn(serde_json::Error) -> Error {
    move |e| Error::file("describing", path)(io::Error::from(e))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
