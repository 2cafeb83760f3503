//! Shares a guest's one control channel between many commands: each is a connection to a unix
//! socket, from this process or from another ([`super::client`]). On a connection the channel
//! number is 0; on the way to the guest it becomes one that no other command has.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::frame::{Frame, Kind};

/// Starts serving. The threads end when the guest's end of the channel is closed.
pub fn serve(guest: UnixStream, listener: UnixListener) -> io::Result<()> {
    let hub = Arc::new(Hub {
        commands: Mutex::default(),
        guest: Mutex::new(guest.try_clone()?),
    });
    let accepting = Arc::clone(&hub);
    spawn("vm-accept", move || accept(&accepting, &listener))?;
    spawn("vm-guest", move || hub.serve_guest(guest))?;
    Ok(())
}

struct Hub {
    commands: Mutex<Commands>,
    guest: Mutex<UnixStream>,
}

#[derive(Default)]
struct Commands {
    last: u32,
    ended: bool,
    /// Where frames from the guest go. The queues have no bound: a client that does not read must
    /// not keep the others from hearing.
    open: HashMap<u32, Sender<Frame>>,
}

impl Hub {
    fn commands(&self) -> std::sync::MutexGuard<'_, Commands> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn to_guest(&self, frame: &Frame) -> io::Result<()> {
        let mut guest = self.guest.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&mut *guest)
    }

    /// Hands out what the guest says until it says no more; then every client is told by the end
    /// of its connection.
    fn serve_guest(&self, mut guest: UnixStream) {
        while let Ok(Some(frame)) = Frame::read(&mut guest) {
            let commands = self.commands();
            if let Some(client) = commands.open.get(&frame.channel) {
                // A client that has gone is taken out by its own thread.
                drop(client.send(frame));
            }
        }
        let mut commands = self.commands();
        commands.ended = true;
        commands.open.clear();
    }

    /// One command's connection, from the client's side to the guest.
    fn serve_client(&self, channel: u32, mut client: UnixStream) {
        while let Ok(Some(mut frame)) = Frame::read(&mut client) {
            frame.channel = channel;
            if self.to_guest(&frame).is_err() {
                break;
            }
        }
        self.commands().open.remove(&channel);
        // The guest ignores this for a command that has ended. If it cannot be told it has ended itself.
        drop(self.to_guest(&Frame::new(channel, Kind::Hangup, [])));
    }
}

fn accept(hub: &Arc<Hub>, listener: &UnixListener) {
    for client in listener.incoming() {
        // Too many open files, or a connection given up early: the next may be better.
        let Ok(client) = client else { continue };
        let (sender, frames) = mpsc::channel();
        let channel = {
            let mut commands = hub.commands();
            if commands.ended {
                return;
            }
            commands.last += 1;
            let channel = commands.last;
            commands.open.insert(channel, sender);
            channel
        };
        let started = client.try_clone().and_then(|write| {
            spawn("vm-to-client", move || to_client(write, &frames))?;
            let hub = Arc::clone(hub);
            spawn("vm-from-client", move || hub.serve_client(channel, client))
        });
        if started.is_err() {
            hub.commands().open.remove(&channel);
        }
    }
}

fn to_client(mut client: UnixStream, frames: &mpsc::Receiver<Frame>) {
    for mut frame in frames {
        frame.channel = 0;
        if frame.write(&mut client).is_err() {
            break;
        }
    }
    // Ends the other thread's read as well. Fails only where the client closed it before.
    drop(client.shutdown(Shutdown::Both));
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
}
