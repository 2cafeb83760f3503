//! `agent --listen`: the far end of TLS. Each connection of a host that the authority has signed for is a pipe to the resident agent.
use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};
use tracing::{debug, info, warn};

use super::{
    local::{self, Greeting},
    start,
};
use crate::wire::tls;

/// Callers at a time that have not shown yet who they are; the others wait to be taken.
const STRANGERS: usize = 64;

/// Takes connections until it is killed. Moves go on without it: who has lost a connection calls again.
///
/// # Errors
/// The credentials cannot be used, or the address cannot be had.
pub async fn run(address: SocketAddr, credentials: PathBuf) -> Result<()> {
    tls::check_called(&credentials)?;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening at {address}"))?;
    let address = listener.local_addr().context("finding the own address")?;
    println!("netmig-user: listening at {address}");
    info!(%address, "listening for other hosts");
    let credentials: Arc<std::path::Path> = credentials.into();
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    loop {
        // The semaphore is never closed.
        let Ok(stranger) = strangers.clone().acquire_owned().await else {
            return Ok(());
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                warn!("accepting a connection: {e}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let credentials = credentials.clone();
        tokio::spawn(async move {
            let known = tls::accept(stream, &credentials).await;
            drop(stranger);
            let ended = match known {
                Ok(stream) => join(stream).await,
                Err(e) => return warn!(%peer, "not let in: {e:#}"),
            };
            match ended {
                // Whoever has no more to say may just go.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => debug!(%peer, "gone"),
                Err(e) => warn!(%peer, "connection: {e}"),
                Ok(()) => debug!(%peer, "done"),
            }
        });
    }
}

async fn join(mut far: tokio_rustls::server::TlsStream<TcpStream>) -> io::Result<()> {
    let mut agent = start::connect().await.map_err(io::Error::other)?;
    local::write(&mut agent, &Greeting::Wire).await?;
    copy_bidirectional_with_sizes(&mut far, &mut agent, tls::BLOCK, tls::BLOCK).await?;
    Ok(())
}
