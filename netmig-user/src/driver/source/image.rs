//! The container's image, for a target that lacks it.
use std::{sync::atomic::Ordering, time::Duration};

use anyhow::{Context, Result, bail};
use netmig_core::{container::Recipe, frame::Frame, proto::Channel};

use super::steps::Steps;
use crate::{agent::local::Told, runtime::podman::image, wire::pipe::Pipe};

/// Between two looks whether the move is over.
const WATCH: Duration = Duration::from_millis(20);

impl Steps {
    /// Sends it on a connection of its own, and returns when the target has taken it in.
    pub async fn send_image(&self) -> Result<()> {
        let container = self.container()?;
        let Recipe::Podman {
            image_id,
            image_name,
            ..
        } = &container.recipe
        else {
            bail!("the target asks for an image, and this container has none");
        };
        let total = self.state().image_total;
        self.feed.tell(Told::Note(format!(
            "sending the image {image_name}, which the target has not got"
        )));
        let (mut pipe, carrier) = Pipe::of_connection(self.dialer.dial()?);
        pipe.send(Frame::Hello(Box::new(self.hello(Channel::Image))))
            .await
            .with_context(|| carrier.explain("connection for the image"))?;
        let mut command = image::save(image_id).std().into();
        let mut all = 0;
        let sending = pipe.send_output(&mut command, |sent| {
            all = sent;
            self.feed.tell(Told::Bytes {
                sent,
                total: Some(total),
            });
        });
        tokio::select! {
            ended = sending => ended.with_context(|| {
                carrier.explain(format_args!("podman image save of {image_name}"))
            })?,
            () = self.until_over() => bail!("the move is being given up"),
        }
        self.state().file_bytes += all;
        Ok(())
    }

    async fn until_over(&self) {
        while !self.over.load(Ordering::SeqCst) {
            tokio::time::sleep(WATCH).await;
        }
    }
}
