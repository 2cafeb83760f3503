//! The ssh keys of a lab: one for each host that runs sshd, and one for its users. They are made with the lab and go with it.
use std::{
    fs, io,
    os::unix::{fs::chroot, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use serde::{Deserialize, Serialize};

use super::options::Spec;

/// A key pair in OpenSSH's formats.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Key {
    pub name: String,
    pub private: String,
    pub public: String,
}

/// All keys of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Keys {
    pub user: Key,
    pub hosts: Vec<Key>,
}

/// Makes them with the test root's ssh-keygen, in a directory that only this mount namespace has.
pub(super) fn make(spec: &Spec) -> anyhow::Result<Keys> {
    let scratch = spec.root.join("mnt");
    let at = || format!("on {}", scratch.display());
    mount(
        Some("tmpfs"),
        &scratch,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=700"),
    )
    .with_context(|| format!("mounting a tmpfs {}", at()))?;
    let servers = spec.hosts.iter().filter(|host| host.full);
    let mut names = servers.map(|host| host.name.clone()).collect::<Vec<_>>();
    names.push("user".to_owned());
    let keys = generate(&spec.root, &names);
    umount2(&scratch, MntFlags::MNT_DETACH)
        .with_context(|| format!("unmounting the tmpfs {}", at()))?;
    let mut hosts = keys?;
    match hosts.pop() {
        Some(user) => Ok(Keys { user, hosts }),
        None => bail!("no key was made"),
    }
}

fn generate(root: &Path, names: &[String]) -> anyhow::Result<Vec<Key>> {
    let mut running = Vec::new();
    for name in names {
        let root = root.to_owned();
        let mut keygen = Command::new("/usr/bin/ssh-keygen");
        keygen
            .args([
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                &format!("lab-{name}"),
                "-f",
            ])
            .arg(format!("/mnt/{name}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let enter = move || -> io::Result<()> {
            chroot(&root)?;
            std::env::set_current_dir("/")
        };
        // SAFETY: the closure runs in a child of a process with one thread, so it may do what it likes.
        unsafe { keygen.pre_exec(enter) };
        running.push(
            keygen
                .spawn()
                .context("starting ssh-keygen in the test root")?,
        );
    }
    for keygen in running {
        let output = keygen
            .wait_with_output()
            .context("waiting for ssh-keygen")?;
        if !output.status.success() {
            bail!(
                "ssh-keygen: {}",
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
    }
    let read = |file: String| {
        let path = root.join("mnt").join(file);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    names
        .iter()
        .map(|name| {
            Ok(Key {
                name: name.clone(),
                private: read(name.clone())?,
                public: read(format!("{name}.pub"))?.trim_end().to_owned(),
            })
        })
        .collect()
}
