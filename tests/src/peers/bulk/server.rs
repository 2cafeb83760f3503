//! The end of the streams inside the container.
use std::{
    io::{self, Read},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::{
    Closing, Request, congestion,
    frame::{Reader, Writer, receive_json, send_json},
};
use crate::peers::{Direction, tcp_info::Sampler};

/// Serves every connection that `listener` accepts, on a thread each; what went wrong on one is told on standard error, and the
/// client's to count.
///
/// # Errors
/// accept(2)'s.
pub fn serve(listener: &TcpListener) -> io::Result<()> {
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(e) = one(stream) {
                eprintln!("bulk stream: {e}");
            }
        });
    }
    Ok(())
}

fn one(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    congestion::choose(&stream)?;
    let request: Request = receive_json(&mut stream)?;
    let closing = match request.direction {
        Direction::Inbound => receive(&mut stream, &request)?,
        Direction::Outbound | Direction::Both => send(&mut stream, &request)?,
    };
    send_json(&mut stream, &closing)?;
    stream.shutdown(Shutdown::Write)
}

fn receive(stream: &mut TcpStream, request: &Request) -> io::Result<Closing> {
    let mut reader = Reader::new(request.seed);
    while reader.next(stream, || ())? {}
    Ok(Closing {
        bytes: reader.bytes,
        corrupt: reader.corrupt,
        course: None,
    })
}

/// Sends until the client closes its direction.
fn send(stream: &mut TcpStream, request: &Request) -> io::Result<Closing> {
    let sampler = Sampler::start(stream)?;
    let enough = Arc::<AtomicBool>::default();
    let mut other_way = stream.try_clone()?;
    thread::spawn({
        let enough = enough.clone();
        move || {
            // The end of input, or a broken connection: either way nobody wants more.
            while matches!(other_way.read(&mut [0; 64]), Ok(n) if n > 0) {}
            enough.store(true, Ordering::Relaxed);
        }
    });
    let mut writer = Writer::new(request.seed, request.rate);
    while !enough.load(Ordering::Relaxed) {
        writer.next(stream)?;
    }
    Writer::end(stream)?;
    Ok(Closing {
        bytes: writer.bytes,
        corrupt: 0,
        course: Some(sampler.finish()),
    })
}
