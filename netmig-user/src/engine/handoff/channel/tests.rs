use std::{io::Seek, thread};

use super::{
    super::message::{Say, Told},
    *,
};

fn pair() -> (Channel, UnixStream) {
    let (a, b) = UnixStream::pair().expect("a pair");
    (Channel::new(a), b)
}

fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(10))
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"NMHO\x01\0".to_vec();
    bytes.extend([kind, 0]);
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn a_state_with_many_descriptors_comes_whole() {
    let (a, b) = pair();
    let b = Channel::new(b);
    let mut file = tempfile::tempfile().expect("a file");
    let state: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    file.write_all(&state).expect("written");
    file.rewind().expect("rewound");
    let fds: Vec<_> = (0..600)
        .map(|n| (n * 7, OwnedFd::from(UnixStream::pair().expect("a pair").0)))
        .collect();
    let announced = Announcement {
        version: "x".into(),
        bytes: state.len() as u64,
        descriptors: 600,
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            a.send(&Say::State(announced.clone()), soon())
                .expect("announced");
            a.send_state(&mut file, &fds, soon()).expect("sent");
            a.send(&Say::Ready, soon()).expect("said");
        });
        assert_eq!(
            b.receive::<Say>(soon()).expect("a message"),
            Say::State(announced.clone())
        );
        let mut got = Vec::new();
        let came = b
            .receive_state(&announced, &mut got, soon())
            .expect("a state");
        assert!(got == state);
        let link = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        for ((label, fd), (sent_label, sent)) in came.iter().zip(&fds) {
            assert_eq!(label, sent_label);
            assert_eq!(link(fd).expect("a link"), link(sent).expect("a link"));
        }
        assert_eq!(b.receive::<Say>(soon()).expect("a message"), Say::Ready);
    });
}

#[test]
fn what_breaks_the_protocol_ends_it() {
    let told = |bytes: &[u8]| {
        let (a, mut b) = pair();
        b.write_all(bytes).expect("written");
        drop(b);
        a.receive::<Say>(soon()).expect_err("broken").to_string()
    };
    assert!(told(b"GET / HTTP/1.1\r\n\r\n").contains("NMHO"));
    assert!(told(&frame(1, b"{")).contains("cannot be read"));
    assert!(told(&frame(1, &[0xff; 20])).contains("cannot be read"));
    assert!(told(&frame(2, b"x")).contains("a message"));
    assert!(told(&frame(1, b"{\"type\":\"ready\"}")[..20]).contains("closed"));
    assert!(told(&[]).contains("closed"));
    // Nothing is reserved for it.
    assert!(told(b"NMHO\x01\0\x01\0\xff\xff\xff\xff").contains("over the limit"));
}

#[test]
fn a_state_is_bounded_by_what_was_announced() {
    let take = |announced: Announcement, bytes: &[u8]| {
        let (a, mut b) = pair();
        b.write_all(bytes).expect("written");
        drop(b);
        let mut state = Vec::new();
        a.receive_state(&announced, &mut state, soon())
            .map(|fds| (state, fds.len()))
            .map_err(|e| e.to_string())
    };
    let of = |bytes, descriptors| Announcement {
        bytes,
        descriptors,
        ..Announcement::default()
    };
    assert_eq!(take(of(0, 0), &[]), Ok((Vec::new(), 0)));
    let two = [frame(2, b"ab"), frame(2, b"c")].concat();
    assert_eq!(take(of(3, 0), &two), Ok((b"abc".to_vec(), 0)));
    assert!(take(of(2, 1), &two).is_err_and(|e| e.contains("3 bytes of state; 2 are due")));
    assert!(take(of(4, 0), &two).is_err_and(|e| e.contains("closed")));
    assert!(take(of(STATE_LIMIT + 1, 0), &[]).is_err_and(|e| e.contains("over the limit")));
    assert!(take(of(0, DESCRIPTOR_LIMIT + 1), &[]).is_err_and(|e| e.contains("over the limit")));
    // A label without a descriptor.
    assert!(take(of(0, 1), &frame(3, &[1, 0, 0, 0])).is_err_and(|e| e.contains("0 descriptors")));
    assert!(take(of(1, 0), &frame(1, b"{\"type\":\"ready\"}")).is_err_and(|e| e.contains("rest")));
}

#[test]
fn a_label_names_one_descriptor() {
    let (a, b) = pair();
    let fds = [3, 3].map(|label| (label, OwnedFd::from(UnixStream::pair().expect("a pair").0)));
    Channel::new(b)
        .send_state(&mut io::empty(), &fds, soon())
        .expect("sent");
    let announced = Announcement {
        descriptors: 2,
        ..Announcement::default()
    };
    let failed = a.receive_state(&announced, &mut io::sink(), soon());
    assert!(failed.is_err_and(|e| e.to_string().contains("the label 3")));
}

#[test]
fn silence_has_an_end() {
    let (a, _b) = pair();
    let limit = Deadline::within(Duration::from_millis(20));
    assert!(matches!(a.receive::<Say>(limit), Err(Error::Silent(_))));
    assert!(!a.hung_up(Some(Duration::from_millis(20))).expect("a look"));
}

#[test]
fn the_last_word_is_read_before_the_end() {
    let (a, b) = pair();
    let b = Channel::new(b);
    b.send(&Say::Ready, soon()).expect("a late answer");
    a.send(&Told::Resume, soon()).expect("said");
    a.again().expect("a duplicate").close().expect("closed");
    assert_eq!(b.receive::<Told>(soon()).expect("the word"), Told::Resume);
    assert!(matches!(b.receive::<Told>(soon()), Err(Error::Closed)));
    a.close().expect("closed already");
}

#[test]
fn a_program_that_has_gone_is_noticed_without_reading() {
    let (a, b) = pair();
    Channel::new(b).send(&Told::Go, soon()).expect("said");
    assert!(a.hung_up(None).expect("a look"));
    assert_eq!(a.receive::<Told>(soon()).expect("still there"), Told::Go);
    assert!(matches!(a.send(&Say::Ready, soon()), Err(Error::Closed)));
}
