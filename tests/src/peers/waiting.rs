//! A server that is slow to take what comes: connections stay in its accept queue until it is told to accept, it waits for a connect() of its
//! own, and it is a member of a multicast group.
use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

/// Where connections wait.
pub const PORT: u16 = 7600;
/// Any datagram here makes it accept what waits. It answers with their number when all are served.
pub const TOLD: u16 = 7601;
/// Where it hears the group; it answers every datagram with `heard`.
pub const HEARS: u16 = 7602;
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
        told.send_to(served.to_string().as_bytes(), from)?;
    }
}

fn sum(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nonblocking(false)?;
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes)?;
    let sum: u64 = bytes.iter().map(|&b| u64::from(b)).sum();
    writeln!(connection, "{} {sum}", bytes.len())
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
