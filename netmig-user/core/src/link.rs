//! A conversation between two agents that outlives its connections.
//!
//! Messages are numbered from 1 in each direction and kept until the other end acknowledges them; a new connection resends what the old one
//! lost. Without I/O: the driver moves [`Hello`]s and [`Numbered`] messages, this module says which.
//!
//! ```text
//! connection opens:  dialler -- Hello --> acceptor      (the dialler speaks first)
//!                    dialler <-- Hello -- acceptor      (after it has called `greet` with the dialler's)
//! then, both ways:   Numbered{seq, ack, body}
//! ```
//!
//! A conversation is one pair of lives: when either agent restarts (another [`Life`]) both directions count from 1 again, and what was queued
//! for the former life is dropped. That is right because the machine hears the peer's durable word in that case and says again what still holds;
//! a message queued for the former life could contradict it.
use crate::{
    id::{Epoch, Life, MoveId},
    proto::{Channel, Hello, Numbered, PROTOCOL, Word},
};
use std::collections::VecDeque;

/// One end of a conversation: sends `Out`, receives `In`.
#[derive(Clone, Debug)]
pub struct Conversation<Out, In> {
    mv: MoveId,
    life: Life,
    peer: Option<Life>,
    outbox: Outbox<Out>,
    inbox: Inbox,
    owes_ack: bool,
    up: bool,
    direction: std::marker::PhantomData<fn(In)>,
}

/// How the other end of a new connection relates to what was known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// Its first Hello in this life of ours: the machine hears `PeerWord`.
    First,
    /// The same life as before: only messages are resent.
    Again,
    /// Another life: the machine hears `PeerWord`.
    Restarted,
}

/// A Hello that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Other messages than ours.
    #[error(
        "the other host runs netmig {version} with protocol {protocol}, this one needs protocol {PROTOCOL}: install the same netmig on both hosts"
    )]
    Protocol {
        /// Its protocol.
        protocol: u32,
        /// Its version.
        version: String,
    },
    /// It belongs to another move.
    #[error("the connection is for move {got}, not for {expected}")]
    Move {
        /// What it names.
        got: MoveId,
        /// What this conversation is about.
        expected: MoveId,
    },
    /// A life that has ended already; a connection left over from it.
    #[error(
        "the connection comes from life {got:?} of the other agent, but life {known:?} has spoken already"
    )]
    Stale {
        /// Its epoch.
        got: Epoch,
        /// The newest one known.
        known: Epoch,
    },
    /// A connection beside the control connection, of another life than that one's.
    #[error("the connection comes from {got:?}, but the move's control connection from {known:?}")]
    Stranger {
        /// Its life.
        got: Life,
        /// The life that has spoken, if one has.
        known: Option<Life>,
    },
}

/// Whether the Hello of a connection beside the control connection belongs to move `mv` and to the life that `met` has spoken on that one.
///
/// # Errors
/// [`Refused::Protocol`], [`Refused::Move`] or [`Refused::Stranger`].
pub fn joins(hello: &Hello, mv: MoveId, met: Option<Life>) -> Result<(), Refused> {
    understands(hello, mv)?;
    if met != Some(hello.life) {
        return Err(Refused::Stranger {
            got: hello.life,
            known: met,
        });
    }
    Ok(())
}

fn understands(hello: &Hello, mv: MoveId) -> Result<(), Refused> {
    if hello.protocol != PROTOCOL {
        return Err(Refused::Protocol {
            protocol: hello.protocol,
            version: hello.version.clone(),
        });
    }
    if hello.mv != mv {
        return Err(Refused::Move {
            got: hello.mv,
            expected: mv,
        });
    }
    Ok(())
}

/// A numbered message that does not continue the conversation: the connection is to be closed and dialled anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Messages between are missing.
    #[error("message {got} came where {expected} was due")]
    Gap {
        /// Its number.
        got: u64,
        /// The number that was due.
        expected: u64,
    },
    /// It acknowledges what was never sent.
    #[error("message {got} is acknowledged but only {sent} were sent")]
    Ack {
        /// The number acknowledged.
        got: u64,
        /// Messages sent so far.
        sent: u64,
    },
    /// A message before the Hello.
    #[error("a message came before the hello")]
    Early,
}

impl<Out: Clone, In> Conversation<Out, In> {
    /// A conversation that has not met the other end yet.
    pub fn new(mv: MoveId, life: Life) -> Self {
        let (outbox, inbox) = (Outbox::default(), Inbox::default());
        Self {
            mv,
            life,
            peer: None,
            outbox,
            inbox,
            owes_ack: false,
            up: false,
            direction: std::marker::PhantomData,
        }
    }

    /// What opens a connection from this end. The acceptor calls [`Self::greet`] first, so that its Hello counts in the dialler's new life.
    pub fn hello(&self, version: &str, channel: Channel, word: Word) -> Hello {
        Hello {
            protocol: PROTOCOL,
            version: version.to_owned(),
            mv: self.mv,
            life: self.life,
            peer: self.peer,
            channel,
            last_seen: self.inbox.last_seen,
            word,
        }
    }

    /// The life of the other end that has spoken last.
    pub fn peer(&self) -> Option<Life> {
        self.peer
    }

    /// The other end's Hello on a new control connection, which replaces any older one.
    pub fn greet(&mut self, hello: &Hello) -> Result<Met, Refused> {
        understands(hello, self.mv)?;
        // What it counts is about this life of ours only if it has met it.
        let last_seen = if hello.peer == Some(self.life) {
            hello.last_seen
        } else {
            0
        };
        let met = match self.peer {
            None => Met::First,
            Some(known) if hello.life == known => Met::Again,
            Some(known) if hello.life.epoch < known.epoch => {
                return Err(Refused::Stale {
                    got: hello.life.epoch,
                    known: known.epoch,
                });
            }
            Some(_) => Met::Restarted,
        };
        if met != Met::Again {
            self.inbox = Inbox::default();
        }
        if met == Met::Restarted {
            self.outbox = Outbox::default();
        } else {
            self.outbox.resume(last_seen);
        }
        self.peer = Some(hello.life);
        self.owes_ack = false;
        self.up = true;
        Ok(met)
    }

    /// The connection is gone; nothing is transmitted until the next [`Self::greet`].
    pub fn down(&mut self) {
        self.up = false;
    }

    /// Queues a message; it stays until it is acknowledged.
    pub fn send(&mut self, message: Out) {
        self.outbox.push(message);
    }

    /// The next message to write to the connection, if it stands and something is due (a bare acknowledgement at the end).
    pub fn poll_transmit(&mut self) -> Option<Numbered<Out>> {
        if !self.up {
            return None;
        }
        let ack = self.inbox.last_seen;
        let next = self.outbox.next_unsent().map(|(seq, body)| Numbered {
            seq,
            ack,
            body: Some(body),
        });
        let due = next.or_else(|| {
            self.owes_ack.then_some(Numbered {
                seq: 0,
                ack,
                body: None,
            })
        });
        if due.is_some() {
            self.owes_ack = false;
        }
        due
    }

    /// A message read from the connection; none if it is a bare acknowledgement or was seen before.
    pub fn receive(&mut self, message: Numbered<In>) -> Result<Option<In>, Broken> {
        if !self.up {
            return Err(Broken::Early);
        }
        self.outbox.acknowledge(message.ack)?;
        let Some(body) = message.body else {
            return Ok(None);
        };
        self.owes_ack = true;
        Ok(self.inbox.accept(message.seq)?.then_some(body))
    }

    /// True when the other end has acknowledged every message: the driver may let go of the connection after `Finish`.
    pub fn is_flushed(&self) -> bool {
        self.outbox.queue.is_empty()
    }
}

/// Messages that the other end has not acknowledged yet.
#[derive(Clone, Debug)]
pub struct Outbox<M> {
    /// Highest number acknowledged; the queue begins with the one after it.
    acknowledged: u64,
    /// How many of the queue were written to the present connection.
    written: usize,
    queue: VecDeque<M>,
}

impl<M> Default for Outbox<M> {
    fn default() -> Self {
        Self {
            acknowledged: 0,
            written: 0,
            queue: VecDeque::new(),
        }
    }
}

impl<M: Clone> Outbox<M> {
    /// Queues a message.
    pub fn push(&mut self, message: M) {
        self.queue.push_back(message);
    }

    /// The next message for the present connection, with its number.
    pub fn next_unsent(&mut self) -> Option<(u64, M)> {
        let message = self.queue.get(self.written)?.clone();
        self.written += 1;
        Some((self.acknowledged + self.written as u64, message))
    }

    /// Drops what the other end has.
    pub fn acknowledge(&mut self, ack: u64) -> Result<(), Broken> {
        let sent = self.acknowledged + self.written as u64;
        if ack > sent {
            return Err(Broken::Ack { got: ack, sent });
        }
        while self.acknowledged < ack {
            self.queue.pop_front();
            self.acknowledged += 1;
            self.written -= 1;
        }
        Ok(())
    }

    /// A new connection, on which the other end says that it has everything up to `last_seen`.
    pub fn resume(&mut self, last_seen: u64) {
        // Only what the former connection carried can have been seen; a claim beyond it is no reason to drop anything.
        let seen = last_seen
            .saturating_sub(self.acknowledged)
            .min(self.written as u64);
        self.queue.drain(..seen as usize);
        self.acknowledged += seen;
        self.written = 0;
    }
}

/// What has been received.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    last_seen: u64,
}

impl Inbox {
    /// True for the message that was due, false for one that came before.
    pub fn accept(&mut self, seq: u64) -> Result<bool, Broken> {
        let expected = self.last_seen + 1;
        match seq.cmp(&expected) {
            std::cmp::Ordering::Less => Ok(false),
            std::cmp::Ordering::Greater => Err(Broken::Gap { got: seq, expected }),
            std::cmp::Ordering::Equal => {
                self.last_seen = seq;
                Ok(true)
            }
        }
    }
}

#[cfg(test)]
mod tests;
