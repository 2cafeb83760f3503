//! The running kernel's type information (Documentation/bpf/btf.rst): numbers of its functions, and where the fields of its structures lie.
use std::{fs, sync::OnceLock};

/// Type information, native byte order.
pub(super) struct Btf {
    bytes: Vec<u8>,
    /// Where each type begins; the first one, void, nowhere.
    types: Vec<usize>,
    names: usize,
}

/// Where a field lies in its structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Offset in bytes.
    pub at: u32,
    /// Lowest bit of it there.
    shift: u32,
    /// How many bits; at most 64 count.
    bits: u32,
}

impl Field {
    /// The same in the aligned eight bytes that it lies in: where those begin, and it there; none: it is in two of them.
    pub(super) fn in_word(self) -> Option<(usize, Self)> {
        let begin = self.at & !7;
        let shift = (self.at - begin) * 8 + self.shift;
        let field = Self {
            at: begin,
            shift,
            ..self
        };
        (shift + self.bits.clamp(1, 64) <= 64).then_some((begin as usize, field))
    }

    /// Its value in the eight bytes that begin at `at`.
    pub(super) fn of(self, bytes: u64) -> u64 {
        let mask = u64::MAX >> (64 - self.bits.clamp(1, 64));
        bytes >> self.shift & mask
    }
}

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

impl Btf {
    /// The running kernel's, read once; none: it has none.
    pub(super) fn kernel() -> Option<&'static Self> {
        static KERNEL: OnceLock<Option<Btf>> = OnceLock::new();
        KERNEL
            .get_or_init(|| Self::parse(fs::read("/sys/kernel/btf/vmlinux").ok()?))
            .as_ref()
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let word = |at: usize| word(&bytes, at);
        let header = word(4)?;
        let mut at = header + word(8)?;
        let end = at + word(12)?;
        let names = header + word(16)?;
        let mut types = vec![usize::MAX];
        while at < end {
            types.push(at);
            let info = word(at + 4)?;
            let members = info & 0xffff;
            at += 12
                + match kind(info) {
                    INT | VAR | DECL_TAG => 4,
                    ARRAY => 12,
                    STRUCT | UNION | DATASEC | ENUM64 => members * 12,
                    ENUM | FUNC_PROTO => members * 8,
                    _ => 0,
                };
        }
        Some(Self {
            bytes,
            types,
            names,
        })
    }

    /// Number of a function.
    pub(super) fn function(&self, name: &str) -> Option<u32> {
        self.find(FUNC, name).and_then(|id| u32::try_from(id).ok())
    }

    /// Number of a structure.
    pub(super) fn structure(&self, name: &str) -> Option<usize> {
        self.find(STRUCT, name)
    }

    /// A field of a structure, by the names that lead to it.
    pub(super) fn field(&self, structure: usize, path: &[&str]) -> Option<Field> {
        let mut id = structure;
        let (mut bit, mut bits) = (0, 0);
        for name in path {
            let member = self.member(self.plain(id)?, name)?;
            (id, bits) = (member.id, member.bits);
            bit += member.bit;
        }
        if bits == 0 {
            bits = self.size(id)? * 8;
        }
        Some(Field {
            at: u32::try_from(bit / 8).ok()?,
            shift: u32::try_from(bit % 8).ok()?,
            bits: u32::try_from(bits).ok()?,
        })
    }

    fn find(&self, wanted: u32, name: &str) -> Option<usize> {
        (1..self.types.len()).find(|&id| {
            self.info(id).map(kind) == Some(wanted) && self.is_named(self.types[id], name)
        })
    }

    /// A member, in anonymous structures and unions too.
    fn member(&self, id: usize, name: &str) -> Option<Member> {
        let info = self.info(id)?;
        if !matches!(kind(info), STRUCT | UNION) {
            return None;
        }
        let bitfields = info >> 31 != 0;
        for i in 0..info & 0xffff {
            let at = self.types[id] + 12 + i * 12;
            let offset = word(&self.bytes, at + 8)?;
            let (bit, bits) = if bitfields {
                (offset & 0xff_ffff, offset >> 24)
            } else {
                (offset, 0)
            };
            let member = Member {
                id: word(&self.bytes, at + 4)?,
                bit,
                bits,
            };
            if self.is_named(at, name) {
                return Some(member);
            }
            if self.is_named(at, "")
                && let Some(within) = self.member(self.plain(member.id)?, name)
            {
                return Some(Member {
                    bit: bit + within.bit,
                    ..within
                });
            }
        }
        None
    }

    /// Without typedefs, qualifiers and tags.
    fn plain(&self, mut id: usize) -> Option<usize> {
        while let 8..=11 | 18 = kind(self.info(id)?) {
            id = word(&self.bytes, self.types[id] + 8)?;
        }
        Some(id)
    }

    /// Bytes of a type; of an array those that are read at once.
    pub(super) fn size(&self, id: usize) -> Option<usize> {
        let id = self.plain(id)?;
        match kind(self.info(id)?) {
            INT | STRUCT | UNION | ENUM | ENUM64 => word(&self.bytes, self.types[id] + 8),
            PTR | ARRAY => Some(8),
            _ => None,
        }
    }

    fn info(&self, id: usize) -> Option<usize> {
        word(&self.bytes, self.types.get(id)?.checked_add(4)?)
    }

    /// Whether the name whose offset stands at `at` is this one.
    fn is_named(&self, at: usize, name: &str) -> bool {
        let text = word(&self.bytes, at).and_then(|offset| self.bytes.get(self.names + offset..));
        text.is_some_and(|text| {
            text.starts_with(name.as_bytes()) && text.get(name.len()) == Some(&0)
        })
    }
}

struct Member {
    id: usize,
    bit: usize,
    /// Of a bit field; else 0.
    bits: usize,
}

fn kind(info: usize) -> u32 {
    (info >> 24 & 0x1f) as u32
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_ne_bytes(word)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_and_fields_are_found_in_the_kernel() {
        let btf = Btf::kernel().expect("type information");
        let [rcv, close] = ["tcp_v4_rcv", "tcp_close"].map(|name| btf.function(name));
        assert!(rcv.is_some() && close.is_some() && rcv != close);
        assert_eq!(btf.function("no_such_function"), None);
        let field = |name, path: &[&str]| btf.field(btf.structure(name)?, path);
        let head = Field {
            at: 0,
            shift: 0,
            bits: 32,
        };
        // Two unions deep, and behind typedefs.
        assert_eq!(field("sock_common", &["skc_daddr"]), Some(head));
        let nested = field("tcp_sock", &["rx_opt", "ts_recent"]).expect("a field");
        assert!(nested.at > 0 && nested.bits == 32, "{nested:?}");
        let scale = field("tcp_options_received", &["snd_wscale"]).expect("a bit field");
        assert_eq!(scale.bits, 4);
        assert_eq!(field("tcp_sock", &["no_such_field"]), None);
        assert_eq!(field("no_such_structure", &["at"]), None);
        assert!(Btf::parse(b"short".to_vec()).is_none());
    }

    #[test]
    fn bits_are_cut_out() {
        let field = |shift, bits| Field { at: 0, shift, bits };
        assert_eq!(field(0, 64).of(u64::MAX), u64::MAX);
        assert_eq!(field(0, 128).of(7), 7);
        assert_eq!(field(4, 4).of(0xab), 0xa);
    }
}
