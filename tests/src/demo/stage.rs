//! A lab with the demo's container on host `a`, holding its data, and its clients' program in `peer`.
use std::{path::PathBuf, thread, time::Duration};

use super::{CONTAINER, Error, Image};
use crate::{
    Bind, Cmd, Host, Lab, Options, demo,
    lab::link::Line,
    peers::{Outcome, dataset, redis},
    workload::{Client, Running},
};

/// Where `netmig-peer` lies in the hosts.
const PEER_PROGRAM: &str = "/usr/bin/netmig-peer";
/// How long the clients may take until each of them has worked.
const WARM_LIMIT: Duration = Duration::from_secs(60);
/// How long they may take to end: longer than their own patience with a connection.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long the container's processes may take to answer.
const START_LIMIT: Duration = Duration::from_secs(30);

/// What a stage is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The lab's name.
    pub lab: String,
    /// The test root.
    pub root: PathBuf,
    /// The program `netmig-user`, as `/usr/bin/netmig-user` in the hosts; none where only the usual way is shown.
    pub netmig_user: Option<PathBuf>,
    /// The program `netmig-peer`.
    pub netmig_peer: PathBuf,
    /// Where images are cached.
    pub cache: PathBuf,
    /// How much redis holds, bytes.
    pub data: u64,
    /// Between the clients and the hosts; none: a cable.
    pub line: Option<Line>,
    /// The lab stays up when the stage is dropped, with all that is in it.
    pub keep: bool,
}

/// A lab with the container running. It goes down when dropped.
#[derive(Debug)]
pub struct Stage {
    lab: Lab,
    data: u64,
}

impl Stage {
    /// Brings up the lab, gives the hosts what they need, starts the container on `a` and fills its redis.
    ///
    /// # Errors
    /// Whatever of this failed.
    pub fn up(parts: &Parts) -> Result<Self, Error> {
        let image = Image::build(&parts.root, &parts.netmig_peer, &parts.cache)?;
        let program = Bind {
            source: parts.netmig_peer.clone(),
            target: PathBuf::from(PEER_PROGRAM),
            read_only: true,
        };
        let options = Options {
            root: Some(parts.root.clone()),
            binary: parts.netmig_user.clone(),
            binds: vec![program],
            keep: parts.keep,
            line: parts.line,
            ..Options::default()
        };
        let lab = Lab::up(&parts.lab, &options)?;
        thread::scope(|scope| {
            let preparing = [lab.a(), lab.b()].map(|host| {
                let image = &image;
                scope.spawn(move || image.load(host))
            });
            for host in preparing {
                host.join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok::<_, Error>(())
        })?;
        demo::start(lab.a(), &image)?;
        let stage = Self {
            lab,
            data: parts.data,
        };
        stage.wait_until_up()?;
        stage.peer(&[
            "populate",
            "--to",
            &demo::redis(false).to_string(),
            "--bytes",
            &parts.data.to_string(),
        ])?;
        Ok(stage)
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Starts clients in `peer` and waits until they are warm.
    ///
    /// # Errors
    /// A client does not become warm.
    pub fn load(&self, clients: &[Client]) -> Result<Running, Error> {
        let running = Running::start(self.lab.peer(), PEER_PROGRAM, clients)?;
        running.wait_warm(WARM_LIMIT)?;
        Ok(running)
    }

    /// Stops them and collects what they saw.
    ///
    /// # Errors
    /// A client tells nothing.
    pub fn unload(&self, running: Running) -> Result<Vec<Outcome>, Error> {
        running.stop(STOP_LIMIT)
    }

    /// How many keys redis has, those of running clients included.
    ///
    /// # Errors
    /// Redis does not answer.
    pub fn keys(&self) -> Result<u64, Error> {
        let text = self.peer(&[
            "state",
            "--to",
            &demo::redis(false).to_string(),
            "--bytes",
            "0",
        ])?;
        Ok(parse::<dataset::State>("data", &text)?.keys)
    }

    /// What redis holds, read back in `peer`.
    ///
    /// # Errors
    /// Redis does not answer, or lost a value.
    pub fn data(&self) -> Result<dataset::State, Error> {
        let text = self.peer(&[
            "state",
            "--to",
            &demo::redis(false).to_string(),
            "--bytes",
            &self.data.to_string(),
        ])?;
        parse("data", &text)
    }

    /// What the container's own client saw so far.
    ///
    /// # Errors
    /// Redis does not answer.
    pub fn loopback(&self) -> Result<Outcome, Error> {
        let text = self.peer(&[
            "ask",
            "--to",
            &demo::redis(false).to_string(),
            "--key",
            redis::LOOPBACK_STATUS,
        ])?;
        parse("loopback", &text)
    }

    /// The established connections of `peer` with the container, as `local remote`, sorted.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn connections(&self) -> Result<Vec<String>, Error> {
        let filter = format!("dst {} or dst [{}]", demo::IPV4, demo::IPV6);
        let table = self
            .lab
            .peer()
            .run(&["ss", "-Htn", "state", "established", &filter])?;
        let ends = |line: &str| {
            let mut words = line.split_whitespace().skip(2);
            Some(format!("{} {}", words.next()?, words.next()?))
        };
        let mut all: Vec<_> = table.lines().filter_map(ends).collect();
        all.sort();
        Ok(all)
    }

    /// Which of `a` and `b` has the container running.
    ///
    /// # Errors
    /// A host does not answer.
    pub fn living_on(&self) -> Result<Vec<String>, Error> {
        let mut living = Vec::new();
        for host in [self.lab.a(), self.lab.b()] {
            if demo::state(host)?.as_deref() == Some("running") {
                living.push(host.name().to_owned());
            }
        }
        Ok(living)
    }

    /// Ends the lab.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn down(self) -> Result<(), Error> {
        Ok(self.lab.down()?)
    }

    fn wait_until_up(&self) -> Result<(), Error> {
        let asked = self.lab.peer().wait_for(
            &format!(
                "{PEER_PROGRAM} ask --to {} >/dev/null 2>&1",
                demo::redis(false)
            ),
            START_LIMIT,
        );
        if let Err(error) = asked {
            let host = self.lab.a();
            let state = demo::state(host)?.unwrap_or_else(|| "gone".to_owned());
            let said = format!(
                "{error}\n{CONTAINER} on {} is {state}: {}",
                host.name(),
                demo::logs(host)?
            );
            return Err(Error::Client {
                name: CONTAINER.to_owned(),
                said,
            });
        }
        Ok(())
    }

    /// Runs `netmig-peer` in `peer` to its end.
    fn peer(&self, args: &[&str]) -> Result<String, Error> {
        Ok(self
            .lab
            .peer()
            .run_cmd(&Cmd::new([PEER_PROGRAM]).args(args.iter().copied()))?)
    }
}

fn parse<T: serde::de::DeserializeOwned>(name: &str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|e| Error::Client {
        name: name.to_owned(),
        said: format!("`{text}`: {e}"),
    })
}
