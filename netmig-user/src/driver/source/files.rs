//! What travels beside the image: files by rsync, and the connection for images.
use std::{collections::BTreeMap, process::Stdio, sync::atomic::Ordering, thread, time::Instant};

use anyhow::{Context, Result, bail};
use netmig_core::{machine::source::Done, proto::Channel, socket};
use tokio::{net::UnixStream, sync::mpsc};
use tracing::warn;

use super::{
    super::{bulk, random},
    steps::{GLANCE, Steps},
};
use crate::{
    agent::{local::Told, pace::Pace, paths},
    engine::{memory, task},
    files::{self, Moment, Pass},
    wire::pipe::Pipe,
};

/// Less than so many new bytes of memory are not worth another round: they go over in a few ms.
const ENOUGH: u64 = 4 << 20;

impl Steps {
    /// Copies the files, once, and the memory that the target does not have, while everything runs.
    pub fn precopy(&self, round: u32) -> Result<Done> {
        if self.state().images.is_none() {
            self.state().pace = Some(Pace::behind());
            self.copy_files(false)?;
            self.open_bulk()?;
            self.open_hold();
        }
        let begun = Instant::now();
        let (new, queued) = self.copy_memory()?;
        let took = begun.elapsed();
        self.round_sent(new.saturating_sub(queued), took);
        let mut state = self.state();
        state.left_bytes = new + queued;
        let last = state.round.replace(new);
        // A round that finds nearly as much as the one before races with the container and does not win.
        let shrinks = last.is_none_or(|last| new < last / 4 * 3);
        drop(state);
        Ok(Done::Round {
            round,
            more: new > ENOUGH && shrinks,
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            blackout_ms: self.blackout_ms(),
        })
    }

    /// Sends the pages that the target does not have yet. How many bytes that were, and how many of all still wait for the connection.
    fn copy_memory(&self) -> Result<(u64, u64)> {
        let container = self.container()?;
        if container.manager.engine() == socket::Engine::Handoff {
            // What such a program has in memory is its own matter until it saves itself.
            return Ok((0, 0));
        }
        let mut images = self
            .state()
            .images
            .take()
            .context("the connection for images has not been opened")?;
        let before = images.sent();
        for pid in task::tasks(container.init_pid)? {
            memory::pages(pid, &self.over, &mut |pages| images.offer(pages))
                .with_context(|| format!("reading the memory of process {pid}"))?;
            self.feed.tell(Told::Bytes {
                sent: images.sent(),
                total: None,
            });
        }
        images.flush()?;
        let new = images.sent() - before;
        let queued = images.queued().min(images.sent());
        self.state().images = Some(images);
        Ok((new, queued))
    }

    /// The connection for images, opened while there is time.
    pub(super) fn open_bulk(&self) -> Result<()> {
        let kit = self
            .state()
            .kit
            .clone()
            .context("the engine has not been made ready")?;
        let ahead = bulk::ahead(self.state().memory_bytes);
        let (frames, mut queue) = mpsc::channel(64);
        let connection = self.dialer.dial_bulk()?;
        let hello = self.hello(Channel::Bulk);
        self.handle.spawn(async move {
            let (mut pipe, carrier) = Pipe::of_connection(connection);
            let sent = async {
                pipe.send(netmig_core::frame::Frame::Hello(Box::new(hello)))
                    .await?;
                while let Some(frame) = queue.recv().await {
                    pipe.send(frame).await?;
                }
                // The other end closes when it has read everything.
                pipe.finish().await
            };
            if let Err(e) = sent.await {
                warn!("connection for images: {}", carrier.explain(e));
            }
        });
        self.state().images = Some(bulk::Sender::new(kit.images(), frames, random()?, ahead));
        Ok(())
    }

    /// Copies every tree that travels.
    pub(super) fn copy_files(&self, frozen: bool) -> Result<()> {
        let container = self.container()?;
        let places = files::sources(&container);
        if places.is_empty() {
            return Ok(());
        }
        let exe = paths::program().context("finding this program")?;
        let transport = format!("{} rsh {}", exe.display(), self.id);
        let mut mapped = if frozen {
            files::mapped(&container, &task::tasks(container.init_pid)?)?
        } else {
            BTreeMap::new()
        };
        for place in places {
            if self.over.load(Ordering::SeqCst) {
                bail!("the move is being given up");
            }
            if !frozen {
                let moment = Moment::now();
                if self.copy(&place, Pass::Precopy, &transport)? {
                    self.state().copied.insert(place.tree, moment);
                }
                continue;
            }
            let moment = self.state().copied.get(&place.tree).copied();
            let changed = match moment {
                Some(moment) => moment
                    .changed(&place.path)
                    .with_context(|| format!("looking for changes in {}", place.path.display()))?,
                None => true,
            };
            if changed {
                self.copy(&place, Pass::Final, &transport)?;
            }
            if let Some(paths) = mapped.remove(&place.tree) {
                self.copy(&place, Pass::Mapped(paths), &transport)?;
            }
        }
        Ok(())
    }

    /// Copies one tree. True if nothing was left out.
    fn copy(&self, place: &files::Place, pass: Pass, transport: &str) -> Result<bool> {
        let mut command = files::copy_command(place, &pass, transport).std();
        let mut rsync = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting rsync")?;
        // Its output is a few lines of statistics: it fits into the pipes.
        while rsync.try_wait().context("waiting for rsync")?.is_none() {
            if self.over.load(Ordering::SeqCst) {
                rsync.kill().context("ending rsync")?;
            }
            thread::sleep(GLANCE);
        }
        let done = rsync
            .wait_with_output()
            .context("reading what rsync says")?;
        if !done
            .status
            .code()
            .is_some_and(|code| files::acceptable(&pass, code))
        {
            bail!(
                "rsync of {} ({}) ended with {}: {}",
                place.tree.name(),
                place.path.display(),
                done.status,
                String::from_utf8_lossy(&done.stderr).trim()
            );
        }
        self.state().file_bytes += sent(&String::from_utf8_lossy(&done.stdout));
        Ok(done.status.success())
    }

    /// Joins an rsync of ours to one at the target, on a connection of its own.
    pub fn join_rsync(&self, stream: UnixStream, args: Vec<String>) {
        let hello = self.hello(Channel::Rsync { args });
        let connection = match self.dialer.dial() {
            Ok(connection) => connection,
            // rsync sees its connection closed and says so.
            Err(e) => return warn!("{e}"),
        };
        self.handle.spawn(async move {
            let (mut pipe, carrier) = Pipe::of_connection(connection);
            let joined = async {
                pipe.send(netmig_core::frame::Frame::Hello(Box::new(hello)))
                    .await
                    .map_err(std::io::Error::other)?;
                pipe.join(stream).await
            };
            if let Err(e) = joined.await {
                warn!("rsync's connection: {}", carrier.explain(e));
            }
        });
    }
}

/// `Total bytes sent` of rsync's --stats.
pub(super) fn sent(stats: &str) -> u64 {
    stats
        .lines()
        .find_map(|line| line.strip_prefix("Total bytes sent: ")?.trim().parse().ok())
        .unwrap_or(0)
}
