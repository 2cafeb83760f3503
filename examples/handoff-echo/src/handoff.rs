//! A program's end of netmig's handoff protocol (docs/handoff.md). Nothing here is about echoes.
use std::{
    collections::BTreeMap,
    env,
    io::{self, IoSlice, IoSliceMut, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

const MESSAGE: u16 = 1;
const STATE: u16 = 2;
const DESCRIPTORS: u16 = 3;
const CHUNK: usize = 256 << 10;
const BATCH: usize = 253;
const AGAIN: Duration = Duration::from_secs(1);

/// What a program says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct Introduction {
    /// Its name.
    pub name: String,
    /// Version of its state.
    pub version: String,
    /// How it is started at a target.
    pub command: Vec<String>,
}

/// What netmig says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// Stop and hand over, for this move.
    Save(String),
    /// Go on: the move is off.
    Resume,
    /// Exit.
    Leave,
    /// Go on: it lives here now.
    Go,
}

/// A state to load.
#[derive(Debug)]
pub struct Loading {
    /// Version of the program that saved it.
    pub version: String,
    /// Its bytes.
    pub state: Vec<u8>,
    /// Sockets by the labels that they were handed over with.
    pub sockets: Vec<(u32, OwnedFd)>,
}

impl Loading {
    /// The state, if a program of this `version` has saved it as JSON, and its sockets.
    ///
    /// # Errors
    /// It is another version's, or not what was saved.
    pub fn open<T: DeserializeOwned>(self, version: &str) -> Result<(T, Handed)> {
        if self.version != version {
            bail!(
                "the state is of version {:?}, this program of {version:?}",
                self.version
            );
        }
        let saved = serde_json::from_slice(&self.state).context("reading the state")?;
        Ok((saved, Handed(self.sockets.into_iter().collect())))
    }
}

/// Sockets that were handed over.
#[derive(Debug)]
pub struct Handed(BTreeMap<u32, OwnedFd>);

impl Handed {
    /// The one with this label.
    ///
    /// # Errors
    /// There is none, or no longer.
    pub fn take(&mut self, label: u32) -> Result<OwnedFd> {
        self.0
            .remove(&label)
            .with_context(|| format!("socket {label} is missing"))
    }
}

/// A socket to hand over, with a label that comes back with it.
pub type Labelled<'a> = (u32, BorrowedFd<'a>);

/// The connection with netmig.
#[derive(Debug)]
pub struct Netmig(UnixStream);

impl Netmig {
    /// Says that the program runs and can be moved; waits until somebody listens. `saved` is a move that it has saved itself for, whose end it
    /// has not heard because the connection broke.
    #[must_use]
    pub fn register(who: &Introduction, saved: Option<&str>) -> Self {
        loop {
            match Self::try_register(who, saved) {
                Ok(netmig) => return netmig,
                Err(e) if e.is::<io::Error>() => {}
                Err(e) => eprintln!("registering: {e:#}"),
            }
            thread::sleep(AGAIN);
        }
    }

    /// The same, once.
    ///
    /// # Errors
    /// Nobody listens, or netmig refuses.
    pub fn try_register(who: &Introduction, saved: Option<&str>) -> Result<Self> {
        let netmig = Self(connect()?);
        let mut said = serde_json::to_value(who)?;
        said["type"] = "register".into();
        if let Some(mv) = saved {
            // What follows is the word for that move, after any time.
            said["move"] = mv.into();
        }
        netmig.say(&said)?;
        if saved.is_none() {
            netmig.registered()?;
        }
        Ok(netmig)
    }

    /// Says that the program was started to take over a state, and waits for it.
    ///
    /// # Errors
    /// Nobody listens, netmig refuses, or the move was given up.
    pub fn load(who: &Introduction) -> Result<(Self, Loading)> {
        let netmig = Self(connect()?);
        let mut said = serde_json::to_value(who)?;
        said["type"] = "load".into();
        netmig.say(&said)?;
        netmig.registered()?;
        let told = netmig.hear_json()?;
        if told["type"] != "state" {
            bail!("{told} instead of a state");
        }
        let number = |name: &str| told[name].as_u64().context("a state without its size");
        let (bytes, count) = (number("bytes")?, number("descriptors")?);
        let (mut state, mut sockets) = (Vec::new(), Vec::new());
        while (state.len() as u64) < bytes || (sockets.len() as u64) < count {
            let (kind, body, fds) = netmig.frame()?;
            match kind {
                STATE => state.extend(body),
                DESCRIPTORS => {
                    let labels = body
                        .chunks_exact(4)
                        .map(|l| u32::from_le_bytes([l[0], l[1], l[2], l[3]]));
                    sockets.extend(labels.zip(fds));
                }
                other => bail!("a frame of kind {other} within a state"),
            }
        }
        let loading = Loading {
            version: told["version"].as_str().unwrap_or_default().to_owned(),
            state,
            sockets,
        };
        Ok((netmig, loading))
    }

    /// The next word.
    ///
    /// # Errors
    /// The connection is gone: netmig's agent died.
    pub fn hear(&self) -> Result<Word> {
        loop {
            let told = self.hear_json()?;
            return Ok(match told["type"].as_str() {
                Some("save") => Word::Save(
                    told["move"]
                        .as_str()
                        .context("a move without id")?
                        .to_owned(),
                ),
                Some("resume") => Word::Resume,
                Some("leave") => Word::Leave,
                Some("go") => Word::Go,
                Some("registered") => continue,
                _ => bail!("netmig says {told}"),
            });
        }
    }

    /// Answers [`Word::Save`]. The sockets stay open here and must not be touched before the next word.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn hand_over(&self, version: &str, state: &[u8], sockets: &[Labelled<'_>]) -> Result<()> {
        self.say(&json!({
            "type": "state", "version": version, "bytes": state.len(), "descriptors": sockets.len(),
        }))?;
        for chunk in state.chunks(CHUNK) {
            self.put(STATE, chunk, &[])?;
        }
        for batch in sockets.chunks(BATCH) {
            let labels: Vec<u8> = batch
                .iter()
                .flat_map(|(label, _)| label.to_le_bytes())
                .collect();
            let fds: Vec<RawFd> = batch.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
            self.put(DESCRIPTORS, &labels, &fds)?;
        }
        Ok(())
    }

    /// Says that the state is loaded, and waits. True: go on; false: exit, the source goes on.
    ///
    /// # Errors
    /// Netmig says something else.
    pub fn ready(&self) -> Result<bool> {
        self.say(&json!({"type": "ready"}))?;
        match self.hear() {
            Ok(Word::Go) => Ok(true),
            // Its end before `go` is a `leave`.
            Ok(Word::Leave) | Err(_) => Ok(false),
            Ok(other) => bail!("{other:?} instead of go"),
        }
    }

    /// Says no to what netmig has asked for.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn refuse(&self, why: &str) -> Result<()> {
        self.say(&json!({"type": "refused", "why": why}))
    }

    fn registered(&self) -> Result<()> {
        let told = self.hear_json()?;
        if told["type"] != "registered" {
            bail!("netmig says {told}");
        }
        Ok(())
    }

    fn say(&self, message: &Value) -> Result<()> {
        self.put(MESSAGE, &serde_json::to_vec(message)?, &[])
    }

    fn hear_json(&self) -> Result<Value> {
        match self.frame()? {
            (MESSAGE, body, _) => Ok(serde_json::from_slice(&body)?),
            (kind, ..) => bail!("a frame of kind {kind} where a message is due"),
        }
    }

    /// Descriptors go with the first byte of their frame's header.
    fn put(&self, kind: u16, body: &[u8], fds: &[RawFd]) -> Result<()> {
        let mut header = b"NMHO\x01\0".to_vec();
        header.extend(kind.to_le_bytes());
        header.extend(u32::try_from(body.len())?.to_le_bytes());
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(&header)],
            rights,
            flags,
            None,
        )?;
        (&self.0).write_all(&header[sent..])?;
        (&self.0).write_all(body)?;
        Ok(())
    }

    fn frame(&self) -> Result<(u16, Vec<u8>, Vec<OwnedFd>)> {
        let mut fds = Vec::new();
        let mut header = [0; 12];
        self.fill(&mut header, &mut fds)?;
        let [b'N', b'M', b'H', b'O', 1, 0, k0, k1, l0, l1, l2, l3] = header else {
            bail!("this is not version 1 of the protocol: {header:02x?}");
        };
        let mut body = vec![0; u32::from_le_bytes([l0, l1, l2, l3]) as usize];
        self.fill(&mut body, &mut fds)?;
        Ok((u16::from_le_bytes([k0, k1]), body, fds))
    }

    fn fill(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let mut control = cmsg_space!([RawFd; BATCH]);
            let mut slices = [IoSliceMut::new(&mut bytes[done..])];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message =
                recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raw) = control {
                    // SAFETY: the kernel has just made these descriptors for us and nothing else knows them.
                    fds.extend(
                        raw.into_iter()
                            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                    );
                }
            }
            if message.bytes == 0 {
                bail!("netmig has closed the connection");
            }
            done += message.bytes;
        }
        Ok(())
    }
}

impl AsFd for Netmig {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn connect() -> io::Result<UnixStream> {
    let path = env::var("NETMIG_HANDOFF_SOCKET");
    UnixStream::connect(path.as_deref().unwrap_or("/run/netmig/handoff.sock"))
}
