//! A redis connection: just as much of RESP2 as the peers speak, and a reader that knows how long to wait.
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// How long a connection may take to stand.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A reply longer than this is not redis speaking.
const REPLY_LIMIT: usize = 64 << 20;

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK` and the like.
    Status(String),
    /// A number.
    Integer(i64),
    /// A value, or none.
    Bulk(Option<Vec<u8>>),
}

/// A connection to redis.
#[derive(Debug)]
pub struct Connection {
    input: BufReader<TcpStream>,
}

impl Connection {
    /// Connects; a reply that takes longer than `patience` is an error of kind `TimedOut`.
    ///
    /// # Errors
    /// Those of connecting.
    pub fn open(to: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, CONNECT_LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self {
            input: BufReader::new(stream),
        })
    }

    /// The socket below.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        self.input.get_ref()
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// The connection's; `TimedOut` when the reply does not come; `InvalidData` when redis says no or does not speak RESP.
    pub fn call(&mut self, command: &[&[u8]]) -> io::Result<Reply> {
        self.send(&[command])?;
        self.reply()
    }

    /// Sends commands at once; each has its [`Connection::reply`].
    ///
    /// # Errors
    /// The connection's.
    pub fn send(&mut self, commands: &[&[&[u8]]]) -> io::Result<()> {
        let mut text = Vec::with_capacity(256);
        for command in commands {
            write!(text, "*{}\r\n", command.len())?;
            for word in *command {
                write!(text, "${}\r\n", word.len())?;
                text.extend_from_slice(word);
                text.extend_from_slice(b"\r\n");
            }
        }
        self.input
            .get_mut()
            .write_all(&text)
            .map_err(waited_too_long)
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub fn reply(&mut self) -> io::Result<Reply> {
        let line = self.line()?;
        let (mark, rest) = line
            .split_at_checked(1)
            .ok_or_else(|| invalid("empty line"))?;
        let number = || rest.parse::<i64>().map_err(|_| invalid(&line));
        match mark {
            "+" => Ok(Reply::Status(rest.to_owned())),
            ":" => Ok(Reply::Integer(number()?)),
            "$" => match number()? {
                -1 => Ok(Reply::Bulk(None)),
                n => {
                    let n = usize::try_from(n)
                        .ok()
                        .filter(|n| *n <= REPLY_LIMIT)
                        .ok_or_else(|| invalid(&line))?;
                    let mut value = vec![0; n + 2];
                    self.input.read_exact(&mut value).map_err(waited_too_long)?;
                    value.truncate(n);
                    Ok(Reply::Bulk(Some(value)))
                }
            },
            _ => Err(invalid(&line)),
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.input
            .by_ref()
            .take(4096)
            .read_until(b'\n', &mut line)
            .map_err(waited_too_long)?;
        if line.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "closed by the other end",
            ));
        }
        let text = line
            .strip_suffix(b"\r\n")
            .ok_or_else(|| invalid("line without end"))?;
        String::from_utf8(text.to_vec()).map_err(|_| invalid("line that is not text"))
    }
}

/// Connects once the server is there: it may still be starting.
///
/// # Errors
/// The last attempt's, after `limit`.
pub fn open_when_there(
    to: SocketAddr,
    patience: Duration,
    limit: Duration,
) -> io::Result<Connection> {
    let end = Instant::now() + limit;
    loop {
        let tried = Connection::open(to, patience).and_then(|mut c| match c.call(&[b"PING"])? {
            Reply::Status(s) if s == "PONG" => Ok(c),
            other => Err(invalid(&format!("{other:?} to PING"))),
        });
        match tried {
            Ok(connection) => return Ok(connection),
            Err(e) if Instant::now() >= end => {
                return Err(io::Error::new(
                    e.kind(),
                    format!("connecting to redis at {to}: {e}"),
                ));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("redis answered: {what}"),
    )
}

/// The time limit of a blocking socket is told as EAGAIN.
fn waited_too_long(e: io::Error) -> io::Error {
    if e.kind() == io::ErrorKind::WouldBlock {
        io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
    } else {
        e
    }
}
