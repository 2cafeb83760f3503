//! Connections of which one side, or both, has been shut down.
mod sock_lab;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use netmig_core::image::v1::sock::TcpState;
use netmig_user::{sock, sys::sockopt};
use sock_lab::{Lab, Tasks, connected, engine, expect, owned, pattern, restore};

fn pause() {
    thread::sleep(Duration::from_millis(60));
}

fn state(fd: &impl AsFd) -> u8 {
    sockopt::read::<[u8; 4]>(fd, libc::SOL_TCP, libc::TCP_INFO).expect("TCP_INFO")[0]
}

/// Nothing more comes.
fn ends(stream: &mut TcpStream) {
    assert_eq!(stream.read(&mut [0; 16]).expect("an orderly end"), 0);
}

/// Shuts a connection down in some way at the source, moves it, and hands both ends to `after`.
fn moves(
    v6: bool,
    shut: impl Fn(&Lab, &mut TcpStream, &mut TcpStream),
    expected: TcpState,
    after: impl Fn(&mut TcpStream, &mut TcpStream),
) {
    let lab = Lab::new();
    let (mut own, mut peer) = connected(&lab, v6, true);
    own.write_all(&pattern(0, 300)).expect("written");
    expect(&mut peer, 0, 300);
    peer.write_all(&pattern(0, 200)).expect("written");
    expect(&mut own, 0, 200);
    pause();
    shut(&lab, &mut own, &mut peer);
    lab.close();
    let tasks = Tasks::holding(vec![owned(own)]);
    let (image, kept) = sock::dump(&lab.source.path(), &[tasks.pid()]).expect("a dump");
    assert_eq!(
        image.tcp.iter().map(|t| t.state).collect::<Vec<_>>(),
        [expected]
    );
    println!(
        "{expected:?}: {} wait to be read, {} to be sent",
        image.tcp[0].recv.len(),
        image.tcp[0].send.len()
    );
    drop((kept, tasks));
    let tasks = engine(&lab, &image);
    let rebuilt = restore(&lab, &tasks, &image);
    lab.pass();
    let opening = Instant::now();
    rebuilt.open().expect("opened");
    let mut own = tasks.stream(0);
    // What was on its way is here at once, and not when a timer fires.
    for stream in [&own, &peer] {
        stream
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("a timeout");
    }
    after(&mut own, &mut peer);
    println!("  done {:?} after the opening", opening.elapsed());
}

const CLOSE: u8 = 7;

#[test]
fn close_wait() {
    for v6 in [false, true] {
        moves(
            v6,
            |_, _, peer| {
                peer.write_all(&pattern(200, 1000)).expect("written");
                peer.shutdown(Shutdown::Write).expect("shut down");
                pause();
            },
            TcpState::CloseWait,
            |own, peer| {
                assert_eq!(state(own), 8);
                expect(own, 200, 1000);
                ends(own);
                own.write_all(&pattern(300, 5000)).expect("written");
                expect(peer, 300, 5000);
                own.shutdown(Shutdown::Write).expect("shut down");
                ends(peer);
                pause();
                assert_eq!(state(own), CLOSE);
            },
        );
    }
}

#[test]
fn close_wait_with_an_answer_that_was_lost() {
    moves(
        false,
        |lab, own, peer| {
            peer.shutdown(Shutdown::Write).expect("shut down");
            pause();
            ends(own);
            lab.close();
            own.write_all(&pattern(300, 5000)).expect("written");
        },
        TcpState::CloseWait,
        |own, peer| {
            expect(peer, 300, 5000);
            ends(own);
        },
    );
}

#[test]
fn fin_wait_1_with_bytes_before_the_fin() {
    for v6 in [false, true] {
        moves(
            v6,
            |lab, own, _| {
                lab.close();
                own.write_all(&pattern(300, 3000)).expect("written");
                own.shutdown(Shutdown::Write).expect("shut down");
            },
            TcpState::FinWait1,
            |own, peer| {
                expect(peer, 300, 3000);
                ends(peer);
                peer.write_all(&pattern(200, 1000)).expect("written");
                expect(own, 200, 1000);
                pause();
                assert_eq!(state(own), 5);
                peer.shutdown(Shutdown::Write).expect("shut down");
                ends(own);
            },
        );
    }
}

#[test]
fn fin_wait_2() {
    for v6 in [false, true] {
        moves(
            v6,
            |_, own, _| {
                own.write_all(&pattern(300, 1000)).expect("written");
                own.shutdown(Shutdown::Write).expect("shut down");
                pause();
            },
            TcpState::FinWait2,
            |own, peer| {
                assert_eq!(state(own), 5);
                expect(peer, 300, 1000);
                ends(peer);
                peer.write_all(&pattern(200, 50_000)).expect("written");
                peer.shutdown(Shutdown::Write).expect("shut down");
                expect(own, 200, 50_000);
                ends(own);
            },
        );
    }
}

#[test]
fn last_ack() {
    moves(
        false,
        |lab, own, peer| {
            peer.write_all(&pattern(200, 100)).expect("written");
            peer.shutdown(Shutdown::Write).expect("shut down");
            pause();
            lab.close();
            own.write_all(&pattern(300, 2000)).expect("written");
            own.shutdown(Shutdown::Write).expect("shut down");
        },
        TcpState::LastAck,
        |own, peer| {
            expect(peer, 300, 2000);
            ends(peer);
            expect(own, 200, 100);
            ends(own);
            pause();
            assert_eq!(state(own), CLOSE);
        },
    );
}

#[test]
fn closing() {
    moves(
        false,
        |lab, own, peer| {
            lab.mute();
            own.write_all(&pattern(300, 500)).expect("written");
            own.shutdown(Shutdown::Write).expect("shut down");
            peer.write_all(&pattern(200, 100)).expect("written");
            peer.shutdown(Shutdown::Write).expect("shut down");
            pause();
            lab.close();
            lab.heal();
        },
        TcpState::Closing,
        |own, peer| {
            expect(own, 200, 100);
            ends(own);
            expect(peer, 300, 500);
            ends(peer);
        },
    );
}

#[test]
fn shut_for_reading_only() {
    moves(
        false,
        |_, own, _| own.shutdown(Shutdown::Read).expect("shut down"),
        TcpState::Established,
        |own, peer| {
            ends(own);
            own.write_all(&pattern(300, 2000)).expect("written");
            expect(peer, 300, 2000);
        },
    );
}
