//! A server that is slow to take what comes: connections stay in its accept queue until it is told to accept, others are over before it has read
//! anything, it waits for a connect() of its own, and it is a member of a multicast group.
use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

/// Where connections wait.
pub const PORT: u16 = 7600;
/// Any datagram here makes it accept what waits. It answers with their number when all are served, and with the number and the sum of the bytes
/// of those that are over.
pub const TOLD: u16 = 7601;
/// Where it hears the group; it answers every datagram with `heard`.
pub const HEARS: u16 = 7602;
/// Connections here are ended by it at once, and read when it is told.
pub const OVER: u16 = 7604;
/// The group.
pub const GROUP: Ipv4Addr = Ipv4Addr::new(239, 7, 6, 2);

/// Serves for ever. Each connection is read to its end and answered with the number of its bytes and their sum. `connect`: where it connects
/// to, to say `connected`. `at`: its own address, which tells the group's interface.
///
/// # Errors
/// A port is taken, or a connection breaks.
pub fn serve(connect: SocketAddr, at: Ipv4Addr) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
    listener.set_nonblocking(true)?;
    let group = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, HEARS))?;
    group.join_multicast_v4(&GROUP, &at)?;
    thread::spawn(move || answer(&group));
    thread::spawn(move || say(connect));
    let over = Arc::<Mutex<Vec<TcpStream>>>::default();
    let ended = TcpListener::bind((Ipv6Addr::UNSPECIFIED, OVER))?;
    thread::spawn({
        let over = over.clone();
        move || end(&ended, &over)
    });
    let told = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, TOLD))?;
    loop {
        let (_, from) = told.recv_from(&mut [0; 16])?;
        let mut served = 0;
        loop {
            match listener.accept() {
                Ok((connection, _)) => sum(connection)?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
            served += 1;
        }
        let over = std::mem::take(&mut *over.lock().unwrap_or_else(PoisonError::into_inner));
        let (mut bytes, mut sum) = (0, 0);
        for connection in over {
            let (more, of_it) = read(connection)?;
            (bytes, sum) = (bytes + more, sum + of_it);
        }
        told.send_to(format!("{served} {bytes} {sum}").as_bytes(), from)?;
    }
}

fn sum(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nonblocking(false)?;
    let (bytes, sum) = read(connection.try_clone()?)?;
    writeln!(connection, "{bytes} {sum}")
}

/// The number of bytes up to the end, and their sum.
fn read(mut connection: TcpStream) -> io::Result<(usize, u64)> {
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes)?;
    Ok((bytes.len(), bytes.iter().map(|&b| u64::from(b)).sum()))
}

/// Says of every connection that nothing will be said, and keeps it.
fn end(listener: &TcpListener, over: &Mutex<Vec<TcpStream>>) {
    for connection in listener.incoming() {
        let ended = connection.and_then(|connection| {
            connection.shutdown(Shutdown::Write)?;
            Ok(connection)
        });
        match ended {
            Ok(connection) => over
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(connection),
            Err(e) => eprintln!("ending a connection: {e}"),
        }
    }
}

fn answer(group: &UdpSocket) {
    let mut datagram = [0; 2000];
    while let Ok((_, from)) = group.recv_from(&mut datagram) {
        if let Err(e) = group.send_to(b"heard", from) {
            eprintln!("answering {from}: {e}");
        }
    }
}

/// Blocks in connect(2) until it is answered.
fn say(to: SocketAddr) {
    let said = TcpStream::connect(to).and_then(|mut connection| {
        connection.write_all(b"connected\n")?;
        connection.read_to_end(&mut Vec::new())
    });
    if let Err(e) = said {
        eprintln!("connecting to {to}: {e}");
    }
}
