//! The object `accept`, loaded and attached at `lo`.
use std::{fs, sync::OnceLock};

use aya::{
    EbpfLoader, include_bytes_aligned,
    maps::HashMap,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use netmig_common::{
    FlowKey,
    accept::{KFUNC_PLACE, Waiting},
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/accept"));
const KFUNC: &str = "bpf_sk_assign_tcp_reqsk";
const PROGRAM: &str = "nm_accept";
const MAP: &str = "WAITING";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Number of the kernel's function in its own type information; none: older than 6.9, or without type information.
pub(super) fn number() -> Option<u32> {
    static NUMBER: OnceLock<Option<u32>> = OnceLock::new();
    *NUMBER.get_or_init(|| function(&fs::read("/sys/kernel/btf/vmlinux").ok()?, KFUNC))
}

/// The program at `lo` of the caller's namespace, until it is dropped.
pub(super) struct Program(aya::Ebpf);

impl Program {
    pub(super) fn attach() -> Result<Self, Failure> {
        let number = number().ok_or("this kernel has no bpf_sk_assign_tcp_reqsk (Linux 6.9)")?;
        let mut object = OBJECT.to_vec();
        fill_in(&mut object, number).ok_or("the embedded object is malformed")?;
        let mut object = EbpfLoader::new().load(&object)?;
        let program: &mut SchedClassifier = object
            .program_mut(PROGRAM)
            .ok_or("the embedded object lacks its program")?
            .try_into()?;
        program.load()?;
        // Last: a gate at `lo` has the first word.
        program.attach_with_options(
            "lo",
            TcAttachType::Ingress,
            TcAttachOptions::TcxOrder(LinkOrder::last()),
        )?;
        Ok(Self(object))
    }

    pub(super) fn offer(&mut self, key: &FlowKey, waiting: &Waiting) -> Result<(), Failure> {
        self.map()?.insert(key, waiting, 0)?;
        Ok(())
    }

    pub(super) fn outcome(&mut self, key: &FlowKey) -> Result<i32, Failure> {
        Ok(self.map()?.get(key, 0)?.outcome)
    }

    fn map(&mut self) -> Result<HashMap<&mut aya::maps::MapData, FlowKey, Waiting>, Failure> {
        let map = self
            .0
            .map_mut(MAP)
            .ok_or("the embedded object lacks its map")?;
        Ok(HashMap::try_from(map)?)
    }
}

/// Puts the kernel's number into every call of the function: BPF_PSEUDO_KFUNC_CALL (include/uapi/linux/bpf.h). None: no ELF of 64 bits, or
/// no such call in it.
fn fill_in(object: &mut [u8], number: u32) -> Option<()> {
    const CALL: u8 = 0x85;
    const KFUNC_CALL: u8 = 2 << 4;
    const SHF_EXECINSTR: u64 = 4;
    let long = |b: &[u8], at: usize| Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?));
    let short = |b: &[u8], at: usize| {
        Some(usize::from(u16::from_le_bytes(
            b.get(at..at + 2)?.try_into().ok()?,
        )))
    };
    let headers = usize::try_from(long(object, 0x28)?).ok()?;
    let (size, count) = (short(object, 0x3a)?, short(object, 0x3c)?);
    let mut filled = 0;
    for i in 0..count {
        let header = headers + i * size;
        if long(object, header + 0x08)? & SHF_EXECINSTR == 0 {
            continue;
        }
        let from = usize::try_from(long(object, header + 0x18)?).ok()?;
        let len = usize::try_from(long(object, header + 0x20)?).ok()?;
        for insn in object.get_mut(from..from + len)?.chunks_exact_mut(8) {
            if insn[..4] == [CALL, 0, 0, 0] && insn[4..] == KFUNC_PLACE.to_le_bytes() {
                insn[1] = KFUNC_CALL;
                insn[4..].copy_from_slice(&number.to_le_bytes());
                filled += 1;
            }
        }
    }
    (filled > 0).then_some(())
}

/// Number of a function in type information (Documentation/bpf/btf.rst), native byte order.
fn function(btf: &[u8], name: &str) -> Option<u32> {
    const FUNC: u32 = 12;
    let word = |at: usize| Some(u32::from_ne_bytes(btf.get(at..at + 4)?.try_into().ok()?));
    let offset = |at: usize| word(at).and_then(|w| usize::try_from(w).ok());
    let header = offset(4)?;
    let types = header + offset(8)?;
    let end = types + offset(12)?;
    let names = header + offset(16)?;
    let mut at = types;
    let mut number = 0;
    while at < end {
        number += 1;
        let info = word(at + 4)?;
        let members = usize::try_from(info & 0xffff).ok()?;
        let kind = info >> 24 & 0x1f;
        if kind == FUNC {
            let text = btf.get(names + offset(at)?..)?;
            if text.starts_with(name.as_bytes()) && text.get(name.len()) == Some(&0) {
                return Some(number);
            }
        }
        at += 12
            + match kind {
                // INT, VAR, DECL_TAG
                1 | 14 | 17 => 4,
                // ARRAY
                3 => 12,
                // STRUCT, UNION, DATASEC, ENUM64
                4 | 5 | 15 | 19 => members * 12,
                // ENUM, FUNC_PROTO
                6 | 13 => members * 8,
                _ => 0,
            };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_in_the_kernel() {
        let bytes = fs::read("/sys/kernel/btf/vmlinux").expect("type information");
        let [rcv, close] = ["tcp_v4_rcv", "tcp_close"].map(|name| function(&bytes, name));
        assert!(rcv.is_some() && close.is_some() && rcv != close);
        assert_eq!(function(&bytes, "no_such_function"), None);
        assert_eq!(function(b"short", "tcp_close"), None);
    }

    #[test]
    fn every_call_is_filled_in() {
        let mut object = OBJECT.to_vec();
        let place = KFUNC_PLACE.to_le_bytes();
        let calls = |object: &[u8]| object.windows(4).filter(|w| *w == place).count();
        assert_eq!(calls(&object), 2, "one for each family");
        assert_eq!(fill_in(&mut object, 77), Some(()));
        assert_eq!(calls(&object), 0);
        assert_eq!(fill_in(&mut object, 77), None);
        assert_eq!(fill_in(&mut [0; 10], 77), None);
    }
}
