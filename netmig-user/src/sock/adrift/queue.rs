//! The object `queues`: what sockets without a descriptor still have to send, out of the kernel's memory.
//!
//! The bytes lie in pages, of which a segment knows the `struct page`. Where the page itself is follows by a constant of the running kernel
//! (`vmemmap_base` and `page_offset_base`, which not every kernel tells): see [`Memory::find`].
use std::{
    collections::HashMap,
    fs,
    io::Read as _,
    mem::{offset_of, size_of},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd, OwnedFd},
    sync::{Mutex, OnceLock, PoisonError},
};

use aya::{
    include_bytes_aligned,
    maps::{Array, RingBuf},
};
use netmig_common::queues::{
    ALL, Asked, BYTES, FROM, FULL, Head, MARKS, PAGE, Pass, Places, Search,
};
use nix::{
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, getsockname, socket,
    },
    unistd::{SysconfVar, sysconf},
};

use crate::{
    sock::{
        btf::Btf,
        iter::{Failure, Object},
        repair::Repair,
    },
    sys::sockopt::{self, number::TCP_SEND_QUEUE},
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/queues"));
const QUEUES: &str = "nm_queues";
const SEARCH: &str = "nm_search";

/// FIN_WAIT1, LAST_ACK, CLOSING: what may have bytes to send after a close.
const CLOSED: u32 = 1 << 4 | 1 << 9 | 1 << 11;
const ESTABLISHED: u32 = 1 << 1;

/// Kernel memory is mapped where the kernel likes, in steps of this (PUD_SIZE; kernel_randomize_memory).
const STEP: u64 = 1 << 30;

/// Where everything lies in the running kernel.
fn places(btf: &Btf) -> Result<(Places, u32), Failure> {
    let at = |of: &str, path: &[&str]| {
        let field = btf.structure(of).and_then(|s| btf.field(s, path));
        let field = field.map(|f| f.at);
        field.ok_or_else(|| format!("this kernel has no {of}.{}", path.join(".")))
    };
    let size = |of: &str| btf.structure(of).and_then(|s| btf.size(s));
    // Pages are bio_vecs before 6.9.
    let (piece, page, len, offset) = match btf.structure("skb_frag") {
        Some(_) => ("skb_frag", "netmem", "len", "offset"),
        None => ("bio_vec", "bv_page", "bv_len", "bv_offset"),
    };
    let piece_size = size(piece).ok_or("this kernel has no skb_frag_t")?;
    let places = Places {
        state: at("sock_common", &["skc_state"])?,
        port: at("sock_common", &["skc_num"])?,
        unsent: at("sock", &["sk_write_queue"])?,
        sent: at("sock", &["tcp_rtx_queue"])?,
        parent: at("rb_node", &["__rb_parent_color"])?,
        left: at("rb_node", &["rb_left"])?,
        right: at("rb_node", &["rb_right"])?,
        node: at("sk_buff", &["rbnode"])?,
        next: at("sk_buff", &["next"])?,
        len: at("sk_buff", &["len"])?,
        data_len: at("sk_buff", &["data_len"])?,
        head: at("sk_buff", &["head"])?,
        end: at("sk_buff", &["end"])?,
        data: at("sk_buff", &["data"])?,
        seq: at("sk_buff", &["cb"])? + at("tcp_skb_cb", &["seq"])?,
        pieces: at("skb_shared_info", &["nr_frags"])?,
        piece: at("skb_shared_info", &["frags"])?,
        list: at("skb_shared_info", &["frag_list"])?,
        page: at(piece, &[page])?,
        page_offset: at(piece, &[offset])?,
        page_len: at(piece, &[len])?,
        piece_size: u32::try_from(piece_size)?,
    };
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE)?.unwrap_or(0))?;
    let described = size("page").ok_or("this kernel has no struct page")? as u64;
    if !page.is_power_of_two() || !described.is_power_of_two() || page <= described {
        return Err(format!("pages of {page} bytes are described by {described}").into());
    }
    Ok((places, page.ilog2() - described.ilog2()))
}

/// The programs in the kernel.
struct Loaded {
    object: Object,
    asked: Asked,
}

/// The bytes of one stream, by socket.
pub(super) type Streams = HashMap<u64, Vec<(u32, Vec<u8>)>>;

impl Loaded {
    fn new() -> Result<Self, Failure> {
        let btf =
            Btf::kernel().ok_or("this kernel has no type information (CONFIG_DEBUG_INFO_BTF)")?;
        let (places, shift) = places(btf)?;
        let mut loaded = Self {
            object: Object::load(OBJECT, &[QUEUES, SEARCH])?,
            asked: Asked {
                states: ESTABLISHED,
                places,
                shift,
                ..Asked::default()
            },
        };
        loaded.asked.base = Memory::find(&mut loaded)?;
        (loaded.asked.states, loaded.asked.port) = (CLOSED, 0);
        Ok(loaded)
    }

    /// Calls a program for every socket of the caller's namespace.
    fn run(&mut self, name: &str) -> Result<(), Failure> {
        let mut nothing = Vec::new();
        self.object.pass(name)?.read_to_end(&mut nothing)?;
        Ok(())
    }

    /// Hands every record to `each`: its head and its bytes.
    fn records(&mut self, each: &mut dyn FnMut(Head, &[u8])) -> Result<(), Failure> {
        let asked = self.asked;
        self.object
            .map::<Array<_, Asked>>("ASKED")?
            .set(0, asked, 0)?;
        let mut pass = Pass {
            state: ALL,
            ..Pass::default()
        };
        loop {
            self.object.map::<Array<_, Pass>>("PASS")?.set(0, pass, 0)?;
            self.run(QUEUES)?;
            let mut some = false;
            let mut ring: RingBuf<_> = self.object.map("RECORDS")?;
            while let Some(record) = ring.next() {
                let (head, bytes) = parsed(&record).ok_or("a record is cut off")?;
                each(head, bytes);
                some = true;
            }
            pass = self.object.map::<Array<_, Pass>>("PASS")?.get(&0, 0)?;
            if pass.state != FULL || !some {
                return Ok(());
            }
            pass.state = FROM;
        }
    }

    fn streams(&mut self) -> Result<Streams, Failure> {
        let mut streams = Streams::new();
        self.records(&mut |head, bytes| {
            if head.what == BYTES {
                let stream = streams.entry(head.socket).or_default();
                stream.push((head.seq, bytes.to_vec()));
            }
        })?;
        Ok(streams)
    }
}

fn parsed(record: &[u8]) -> Option<(Head, &[u8])> {
    let (head, bytes) = record.split_at_checked(size_of::<Head>())?;
    let word = |at: usize| Some(u32::from_ne_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let head = Head {
        socket: long(head, offset_of!(Head, socket))?,
        seq: word(offset_of!(Head, seq))?,
        what: word(offset_of!(Head, what))?,
    };
    Some((head, bytes))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

/// A connection of ours, to nobody, whose queue has known bytes; in repair, so that nothing leaves and nothing stays.
struct Memory {
    _fd: OwnedFd,
    port: u16,
    bytes: Vec<u8>,
}

impl Memory {
    /// More than one page, and than one segment.
    const SIZE: usize = 200_000;
    /// Numbers run over.
    const FIRST: u32 = u32::MAX - 1000;

    /// What is to be added to a `struct page *`, shifted, to have the page's address.
    ///
    /// The page of a known text is looked for in all places where it can be: its address is known but for the beginning of the mapping of all
    /// memory, which is a multiple of [`STEP`]. They are tried from below, so nothing beyond that mapping is touched before the page is found
    /// (there may be registers of devices). Then all of the text is read in that way.
    fn find(loaded: &mut Loaded) -> Result<u64, Failure> {
        let memory = Self::new()?;
        loaded.asked.port = u32::from(memory.port);
        let mut page = None;
        loaded.records(&mut |head, bytes| {
            if head.what == PAGE {
                page = Some((head.socket, long(bytes, 0), long(bytes, 8)));
            }
        })?;
        let Some((socket, Some(page), Some(offset))) = page else {
            return Err("a queue with known bytes has no page".into());
        };
        let shifted = page.wrapping_shl(loaded.asked.shift).wrapping_add(offset);
        let end = end_of_memory()?.next_multiple_of(STEP);
        let lowest = socket.saturating_sub(end).next_multiple_of(STEP);
        let mut marks = [0; MARKS];
        for (i, mark) in marks.iter_mut().enumerate() {
            *mark = long(&memory.bytes, i * 8).ok_or("too few bytes")?;
        }
        let search = Search {
            first: lowest + shifted % STEP,
            step: STEP,
            count: 2 * end / STEP,
            marks,
            found: 0,
        };
        loaded
            .object
            .map::<Array<_, Search>>("SEARCH")?
            .set(0, search, 0)?;
        loaded.run(SEARCH)?;
        let found = loaded
            .object
            .map::<Array<_, Search>>("SEARCH")?
            .get(&0, 0)?;
        if found.found == 0 {
            return Err("a page of known content is not where pages are".into());
        }
        loaded.asked.base = found.found.wrapping_sub(shifted);
        let streams = loaded.streams()?;
        let read = streams
            .get(&socket)
            .and_then(|pieces| whole(pieces, Self::FIRST, Self::SIZE));
        if read.as_ref() != Some(&memory.bytes) {
            return Err("known bytes are not read as they are".into());
        }
        Ok(loaded.asked.base)
    }

    fn new() -> Result<Self, Failure> {
        const NOBODY: u16 = 1;
        const ROOM: i32 = 1 << 20;
        let mut bytes = vec![0; Self::SIZE];
        fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let at = |port| SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        let fd = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        sockopt::set_int(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, ROOM)?;
        let repair = Repair::enter(&fd, 0, &"a connection to nobody")?;
        repair.set_seq(TCP_SEND_QUEUE, Self::FIRST)?;
        bind(fd.as_raw_fd(), &at(0))?;
        connect(fd.as_raw_fd(), &at(NOBODY))?;
        repair.refill(TCP_SEND_QUEUE, &bytes)?;
        // So its end is silent (tcp_close).
        repair.stay();
        let port = getsockname::<SockaddrIn>(fd.as_raw_fd())?.port();
        Ok(Self {
            _fd: fd,
            port,
            bytes,
        })
    }
}

/// Physical address behind the last page (/proc/zoneinfo).
fn end_of_memory() -> Result<u64, Failure> {
    let zones = fs::read_to_string("/proc/zoneinfo")?;
    let (mut spanned, mut end) = (0, 0);
    for line in zones.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next(), words.next().and_then(|v| v.parse().ok()));
        match (name, value) {
            (Some("spanned"), Some(pages)) => spanned = pages,
            (Some("start_pfn:"), Some(first)) => end = end.max(spanned + first),
            _ => {}
        }
    }
    let page = u64::try_from(sysconf(SysconfVar::PAGE_SIZE)?.unwrap_or(0))?;
    let end: u64 = end * page;
    (end > 0)
        .then_some(end)
        .ok_or_else(|| "/proc/zoneinfo names no memory".into())
}

/// The `len` bytes from number `from` on; none: some are missing.
pub(super) fn whole(pieces: &[(u32, Vec<u8>)], from: u32, len: usize) -> Option<Vec<u8>> {
    let at = |seq: u32| seq.wrapping_sub(from).cast_signed();
    let mut pieces: Vec<_> = pieces
        .iter()
        .map(|(seq, bytes)| (at(*seq), bytes))
        .collect();
    pieces.sort_by_key(|(at, _)| *at);
    let mut stream = Vec::with_capacity(len);
    for (at, bytes) in pieces {
        let known = i32::try_from(stream.len()).ok()?.checked_sub(at)?;
        let new = bytes.get(usize::try_from(known).ok()?..);
        stream.extend_from_slice(new.unwrap_or_default());
    }
    (stream.len() == len).then_some(stream)
}

fn loaded() -> &'static Result<Mutex<Loaded>, Failure> {
    static LOADED: OnceLock<Result<Mutex<Loaded>, Failure>> = OnceLock::new();
    LOADED.get_or_init(|| {
        let loaded = Loaded::new();
        if let Err(e) = &loaded {
            tracing::warn!("what closed connections still have to send is not read: {e}");
        }
        loaded.map(Mutex::new)
    })
}

/// Whether queues can be read here; the first call finds out how, which takes longer than a blackout should.
pub(super) fn readable() -> bool {
    loaded().is_ok()
}

/// What the sockets of the caller's namespace that their programs have closed still have to send.
pub(super) fn streams() -> Result<Streams, Failure> {
    let loaded = loaded().as_ref().map_err(|e| e.to_string())?;
    let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
    loaded.streams()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_a_stream_or_have_a_hole() {
        let from = u32::MAX - 1;
        let pieces = [
            (2, b"efg".to_vec()),
            (u32::MAX - 3, b"yzab".to_vec()),
            (0, b"cd".to_vec()),
        ];
        assert_eq!(whole(&pieces, from, 7).as_deref(), Some(&b"abcdefg"[..]));
        assert_eq!(whole(&pieces, from, 8), None);
        assert_eq!(whole(&pieces[..2], from, 7), None);
        assert_eq!(whole(&[], from, 0), Some(Vec::new()));
    }
}
