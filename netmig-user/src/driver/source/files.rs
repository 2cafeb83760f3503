//! What travels beside the image: files by rsync, and the connection for images.
use std::{collections::BTreeMap, process::Stdio, sync::atomic::Ordering, thread};

use anyhow::{Context, Result, bail};
use netmig_core::{machine::source::Done, proto::Channel};
use tokio::{net::UnixStream, sync::mpsc};
use tracing::warn;

use super::{
    super::bulk,
    steps::{GLANCE, Steps},
};
use crate::{
    agent::paths,
    engine::task,
    files::{self, Pass},
    wire::pipe::Pipe,
};

impl Steps {
    /// Copies the files while everything runs.
    pub fn precopy(&self, round: u32) -> Result<Done> {
        self.copy_files(false)?;
        self.open_bulk()?;
        Ok(Done::Round(round))
    }

    /// The connection for images, opened while there is time.
    pub(super) fn open_bulk(&self) -> Result<()> {
        let kit = self
            .state()
            .kit
            .clone()
            .context("the engine has not been made ready")?;
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
                warn!(
                    "connection for images: {e}; ssh says: {}",
                    carrier.complaints()
                );
            }
        });
        self.state().images = Some(bulk::Sender::new(kit.images(), frames));
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
            self.copy(
                &place,
                if frozen { Pass::Final } else { Pass::Precopy },
                &transport,
            )?;
            if let Some(paths) = mapped.remove(&place.tree) {
                self.copy(&place, Pass::Mapped(paths), &transport)?;
            }
        }
        Ok(())
    }

    pub(super) fn copy(&self, place: &files::Place, pass: Pass, transport: &str) -> Result<()> {
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
        Ok(())
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
                warn!(
                    "rsync's connection: {e}; ssh says: {}",
                    carrier.complaints()
                );
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
