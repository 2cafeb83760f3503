//! The object `survey`: one pass over the connections of a namespace.
use std::{
    io::Read as _,
    sync::{Mutex, OnceLock, PoisonError},
};

use aya::{include_bytes_aligned, maps::Array};
use netmig_common::survey::{Asked, WORDS};

use super::fields::Places;
use crate::sock::{
    btf::Btf,
    iter::{Failure, Object},
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/survey"));
const PROGRAM: &str = "nm_survey";

/// The program in the kernel, and how its records are read.
struct Loaded {
    object: Object,
    places: Places,
}

impl Loaded {
    fn new() -> Result<Self, Failure> {
        let btf =
            Btf::kernel().ok_or("this kernel has no type information (CONFIG_DEBUG_INFO_BTF)")?;
        let places = Places::find(btf)?;
        let mut object = Object::load(OBJECT, &[PROGRAM])?;
        object
            .map::<Array<_, Asked>>("ASKED")?
            .set(0, asked(btf, &places)?, 0)?;
        Ok(Self { object, places })
    }

    fn each(&mut self, each: &mut dyn FnMut(&Places, &[u64])) -> Result<(), Failure> {
        let mut records = self.object.pass(PROGRAM)?;
        let size = self.places.words.len() * 8;
        let mut bytes = vec![0; 64 << 10];
        let mut words = Vec::with_capacity(self.places.words.len());
        let mut held = 0;
        loop {
            let got = records.read(&mut bytes[held..])?;
            let end = held + got;
            let whole = end - end % size;
            for record in bytes[..whole].chunks_exact(size) {
                words.clear();
                words.extend(record.chunks_exact(8).map(|chunk| {
                    let mut word = [0; 8];
                    word.copy_from_slice(chunk);
                    u64::from_ne_bytes(word)
                }));
                each(&self.places, &words);
            }
            if got == 0 {
                return Ok(());
            }
            bytes.copy_within(whole..end, 0);
            held = end - whole;
        }
    }
}

fn asked(btf: &Btf, places: &Places) -> Result<Asked, Failure> {
    let field = |of: &'static str, path: &[&str]| {
        let structure = btf.structure(of);
        let found = structure.and_then(|s| btf.field(s, path));
        found
            .map(|field| field.at)
            .ok_or_else(|| format!("this kernel has no {of}.{}", path.join(".")))
    };
    let (family, socket, v6) = (
        field("sock_common", &["skc_family"])?,
        field("sock", &["sk_socket"])?,
        field("inet_sock", &["pinet6"])?,
    );
    let least = family.max(socket).max(v6) + 8;
    let (socket_bytes, v6_bytes) = places.bytes(least);
    let mut at = [0; WORDS];
    at[..places.words.len()].copy_from_slice(&places.words);
    Ok(Asked {
        // ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING.
        states: 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11,
        state: field("sock_common", &["skc_state"])?,
        family,
        socket,
        inode: field("socket_alloc", &["vfs_inode", "i_ino"])?
            - field("socket_alloc", &["socket"])?,
        v6,
        socket_bytes,
        v6_bytes,
        words: u32::try_from(places.words.len())?,
        at,
    })
}

fn loaded() -> &'static Result<Mutex<Loaded>, Failure> {
    static LOADED: OnceLock<Result<Mutex<Loaded>, Failure>> = OnceLock::new();
    LOADED.get_or_init(|| {
        let loaded = Loaded::new();
        if let Err(e) = &loaded {
            tracing::info!("every value of a connection is read by a system call: {e}");
        }
        loaded.map(Mutex::new)
    })
}

/// Whether this kernel can be read so, else why not; the first call loads the program, which takes longer than a blackout should.
pub(super) fn readable() -> Result<(), String> {
    loaded().as_ref().map(|_| ()).map_err(ToString::to_string)
}

/// Hands the record of every connection of the caller's namespace that somebody holds to `each`. Its first word is the inode.
pub(super) fn each(each: &mut dyn FnMut(&Places, &[u64])) -> Result<(), Failure> {
    let loaded = loaded().as_ref().map_err(|e| e.to_string())?;
    let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
    loaded.each(each)
}
