//! What arrives: images, files, sockets.
use std::{io::Write, os::unix::fs::OpenOptionsExt, time::Duration};

use anyhow::{Context, Result, bail};
use netmig_core::proto::ToTarget;
use tracing::warn;

use super::{
    super::bulk::{self, Receiver},
    steps::Steps,
};
use crate::{
    agent::{pace::Pace, paths},
    files,
    wire::pipe::Pipe,
};

/// Longest wait for images that the source says it has sent.
pub(super) const IMAGES: Duration = Duration::from_secs(120);

impl Steps {
    /// Writes the images that arrive on this connection.
    pub fn receive(&self, mut pipe: Pipe) {
        let (id, arrived) = (self.id, self.arrived.clone());
        let (images, ahead) = {
            let mut state = self.state();
            state.pace.get_or_insert_with(Pace::behind);
            let memory = state.question.as_ref().map_or(0, |q| q.memory_bytes);
            (
                state.kit.as_ref().map(|kit| kit.images().to_owned()),
                bulk::ahead(memory),
            )
        };
        self.handle.spawn(async move {
            let took = async {
                let mut receiver = Receiver::new(
                    &images.context("images came before the move was prepared")?,
                    ahead,
                )?;
                while let Some(frame) = pipe.receive().await? {
                    tokio::task::block_in_place(|| receiver.take(frame, &arrived))?;
                }
                anyhow::Ok(())
            };
            match took.await {
                Ok(()) => arrived.broken("the source closed it".to_owned()),
                Err(e) => {
                    warn!(mv = %id, "images: {e:#}");
                    arrived.broken(format!("{e:#}"));
                }
            }
        });
    }

    /// Runs the server that the source's rsync asks for, on a tree of this move and nothing else.
    pub fn rsync(&self, args: Vec<String>, pipe: Pipe) {
        let created = self.state().made.container.clone();
        let id = self.id;
        self.handle.spawn(async move {
            let served = async {
                let created =
                    created.context("rsync came before the container's record was made")?;
                let command = files::server_command(&args, &created)?;
                pipe.serve(&mut command.std().into())
                    .await
                    .context("rsync at the target")
            };
            if let Err(e) = served.await {
                warn!(mv = %id, "{e:#}");
            }
        });
    }

    /// Keeps a part of the image for the rebuild.
    pub fn store(&self, message: ToTarget) -> Result<()> {
        match message {
            ToTarget::Sockets(sockets) => {
                // For an agent that takes the move up after this one.
                let path = paths::run(self.id).join("sockets");
                let bytes = postcard::to_stdvec(&sockets).context("encoding the sockets")?;
                let mut file = std::fs::OpenOptions::new()
                    .create(true)
                    .truncate(true)
                    .write(true)
                    .mode(0o600)
                    .open(&path)
                    .with_context(|| format!("making {}", path.display()))?;
                file.write_all(&bytes)
                    .with_context(|| format!("writing {}", path.display()))?;
                self.state().sockets = Some(*sockets);
            }
            ToTarget::Remembered(remembered) => self.remember_traffic(*remembered),
            other => bail!("{other:?} is nothing to keep"),
        }
        Ok(())
    }

    /// Waits until all images are here.
    pub fn await_files(&self, files: u64, bytes: u64) -> Result<()> {
        self.arrived.wait(files, bytes, IMAGES)
    }
}
