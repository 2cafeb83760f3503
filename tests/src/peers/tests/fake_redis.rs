//! A server that speaks the commands the peers use, and can be told to lie.
use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

#[derive(Default)]
struct State {
    values: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    spoil: AtomicBool,
    refuse: AtomicBool,
}

pub(super) struct FakeRedis {
    pub(super) at: SocketAddr,
    state: Arc<State>,
}

impl FakeRedis {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let at = listener.local_addr().expect("bound");
        let state = Arc::<State>::default();
        thread::spawn({
            let state = state.clone();
            move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    // A client that goes away ends its thread with an error, as it should.
                    thread::spawn(move || drop(serve(stream, &state)));
                }
            }
        });
        Self { at, state }
    }

    /// Flips a byte in the answer to the next GET of a client's key.
    pub(super) fn spoil_next_get(&self) {
        self.state.spoil.store(true, Ordering::SeqCst);
    }

    /// Answers the next command with an error.
    pub(super) fn refuse_next(&self) {
        self.state.refuse.store(true, Ordering::SeqCst);
    }

    /// Forgets every value.
    pub(super) fn lose_all(&self) {
        self.state.values.lock().expect("unpoisoned").clear();
    }
}

fn serve(mut stream: TcpStream, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream.try_clone()?);
    loop {
        let words = command(&mut input)?;
        let answer = answer(&words, state);
        stream.write_all(&answer)?;
    }
}

fn answer(words: &[Vec<u8>], state: &State) -> Vec<u8> {
    if state.refuse.swap(false, Ordering::SeqCst) {
        return b"-ERR no\r\n".to_vec();
    }
    let mut values = state.values.lock().expect("unpoisoned");
    match words.iter().map(Vec::as_slice).collect::<Vec<_>>()[..] {
        [b"PING"] => b"+PONG\r\n".to_vec(),
        [b"DBSIZE"] => format!(":{}\r\n", values.len()).into_bytes(),
        [b"SET", key, value] => {
            values.insert(key.to_vec(), value.to_vec());
            b"+OK\r\n".to_vec()
        }
        [b"GET", key] => match values.get(key) {
            None => b"$-1\r\n".to_vec(),
            Some(value) => {
                let mut value = value.clone();
                if !key.starts_with(b"netmig:") && state.spoil.swap(false, Ordering::SeqCst) {
                    value[10] ^= 0x40;
                }
                [format!("${}\r\n", value.len()).as_bytes(), &value, b"\r\n"].concat()
            }
        },
        _ => b"-ERR unknown\r\n".to_vec(),
    }
}

fn command(input: &mut impl BufRead) -> io::Result<Vec<Vec<u8>>> {
    (0..number(input)?)
        .map(|_| {
            let mut word = vec![0; number(input)? + 2];
            input.read_exact(&mut word)?;
            word.truncate(word.len() - 2);
            Ok(word)
        })
        .collect()
}

fn number(input: &mut impl BufRead) -> io::Result<usize> {
    let mut line = String::new();
    if input.take(64).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.trim_end()
        .get(1..)
        .and_then(|n| n.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}
