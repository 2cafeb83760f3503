//! The object `adrift`: what the kernel's memory says of sockets without a descriptor.
use std::{
    collections::HashMap,
    io::Read as _,
    mem,
    sync::{Mutex, OnceLock, PoisonError},
};

use aya::{include_bytes_aligned, maps::Array};
use netmig_common::adrift::{ABSENT, Asked, FIELDS, NEW_SYN_RECV, Record, TIME_WAIT};

use crate::sock::{
    btf::{Btf, Field},
    iter::{Failure, Object},
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/adrift"));
const PROGRAM: &str = "nm_adrift";

/// A field that is asked for.
struct Wanted {
    key: &'static str,
    of: &'static str,
    path: &'static [&'static str],
    /// Bytes beyond its begin.
    plus: u32,
    /// Not every kernel has it.
    optional: bool,
}

const fn wanted(key: &'static str, of: &'static str, path: &'static [&'static str]) -> Wanted {
    Wanted {
        key,
        of,
        path,
        plus: 0,
        optional: false,
    }
}

const fn optional(key: &'static str, of: &'static str, path: &'static [&'static str]) -> Wanted {
    Wanted {
        optional: true,
        ..wanted(key, of, path)
    }
}

const fn second(key: &'static str, of: &'static str, path: &'static [&'static str]) -> Wanted {
    Wanted {
        plus: 8,
        ..wanted(key, of, path)
    }
}

/// All kinds begin with struct sock_common.
const COMMON: [Wanted; 12] = [
    wanted("family", "sock_common", &["skc_family"]),
    wanted("local port", "sock_common", &["skc_num"]),
    wanted("peer port", "sock_common", &["skc_dport"]),
    wanted("reuse", "sock_common", &["skc_reuse"]),
    wanted("reuseport", "sock_common", &["skc_reuseport"]),
    wanted("device", "sock_common", &["skc_bound_dev_if"]),
    wanted("local", "sock_common", &["skc_rcv_saddr"]),
    wanted("peer", "sock_common", &["skc_daddr"]),
    wanted("local6", "sock_common", &["skc_v6_rcv_saddr"]),
    second("local6+", "sock_common", &["skc_v6_rcv_saddr"]),
    wanted("peer6", "sock_common", &["skc_v6_daddr"]),
    second("peer6+", "sock_common", &["skc_v6_daddr"]),
];

const FULL: [Wanted; 27] = [
    wanted("socket", "sock", &["sk_socket"]),
    wanted("snd_una", "tcp_sock", &["snd_una"]),
    wanted("snd_nxt", "tcp_sock", &["snd_nxt"]),
    wanted("write_seq", "tcp_sock", &["write_seq"]),
    wanted("rcv_nxt", "tcp_sock", &["rcv_nxt"]),
    wanted("rcv_wup", "tcp_sock", &["rcv_wup"]),
    wanted("rcv_wnd", "tcp_sock", &["rcv_wnd"]),
    wanted("snd_wl1", "tcp_sock", &["snd_wl1"]),
    wanted("snd_wnd", "tcp_sock", &["snd_wnd"]),
    wanted("max_window", "tcp_sock", &["max_window"]),
    wanted("window_clamp", "tcp_sock", &["window_clamp"]),
    wanted("mss_cache", "tcp_sock", &["mss_cache"]),
    wanted("snd_cwnd", "tcp_sock", &["snd_cwnd"]),
    wanted("snd_ssthresh", "tcp_sock", &["snd_ssthresh"]),
    wanted("srtt", "tcp_sock", &["srtt_us"]),
    wanted("tsoffset", "tcp_sock", &["tsoffset"]),
    optional("usec", "tcp_sock", &["tcp_usec_ts"]),
    wanted("ecn", "tcp_sock", &["ecn_flags"]),
    wanted("ts_recent", "tcp_sock", &["rx_opt", "ts_recent"]),
    wanted("tstamp_ok", "tcp_sock", &["rx_opt", "tstamp_ok"]),
    wanted("wscale_ok", "tcp_sock", &["rx_opt", "wscale_ok"]),
    wanted("sack_ok", "tcp_sock", &["rx_opt", "sack_ok"]),
    wanted("snd_wscale", "tcp_sock", &["rx_opt", "snd_wscale"]),
    wanted("rcv_wscale", "tcp_sock", &["rx_opt", "rcv_wscale"]),
    wanted("mss_clamp", "tcp_sock", &["rx_opt", "mss_clamp"]),
    wanted("sndbuf", "sock", &["sk_sndbuf"]),
    wanted("rcvbuf", "sock", &["sk_rcvbuf"]),
];

const TIME_WAITING: [Wanted; 10] = [
    wanted("substate", "inet_timewait_sock", &["tw_substate"]),
    wanted("rcv_wscale", "inet_timewait_sock", &["tw_rcv_wscale"]),
    optional("usec", "inet_timewait_sock", &["tw_usec_ts"]),
    wanted("rcv_nxt", "sock_common", &["skc_tw_rcv_nxt"]),
    wanted("snd_nxt", "sock_common", &["skc_tw_snd_nxt"]),
    wanted("rcv_wnd", "tcp_timewait_sock", &["tw_rcv_wnd"]),
    wanted("tsoffset", "tcp_timewait_sock", &["tw_ts_offset"]),
    wanted("ts_recent", "tcp_timewait_sock", &["tw_ts_recent"]),
    wanted("stamped", "tcp_timewait_sock", &["tw_ts_recent_stamp"]),
    // Not without CONFIG_TCP_MD5SIG.
    optional("key", "tcp_timewait_sock", &["tw_md5_key"]),
];

/// struct tcp_request_sock begins with a struct inet_request_sock, and that with a struct request_sock.
const REQUEST: [Wanted; 15] = [
    wanted("isn", "tcp_request_sock", &["snt_isn"]),
    wanted("peer_isn", "tcp_request_sock", &["rcv_isn"]),
    wanted("tsoffset", "tcp_request_sock", &["ts_off"]),
    optional("usec", "tcp_request_sock", &["req_usec_ts"]),
    // Not without CONFIG_MPTCP, CONFIG_TCP_AO.
    optional("mptcp", "tcp_request_sock", &["is_mptcp"]),
    optional("ao", "tcp_request_sock", &["used_tcp_ao"]),
    wanted("mss", "request_sock", &["mss"]),
    wanted("window", "sock_common", &["skc_rcv_wnd"]),
    wanted("ts_recent", "request_sock", &["ts_recent"]),
    wanted("snd_wscale", "inet_request_sock", &["snd_wscale"]),
    wanted("rcv_wscale", "inet_request_sock", &["rcv_wscale"]),
    wanted("wscale_ok", "inet_request_sock", &["wscale_ok"]),
    wanted("tstamp_ok", "inet_request_sock", &["tstamp_ok"]),
    wanted("sack_ok", "inet_request_sock", &["sack_ok"]),
    wanted("ecn", "inet_request_sock", &["ecn_ok"]),
];

type Places = HashMap<&'static str, (usize, Field)>;

/// Where the fields of one kind lie, and which values of a record they are.
fn places(btf: &Btf, own: &[Wanted]) -> Result<(Places, [u32; FIELDS]), Failure> {
    let mut structures = HashMap::new();
    let (mut places, mut offsets) = (Places::new(), [ABSENT; FIELDS]);
    for (i, w) in COMMON.iter().chain(own).enumerate() {
        let structure = structures
            .entry(w.of)
            .or_insert_with(|| btf.structure(w.of));
        match structure.and_then(|s| btf.field(s, w.path)) {
            Some(field) => {
                offsets[i] = field.at + w.plus;
                places.insert(w.key, (i, field));
            }
            None if w.optional => {}
            None => return Err(format!("this kernel has no {}.{}", w.of, w.path.join(".")).into()),
        }
    }
    Ok((places, offsets))
}

/// The program in the kernel, and how its records are read.
struct Loaded {
    object: Object,
    full: Places,
    time_wait: Places,
    request: Places,
}

impl Loaded {
    fn new() -> Result<Self, Failure> {
        let btf =
            Btf::kernel().ok_or("this kernel has no type information (CONFIG_DEBUG_INFO_BTF)")?;
        let (full, full_offsets) = places(btf, &FULL)?;
        let (time_wait, time_wait_offsets) = places(btf, &TIME_WAITING)?;
        let (request, request_offsets) = places(btf, &REQUEST)?;
        let common = btf.structure("sock_common");
        let state = common.and_then(|s| btf.field(s, &["skc_state"]));
        let asked = Asked {
            // SYN_RECV (TCP_FASTOPEN), FIN_WAIT1, FIN_WAIT2, TIME_WAIT, LAST_ACK, CLOSING.
            states: 1 << 3
                | 1 << 4
                | 1 << 5
                | 1 << TIME_WAIT
                | 1 << 9
                | 1 << 11
                | 1 << NEW_SYN_RECV,
            state: state.ok_or("this kernel has no sock_common.skc_state")?.at,
            full: full_offsets,
            time_wait: time_wait_offsets,
            request: request_offsets,
        };
        let mut object = Object::load(OBJECT, &[PROGRAM])?;
        object.map::<Array<_, Asked>>("ASKED")?.set(0, asked, 0)?;
        Ok(Self {
            object,
            full,
            time_wait,
            request,
        })
    }

    /// All records of the caller's namespace.
    fn read(&mut self) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        self.object.pass(PROGRAM)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

fn loaded() -> &'static Result<Mutex<Loaded>, Failure> {
    static LOADED: OnceLock<Result<Mutex<Loaded>, Failure>> = OnceLock::new();
    LOADED.get_or_init(|| {
        let loaded = Loaded::new();
        if let Err(e) = &loaded {
            tracing::warn!("sockets that no process holds are not read: {e}");
        }
        loaded.map(Mutex::new)
    })
}

/// Whether this kernel can be read; the first call loads the program, which takes longer than a blackout should.
pub(super) fn readable() -> bool {
    loaded().is_ok()
}

/// One socket's values.
pub(super) struct Values<'a> {
    record: Record,
    places: &'a Places,
}

impl Values<'_> {
    /// It has ended, or waits for the peer's FIN: a struct tcp_timewait_sock.
    pub(super) fn is_time_wait(&self) -> bool {
        self.record.state == TIME_WAIT
    }

    /// Its handshake is under way: a struct tcp_request_sock.
    pub(super) fn is_request(&self) -> bool {
        self.record.state == NEW_SYN_RECV
    }

    /// Where it lies in the kernel's memory.
    pub(super) fn address(&self) -> u64 {
        self.record.socket
    }

    pub(super) fn state(&self) -> u8 {
        self.record.state as u8
    }

    /// A value; 0 for what this kernel does not have.
    pub(super) fn long(&self, key: &str) -> u64 {
        self.places
            .get(key)
            .map_or(0, |&(i, field)| field.of(self.record.values[i]))
    }

    pub(super) fn word(&self, key: &str) -> u32 {
        self.long(key) as u32
    }

    pub(super) fn is(&self, key: &str) -> bool {
        self.long(key) != 0
    }
}

/// Hands every socket of the caller's namespace that has sent its FIN, or has not got the ACK of its SYN-ACK, to `each`.
pub(super) fn each(each: &mut dyn FnMut(&Values<'_>)) -> Result<(), Failure> {
    const WORDS: usize = FIELDS + 2;
    let loaded = loaded().as_ref().map_err(|e| e.to_string())?;
    let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = loaded.read()?;
    for chunk in bytes.chunks_exact(mem::size_of::<Record>()) {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(chunk.chunks_exact(8)) {
            let mut b = [0; 8];
            b.copy_from_slice(bytes);
            *word = u64::from_ne_bytes(b);
        }
        let mut values = [0; FIELDS];
        values.copy_from_slice(&words[2..]);
        let record = Record {
            socket: words[0],
            state: words[1],
            values,
        };
        let places = match record.state {
            TIME_WAIT => &loaded.time_wait,
            NEW_SYN_RECV => &loaded.request,
            _ => &loaded.full,
        };
        each(&Values { record, places });
    }
    Ok(())
}
