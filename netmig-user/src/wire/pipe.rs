//! A byte stream to another agent, however it came about, and the frames on it.
use std::{io, process::Stdio};

use futures_util::{SinkExt, StreamExt};
use netmig_core::{
    frame::{Codec, Error, Frame},
    proto::{Hello, Numbered, ToSource, ToTarget},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy},
    net::UnixStream,
};
use tokio_util::codec::{FramedRead, FramedWrite};

use super::dial::{Carrier, Connection};

/// Bytes that are moved at once.
const BLOCK: usize = 256 << 10;

/// The reading half of a connection.
pub type Reader = Box<dyn AsyncRead + Send + Sync + Unpin>;
/// The writing half of a connection.
pub type Writer = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// Both directions of a connection to another agent.
pub struct Pipe {
    from: FramedRead<Reader, Codec>,
    to: FramedWrite<Writer, Codec>,
}

impl Pipe {
    /// Over the agent's own socket (behind it stands `agent --stdio`).
    pub fn of_stream(stream: UnixStream) -> Self {
        let (from, to) = stream.into_split();
        Self::new(Box::new(from), Box::new(to))
    }

    /// Over a dialled connection, and what carries it: the connection ends when that is dropped.
    pub fn of_connection(connection: Connection) -> (Self, Carrier) {
        (
            Self::new(connection.from, connection.to),
            connection.carrier,
        )
    }

    fn new(from: Reader, to: Writer) -> Self {
        Self {
            from: FramedRead::new(from, Codec::default()),
            to: FramedWrite::new(to, Codec::default()),
        }
    }

    /// Writes one frame.
    ///
    /// # Errors
    /// The connection's, or a frame over its limit.
    pub async fn send(&mut self, frame: Frame) -> Result<(), Error> {
        self.to.send(frame).await
    }

    /// Reads one frame; none at the end of the connection. Nothing is lost when the call is cancelled.
    ///
    /// # Errors
    /// The connection's, or a frame that cannot be believed.
    pub async fn receive(&mut self) -> Result<Option<Frame>, Error> {
        self.from.next().await.transpose()
    }

    /// Reads the Hello that opens a connection.
    ///
    /// # Errors
    /// Anything else comes, or nothing.
    pub async fn hello(&mut self) -> Result<Hello, Error> {
        match self.receive().await? {
            Some(Frame::Hello(hello)) => Ok(*hello),
            Some(other) => Err(Error::Io(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a hello is expected first, {} came", kind(&other)),
            ))),
            None => Err(Error::Io(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the connection ended before a hello",
            ))),
        }
    }

    /// Says that nothing more comes, and waits for the other end to close.
    ///
    /// # Errors
    /// The connection's.
    pub async fn finish(mut self) -> Result<(), Error> {
        SinkExt::<Frame>::close(&mut self.to).await?;
        // A pipe to a process ends when it is dropped: shutting it down does nothing.
        let Self { mut from, to } = self;
        drop(to);
        while from.next().await.transpose()?.is_some() {}
        Ok(())
    }

    /// Gives up framing and moves bytes between this connection and a local one until the other end closes.
    ///
    /// # Errors
    /// Either connection's.
    pub async fn join(self, stream: UnixStream) -> io::Result<()> {
        let (mut from_far, mut to_far) = self.into_raw();
        let (mut from_near, mut to_near) = stream.into_split();
        let up = async move {
            copy(&mut from_near, &mut to_far).await?;
            to_far.shutdown().await?;
            // A pipe to a process ends when it is dropped: shutting it down does nothing.
            drop(to_far);
            io::Result::Ok(())
        };
        let down = async {
            copy(&mut from_far, &mut to_near).await?;
            to_near.shutdown().await
        };
        tokio::pin!(up, down);
        tokio::select! {
            ended = &mut down => ended,
            ended = &mut up => {
                ended?;
                down.await
            }
        }
    }

    /// Gives up framing and lets a command speak on this connection until it ends.
    ///
    /// # Errors
    /// It cannot be started or fails; its own words are in the text.
    pub async fn serve(self, command: &mut tokio::process::Command) -> io::Result<()> {
        let (mut from_far, mut to_far) = self.into_raw();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("its pipes are missing"));
        };
        let feeding = tokio::spawn(async move {
            copy(&mut from_far, &mut stdin).await?;
            stdin.shutdown().await
        });
        let mut said = String::new();
        let (sent, heard) = tokio::join!(
            copy(&mut stdout, &mut to_far),
            stderr.read_to_string(&mut said)
        );
        let status = child.wait().await?;
        feeding.abort();
        sent?;
        heard?;
        to_far.shutdown().await?;
        if status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("{status}: {}", said.trim())))
        }
    }

    /// Gives up framing and sends what a command prints, to its end; then waits for the other end to close. `sent` hears how much went so far.
    ///
    /// # Errors
    /// It cannot be started or fails (its own words are in the text), or the connection breaks.
    pub async fn send_output(
        self,
        command: &mut tokio::process::Command,
        mut sent: impl FnMut(u64),
    ) -> io::Result<()> {
        let (mut from_far, mut to_far) = self.into_raw();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("its pipes are missing"));
        };
        let sending = async {
            let mut block = vec![0; BLOCK];
            let mut total = 0;
            loop {
                let n = stdout.read(&mut block).await?;
                if n == 0 {
                    return to_far.flush().await;
                }
                to_far.write_all(&block[..n]).await?;
                total += n as u64;
                sent(total);
            }
        };
        let mut said = String::new();
        let (ended, heard) = tokio::join!(sending, stderr.read_to_string(&mut said));
        ended?;
        heard?;
        let status = child.wait().await?;
        if !status.success() {
            return Err(io::Error::other(format!("{status}: {}", said.trim())));
        }
        to_far.shutdown().await?;
        // A pipe to a process ends when it is dropped: shutting it down does nothing.
        drop(to_far);
        copy(&mut from_far, &mut tokio::io::sink()).await?;
        Ok(())
    }

    /// Gives up framing: what has been read already stands at the front of the reading half.
    pub fn into_raw(self) -> (Reader, Writer) {
        let read = io::Cursor::new(self.from.read_buffer().clone().freeze());
        let from = AsyncReadExt::chain(read, self.from.into_inner());
        (Box::new(from), self.to.into_inner())
    }
}

/// Messages that stand in a frame of their own kind.
pub trait Spoken: Sized {
    /// As a frame.
    fn frame(message: Numbered<Self>) -> Frame;

    /// From a frame.
    ///
    /// # Errors
    /// The frame is of another kind.
    fn spoken(frame: Frame) -> Result<Numbered<Self>, String>;
}

impl Spoken for ToTarget {
    fn frame(message: Numbered<Self>) -> Frame {
        Frame::ToTarget(Box::new(message))
    }

    fn spoken(frame: Frame) -> Result<Numbered<Self>, String> {
        match frame {
            Frame::ToTarget(message) => Ok(*message),
            other => Err(format!(
                "{} came on the control connection to the target",
                kind(&other)
            )),
        }
    }
}

impl Spoken for ToSource {
    fn frame(message: Numbered<Self>) -> Frame {
        Frame::ToSource(Box::new(message))
    }

    fn spoken(frame: Frame) -> Result<Numbered<Self>, String> {
        match frame {
            Frame::ToSource(message) => Ok(*message),
            other => Err(format!(
                "{} came on the control connection to the source",
                kind(&other)
            )),
        }
    }
}

fn kind(frame: &Frame) -> &'static str {
    match frame {
        Frame::Hello(_) => "a hello",
        Frame::ToTarget(_) => "a message to a target",
        Frame::ToSource(_) => "a message to a source",
        Frame::FileBegin(_)
        | Frame::Chunk(_)
        | Frame::FileEnd(_)
        | Frame::FileGot(_)
        | Frame::Pages(_)
        | Frame::PageRefs(_) => "a frame of the bulk connection",
        Frame::HoldBegin(_) | Frame::Held(_) | Frame::HoldMark(_) | Frame::HoldDone(_) => {
            "a frame of the connection for held packets"
        }
    }
}
