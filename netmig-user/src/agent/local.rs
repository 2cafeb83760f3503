//! What is said on the agent's own socket: postcard bodies behind a 32-bit big-endian length.
use std::{io, path::PathBuf};

use netmig_core::{
    container::Manager, id::MoveId, machine::source::Phase, proto::Attach, service::Asked,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::engine::criu::hook::{HookCall, NetavarkCall};

/// Longest body accepted, in bytes.
const LIMIT: usize = 64 << 20;

/// First words of every connection.
#[derive(Debug, Serialize, Deserialize)]
pub enum Greeting {
    /// Begin a move and follow it. Answered by [`Told`]s.
    Migrate(Box<MoveSpec>),
    /// Follow a move that is under way or has ended.
    Attach(MoveId),
    /// All moves that this host knows; answered by one `Vec<Known>`.
    List,
    /// Look and ask, as the first step of a move does; nothing is changed. Answered by [`Told`]s.
    Plan(Box<MoveSpec>),
    /// The operator decides a waiting move; answered by one `Result<String, String>`.
    Recover(MoveId, Decision),
    /// A hook of CRIU; answered by one `HookReply`.
    Hook(MoveId, HookCall),
    /// podman calls netavark; answered by one `NetavarkReply`.
    Netavark(MoveId, NetavarkCall),
    /// rsync's remote shell: what follows are rsync's own bytes.
    Rsync(MoveId, Vec<String>),
    /// Another host's agent; what follows are the frames between agents.
    Wire,
}

/// What a client can say while it follows a move.
#[derive(Debug, Serialize, Deserialize)]
pub enum Say {
    /// Give it up if that is still possible.
    Cancel,
}

/// What the operator decides about a move that waits for a word which will not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Source: take the container back; the target is fenced.
    TakeBack,
    /// Target: release it here; the source is fenced.
    Release,
    /// Target: give up what was prepared here.
    GiveUp,
}

/// Which connections settle before the freeze, and in which direction: their senders are told to stop, and what is in flight arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Drain {
    /// None.
    Off,
    /// Those in which the container sends bulk.
    Out,
    /// All, in both directions.
    Both,
    /// Those with bulk, in its direction: a drained request would be a longer pause. Where peers are answered in the blackout, only those in
    /// which the container sends.
    #[default]
    Auto,
}

/// A move as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveSpec {
    /// The container's manager.
    pub manager: Manager,
    /// The container's name or id.
    pub name: String,
    /// [`Destination`](crate::wire::destination::Destination).
    pub to: String,
    /// How netmig-user is called at the target, split into words (`sudo netmig-user`).
    pub remote_command: Vec<String>,
    /// `DST=copy|shared|refuse` for bind mounts.
    pub mounts: Vec<(PathBuf, netmig_core::container::MountFate)>,
    /// Addresses of this host by which peers know the container, and that go along.
    #[serde(default)]
    pub services: Vec<Asked>,
    /// Objections that the operator waives, by their key.
    pub allow: Vec<String>,
    /// For the container's physical devices those of the target that take their place.
    pub map_links: Vec<Attach>,
    /// Which connections settle before the freeze.
    pub drain: Drain,
    /// Longest drain in ms; 0: none.
    pub drain_limit_ms: u64,
    /// Congestion windows begin anew at the target.
    #[serde(default)]
    pub cold: bool,
    /// Longest blackout accepted, in ms.
    pub max_blackout_ms: Option<u64>,
    /// The gate's lease in ms.
    pub lease_ms: u64,
    /// Bytes of packets held at most during the blackout; 0: none.
    pub hold_limit: u64,
    /// How long packets that come to the target wait, after its opening, for those that still come to the source; in ms.
    pub barrier_limit_ms: u64,
    /// Remove the container at the source after the move, instead of keeping its record.
    pub remove_source: bool,
    /// Stop after the plan.
    pub dry_run: bool,
    /// What ssh needs of the operator's environment (HOME, SSH_AUTH_SOCK, ...).
    pub env: Vec<(String, String)>,
    /// Where this host's credentials for TLS are.
    pub credentials: PathBuf,
}

/// What a client is told about a move.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Told {
    /// Its id.
    Begun(MoveId),
    /// A phase began.
    Phase(Phase),
    /// Bytes sent so far in this phase, and how many are expected if known.
    Bytes {
        /// Sent.
        sent: u64,
        /// Expected.
        total: Option<u64>,
    },
    /// Something worth a line.
    Note(String),
    /// The plan, as JSON (`netmig.plan/1`).
    Plan(String),
    /// The end: the report as JSON (`netmig.report/1`).
    Ended(String),
    /// There is no such move, or it cannot begin.
    Error(String),
}

/// One line of `recover --list`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Known {
    /// Move id.
    pub id: String,
    /// `source` or `target`.
    pub side: String,
    /// Container name.
    pub container: String,
    /// Where it stands, in words.
    pub state: String,
}

/// Writes one body.
///
/// # Errors
/// The connection's; `InvalidData` if the body is over the limit.
pub async fn write<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), body: &T) -> io::Result<()> {
    let bytes = postcard::to_stdvec(body).map_err(io::Error::other)?;
    if bytes.len() > LIMIT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "a body of {} bytes is over the limit of {LIMIT}",
                bytes.len()
            ),
        ));
    }
    let mut framed = (bytes.len() as u32).to_be_bytes().to_vec();
    framed.extend(bytes);
    to.write_all(&framed).await
}

/// Reads one body; `None` at a clean end.
///
/// # Errors
/// The connection's; `InvalidData` for a length over the limit or a body of another shape.
pub async fn read<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    if let Err(e) = from.read_exact(&mut length).await {
        return if e.kind() == io::ErrorKind::UnexpectedEof {
            Ok(None)
        } else {
            Err(e)
        };
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > LIMIT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a body of {length} bytes is over the limit of {LIMIT}"),
        ));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    postcard::from_bytes(&bytes)
        .map(Some)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}
