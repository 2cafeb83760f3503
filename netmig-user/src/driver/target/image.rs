//! The container's image, where this host has not got it: it comes before the record can be made.
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use netmig_core::container::{Container, Recipe};

use super::steps::{Steps, WATCH};
use crate::{runtime::podman::image, wire::pipe::Pipe};

impl Steps {
    /// Keeps the connection for the step that waits for it.
    pub fn receive_image(&self, pipe: Pipe) {
        self.state().image = Some(pipe);
    }

    /// Takes the image in, if the answer was that it is not here. Once it may be there it is known to be this move's, for a discard.
    pub(super) fn await_image(&self, container: &Container) -> Result<()> {
        let Recipe::Podman {
            image_id,
            image_name,
            ..
        } = &container.recipe
        else {
            return Ok(());
        };
        if !self.state().lacks_image {
            return Ok(());
        }
        // A source that does not send it says why, and the move is over then.
        let pipe = loop {
            let pipe = self.state().image.take();
            if let Some(pipe) = pipe {
                break pipe;
            }
            if self.over.load(Ordering::SeqCst) {
                bail!("the move is being given up");
            }
            std::thread::sleep(WATCH);
        };
        if image::local_name(image_id, image_name)?.is_none() {
            self.state().made.image = Some(image_id.clone());
            self.remember();
        }
        let mut load = image::load().std().into();
        self.handle
            .block_on(async {
                tokio::select! {
                    ended = pipe.serve(&mut load) => Ok(ended?),
                    () = self.until_over() => bail!("the move is being given up"),
                }
            })
            .with_context(|| format!("podman image load of {image_name}"))?;
        Ok(image::received(image_id, image_name)?)
    }

    async fn until_over(&self) {
        while !self.over.load(Ordering::SeqCst) {
            tokio::time::sleep(WATCH).await;
        }
    }
}
