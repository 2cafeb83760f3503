//! How fast a link is, measured while a plan is made: a few bytes there and back, then a short burst.
use std::{
    io,
    time::{Duration, Instant},
};

use netmig_core::{
    plan::Rate,
    proto::{BURST_BLOCK, BURST_BLOCKS, PINGS},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::pipe::{Pipe, Reader, Writer};

/// The burst goes on for so long, from its first answer.
const BURST: Duration = Duration::from_millis(200);
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The dialler's end.
///
/// # Errors
/// The connection breaks, or the other end is silent.
pub async fn measure(pipe: Pipe) -> io::Result<Rate> {
    let (mut from, mut to) = pipe.into_raw();
    let mut rtt = Duration::MAX;
    for _ in 0..PINGS {
        let begun = Instant::now();
        to.write_all(&[0]).await?;
        to.flush().await?;
        answer(&mut from, PATIENCE).await?;
        rtt = rtt.min(begun.elapsed());
    }
    let begun = Instant::now();
    tokio::select! {
        // It ends first only with an error: the reader waits for the answer to the last block.
        sent = send(&mut to) => Err(sent?),
        counted = count(&mut from) => {
            let (blocks, last) = counted?;
            // The last answer says that so much had arrived half a round trip before; the first byte took the other half.
            let took = last.duration_since(begun).saturating_sub(rtt).max(Duration::from_micros(100));
            Ok(Rate {
                bytes_per_s: (blocks * BURST_BLOCK) as f64 / took.as_secs_f64(),
                rtt_ms: rtt.as_secs_f64() * 1e3,
            })
        }
    }
}

/// The burst. Returns with an error only.
async fn send(to: &mut Writer) -> io::Result<io::Error> {
    let block = vec![0; BURST_BLOCK];
    for _ in 0..BURST_BLOCKS {
        to.write_all(&block).await?;
    }
    to.flush().await?;
    std::future::pending().await
}

/// How many blocks were answered, and when the last of them was.
async fn count(from: &mut Reader) -> io::Result<(usize, Instant)> {
    answer(from, PATIENCE).await?;
    let (mut blocks, mut last) = (1, Instant::now());
    let until = last + BURST;
    while blocks < BURST_BLOCKS {
        match answer(from, until.saturating_duration_since(Instant::now())).await {
            Ok(()) => (blocks, last) = (blocks + 1, Instant::now()),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => break,
            Err(e) => return Err(e),
        }
    }
    Ok((blocks, last))
}

async fn answer(from: &mut Reader, limit: Duration) -> io::Result<()> {
    match timeout(limit, from.read_u8()).await {
        Ok(byte) => byte.map(drop),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {limit:?}"),
        )),
    }
}

/// The other end: answers as long as there is something to answer.
///
/// # Errors
/// The connection breaks. That the dialler has seen enough and hangs up is none.
pub async fn reflect(pipe: Pipe) -> io::Result<()> {
    let (mut from, mut to) = pipe.into_raw();
    let mut block = vec![0; BURST_BLOCK];
    let sizes = [1].repeat(PINGS).into_iter();
    for size in sizes.chain([BURST_BLOCK].repeat(BURST_BLOCKS)) {
        let answered = async {
            from.read_exact(&mut block[..size]).await?;
            to.write_all(&[0]).await?;
            to.flush().await
        };
        match answered.await {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe
                ) =>
            {
                return Ok(());
            }
            ended => ended?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_fast_link_is_measured_with_a_whole_burst() -> Result<()> {
        let (here, there) = UnixStream::pair()?;
        let far = tokio::spawn(reflect(Pipe::of_stream(there)));
        let rate = measure(Pipe::of_stream(here)).await?;
        // 4 MiB over a socket of this host.
        assert!(rate.bytes_per_s > 20e6, "{rate:?}");
        assert!(rate.rtt_ms < 50.0, "{rate:?}");
        far.await??;
        Ok(())
    }

    #[tokio::test]
    async fn a_slow_link_is_measured_in_a_short_time() -> Result<()> {
        let (here, near) = UnixStream::pair()?;
        let (far, there) = UnixStream::pair()?;
        // 32 KiB every 5 ms.
        tokio::spawn(async move {
            let (mut from, mut back_to) = near.into_split();
            let (mut back_from, mut to) = far.into_split();
            let back =
                tokio::spawn(async move { tokio::io::copy(&mut back_from, &mut back_to).await });
            let mut piece = vec![0; 32 << 10];
            loop {
                let n = from.read(&mut piece).await?;
                if n == 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
                to.write_all(&piece[..n]).await?;
            }
            back.abort();
            io::Result::Ok(())
        });
        tokio::spawn(reflect(Pipe::of_stream(there)));
        let begun = Instant::now();
        let rate = measure(Pipe::of_stream(here)).await?;
        assert!((1e6..10e6).contains(&rate.bytes_per_s), "{rate:?}");
        assert!(rate.rtt_ms >= 5.0, "{rate:?}");
        assert!(begun.elapsed() < Duration::from_secs(1));
        Ok(())
    }

    #[tokio::test]
    async fn a_silent_end_is_an_error() -> Result<()> {
        let (here, there) = UnixStream::pair()?;
        drop(there);
        assert!(measure(Pipe::of_stream(here)).await.is_err());
        Ok(())
    }
}
