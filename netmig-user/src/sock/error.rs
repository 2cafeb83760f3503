//! What can go wrong.
use netmig_core::image::v1::sock::{Holder, Impossible};
use std::io;

/// Why sockets could not be listed, read or rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Entering the namespace, or making a socket in it.
    #[error("working in the container's network namespace")]
    Namespace(#[from] io::Error),
    /// A system call on one socket.
    #[error("{call} on {socket}")]
    Socket {
        /// What was tried.
        call: &'static str,
        /// The socket, in words.
        socket: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// sock_diag.
    #[error("asking sock_diag for {what}")]
    Diag {
        /// Which sockets.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A process, or a file of /proc.
    #[error("reading {what}")]
    Proc {
        /// What was read.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// sock_diag or /proc said something that cannot be read.
    #[error("{what} is malformed")]
    Malformed {
        /// Which answer.
        what: String,
    },
    /// An image that no dump makes.
    #[error(transparent)]
    Impossible(#[from] Impossible),
    /// A socket of the image has no descriptor here.
    #[error("{socket} has no descriptor at the target: {holder} is not there")]
    Missing {
        /// Which socket of the image.
        socket: String,
        /// Where it should be.
        holder: Holder,
    },
    /// The descriptor holds something else.
    #[error("the descriptor of {socket} ({holder}) holds something else: {what}")]
    Mismatch {
        /// Which socket of the image.
        socket: String,
        /// Where it should be.
        holder: Holder,
        /// What was found.
        what: String,
    },
    /// The kernel's part in putting connections into accept queues.
    #[error("putting connections into accept queues")]
    Accept {
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel's part in reading what no process holds.
    #[error("reading TCP sockets that no process holds")]
    Adrift {
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A descriptor that was handed over and cannot be.
    #[error("{socket} was handed over, and cannot be: {why}")]
    NotPortable {
        /// Which socket.
        socket: String,
        /// What is in the way.
        why: String,
    },
    /// A queue did not give, or take, all bytes.
    #[error("the {queue} queue of {socket} gave {got} of {want} bytes")]
    Short {
        /// Which socket.
        socket: String,
        /// `send` or `receive`.
        queue: &'static str,
        /// Bytes that came.
        got: usize,
        /// Bytes that should have come.
        want: usize,
    },
    /// The two ends of an inner connection contradict each other, again and again.
    #[error(
        "the two ends of {socket} do not agree on what was received: packets still move on lo; is its gate closed?"
    )]
    Unreconciled {
        /// Which connection.
        socket: String,
    },
    /// A connection ended while it was read.
    #[error(
        "{socket} went to {state} while it was read: packets still come in; is the gate closed?"
    )]
    Changed {
        /// Which connection.
        socket: String,
        /// Its state now.
        state: String,
    },
    /// A microsecond timestamp clock cannot be set on an older kernel.
    #[error(
        "{socket} counts its timestamps in microseconds, which this kernel ({major}.{minor}) cannot: 6.12 is needed"
    )]
    Microseconds {
        /// Which connection.
        socket: String,
        /// Kernel here.
        major: u16,
        /// Kernel here.
        minor: u16,
    },
}

/// Says what was tried on which socket.
pub(super) trait On<T> {
    /// Adds call and socket to an error of the kernel.
    fn on(self, call: &'static str, socket: &impl ToString) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> On<T> for Result<T, E> {
    fn on(self, call: &'static str, socket: &impl ToString) -> Result<T, Error> {
        self.map_err(|e| Error::Socket {
            call,
            socket: socket.to_string(),
            source: e.into(),
        })
    }
}
