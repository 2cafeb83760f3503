//! A lab: three hosts on one segment, from up to down.
//!
//! ```text
//! caller ── keeper: own mount and network namespace, holds the switch (a bridge that learns)
//!             ├── a:    PID 1 of namespaces of its own ── commands, sshd, podman ...
//!             ├── b:    the same
//!             └── peer: the same
//! ```
//! With [`Options::line`], `peer` hangs at a [`link`]: a process that delays, limits and loses what goes to the switch and back.
//!
//! The keeper's end is the end of every process of the lab, and with them of every mount and namespace. What else there is, a
//! directory under `/run/netmig-lab` and control groups, is found by the lab's name and removed by [`Lab::down`]; a lab that was
//! made by [`Lab::up`] without [`Options::keep`] goes down with the process that made it, however that ends.
mod cgroup;
mod files;
pub(crate) mod guest;
mod image;
mod init;
mod keeper;
mod keys;
pub mod link;
mod mounts;
mod network;
mod options;
mod state;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

pub use image::Image;
pub use keeper::{helper_main, helper_main_if_called};
pub use options::{Bind, Options};
pub use state::{HostState, State, labs};

use crate::{Error, Host, NamespaceHost};

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    state: State,
    hosts: Vec<NamespaceHost>,
    /// The keeper, where this process made it. Its standard input is the tie: the keeper ends the lab when that closes.
    keeper: Option<Child>,
    /// Whether it goes down when dropped.
    tied: bool,
}

impl Lab {
    /// Brings up a lab of this name.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Exists`], [`Error::Root`], [`Error::Helper`], or [`Error::Up`] with what went wrong.
    pub fn up(name: &str, options: &Options) -> Result<Self, Error> {
        let spec = options.spec(name)?;
        let helper = options.helper()?;
        let directory = state::claim(name)?;
        let keeper = start_keeper(&helper, &directory, &spec);
        match keeper.and_then(|(keeper, state)| Ok((keeper, state?))) {
            Ok((keeper, state)) => Ok(Self {
                hosts: state.namespace_hosts(),
                state,
                keeper: Some(keeper),
                tied: spec.tied,
            }),
            Err(error) => match sweep(name) {
                Ok(()) => Err(error),
                Err(left) => Err(Error::Up {
                    name: name.to_owned(),
                    message: format!("{error}\nthen: {left}"),
                }),
            },
        }
    }

    /// Brings up a lab with a name that no other has, for a test: `story` with a number.
    ///
    /// # Errors
    /// As [`Lab::up`].
    pub fn temporary(story: &str, options: &Options) -> Result<Self, Error> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self::up(&format!("{story}-{}-{number}", std::process::id()), options)
    }

    /// Takes hold of a lab that another process brought up. It stays up when this value is dropped.
    ///
    /// # Errors
    /// [`Error::Missing`], or [`Error::File`] if its state cannot be read.
    pub fn attach(name: &str) -> Result<Self, Error> {
        let state = State::load(name)?;
        if !state.keeper.alive() || state.hosts.is_empty() {
            return Err(Error::Missing(name.to_owned()));
        }
        Ok(Self {
            hosts: state.namespace_hosts(),
            state,
            keeper: None,
            tied: false,
        })
    }

    /// Ends the lab and removes all of it.
    ///
    /// # Errors
    /// [`Error::Left`] with each thing that could not be removed.
    pub fn down(mut self) -> Result<(), Error> {
        self.tied = false;
        self.end()
    }

    /// What is known of it.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// The host of this name, if there is one.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<&NamespaceHost> {
        self.hosts.iter().find(|host| host.name() == name)
    }

    /// Every host.
    #[must_use]
    pub fn hosts(&self) -> &[NamespaceHost] {
        &self.hosts
    }

    /// What has happened on the line of [`Options::line`], at most a moment ago; none without one, or if nothing was sent.
    ///
    /// # Errors
    /// [`Error::File`] if the counts cannot be read.
    pub fn line_counts(&self) -> Result<Option<link::Counts>, Error> {
        let path = link::counts_path(&state::directory(&self.state.name));
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::file("reading", &path))?,
        };
        let counts = serde_json::from_slice(&bytes)
            .map_err(|e| Error::file("understanding", &path)(e.into()))?;
        Ok(Some(counts))
    }

    /// Host `a`, 192.0.2.1 and 2001:db8::1.
    ///
    /// # Panics
    /// Never: every lab has it.
    #[must_use]
    pub fn a(&self) -> &NamespaceHost {
        self.host("a").expect("every lab has a host a")
    }

    /// Host `b`, 192.0.2.2 and 2001:db8::2.
    ///
    /// # Panics
    /// Never: every lab has it.
    #[must_use]
    pub fn b(&self) -> &NamespaceHost {
        self.host("b").expect("every lab has a host b")
    }

    /// Host `peer`, 192.0.2.100 and 2001:db8::100.
    ///
    /// # Panics
    /// Never: every lab has it.
    #[must_use]
    pub fn peer(&self) -> &NamespaceHost {
        self.host("peer").expect("every lab has a host peer")
    }

    fn end(&mut self) -> Result<(), Error> {
        let stopped = self.state.keeper.stop();
        // The tie closes with the keeper's standard input, so it must not go before the keeper does.
        let reaped = self
            .keeper
            .take()
            .map_or(Ok(()), |mut keeper| keeper.wait().map(drop));
        let mut left = Vec::new();
        left.extend(
            stopped
                .err()
                .map(|e| format!("keeper {}: {e}", self.state.keeper.pid)),
        );
        left.extend(reaped.err().map(|e| format!("waiting for the keeper: {e}")));
        if let Err(Error::Left { left: more, .. }) = sweep(&self.state.name) {
            left.extend(more);
        }
        leftover(&self.state.name, left)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.tied
            && let Err(error) = self.end()
        {
            eprintln!("{error}");
        }
    }
}

/// Ends the lab of this name, whatever state it is in, and removes all of it; also what a lab left whose keeper was killed.
///
/// # Errors
/// [`Error::Missing`] if there is nothing of that name, [`Error::Left`] with each thing that could not be removed.
pub fn down(name: &str) -> Result<(), Error> {
    options::check_name(name)?;
    let mut left = Vec::new();
    match State::load(name) {
        Ok(state) => left.extend(state.keeper.stop().err().map(|e| format!("keeper: {e}"))),
        Err(Error::Missing(_)) if !state::directory(name).exists() && cgroup::none(name) => {
            return Err(Error::Missing(name.to_owned()));
        }
        Err(Error::Missing(_)) => {}
        Err(other) => return Err(other),
    }
    if let Err(Error::Left { left: more, .. }) = sweep(name) {
        left.extend(more);
    }
    leftover(name, left)
}

/// Removes what a lab whose keeper has ended left: processes that escaped, control groups, its directory.
fn sweep(name: &str) -> Result<(), Error> {
    let mut left = cgroup::remove(name);
    let directory = state::directory(name);
    if directory.exists()
        && let Err(e) = fs::remove_dir_all(&directory)
    {
        left.push(format!("{}: {e}", directory.display()));
    }
    leftover(name, left)
}

fn leftover(name: &str, left: Vec<String>) -> Result<(), Error> {
    if left.is_empty() {
        return Ok(());
    }
    Err(Error::Left {
        name: name.to_owned(),
        left,
    })
}

/// Starts the keeper and waits until it says that all hosts are up.
fn start_keeper(
    helper: &Path,
    directory: &Path,
    spec: &options::Spec,
) -> Result<(Child, Result<State, Error>), Error> {
    let log_path = directory.join("log");
    let log = fs::File::create(&log_path).map_err(Error::file("creating", &log_path))?;
    spec.save()
        .map_err(Error::file("writing", directory.join("spec.json")))?;
    let mut keeper = Command::new(helper)
        .arg0(keeper::PROGRAM)
        .arg(&spec.name)
        .stdin(if spec.tied {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(Error::file("starting", helper))?;
    let mut said = String::new();
    let heard = keeper
        .stdout
        .take()
        .map_or(Ok(0), |stdout| BufReader::new(stdout).read_line(&mut said));
    let state = match heard {
        Ok(_) if said.trim_end() == keeper::READY => State::load(&spec.name),
        other => Err(Error::Up {
            name: spec.name.clone(),
            message: format!(
                "{}{}",
                fs::read_to_string(&log_path).unwrap_or_default().trim_end(),
                other.err().map(|e| format!(" ({e})")).unwrap_or_default()
            ),
        }),
    };
    if state.is_err() {
        keeper.kill().map_err(Error::file("ending", helper))?;
        keeper.wait().map_err(Error::file("waiting for", helper))?;
    }
    Ok((keeper, state))
}

/// Tries until it is true, at most `limit` long.
fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
}
