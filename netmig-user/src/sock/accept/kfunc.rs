//! The object `accept`, loaded and attached.
use std::{
    fmt,
    sync::{Mutex, OnceLock, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{HashMap, MapData},
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use netmig_common::{
    FlowKey,
    accept::{HalfOpen, KFUNC_PLACE, Waiting},
};

use crate::sock::{btf::Btf, iter::Failure};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/accept"));
const KFUNC: &str = "bpf_sk_assign_tcp_reqsk";
const AT_LO: &str = "nm_accept";
const AT_LINKS: &str = "nm_half_open";
const PROGRAMS: [&str; 2] = [AT_LO, AT_LINKS];

/// Number of the kernel's function in its own type information; none: older than 6.9, or without type information.
pub(super) fn number() -> Option<u32> {
    static NUMBER: OnceLock<Option<u32>> = OnceLock::new();
    *NUMBER.get_or_init(|| Btf::kernel()?.function(KFUNC))
}

/// Objects that were loaded ahead, for the next [`Program::attach`] at `lo` and at links.
static AHEAD: Mutex<Vec<Ebpf>> = Mutex::new(Vec::new());

/// Loads the objects for the next [`Program::attach`]: that takes longer than a blackout should.
pub(super) fn load_ahead() -> Result<(), Failure> {
    let mut ahead = AHEAD.lock().unwrap_or_else(PoisonError::into_inner);
    while ahead.len() < PROGRAMS.len() {
        ahead.push(load()?);
    }
    Ok(())
}

/// Unloads those that nobody has needed.
pub(super) fn unload() {
    AHEAD.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn load() -> Result<Ebpf, Failure> {
    let number = number().ok_or("this kernel has no bpf_sk_assign_tcp_reqsk (Linux 6.9)")?;
    let mut object = OBJECT.to_vec();
    fill_in(&mut object, number).ok_or("the embedded object is malformed")?;
    // Nothing in the object depends on where a kernel has its fields.
    let mut object = EbpfLoader::new().btf(None).load(&object)?;
    for name in PROGRAMS {
        program(&mut object, name)?.load()?;
    }
    Ok(object)
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Failure> {
    Ok(object
        .program_mut(name)
        .ok_or("the embedded object lacks its program")?
        .try_into()?)
}

/// A program at links of the caller's namespace, until it is dropped.
pub(super) struct Program(Ebpf);

impl Program {
    /// For what is delivered through `lo`.
    pub(super) fn at_lo() -> Result<Self, Failure> {
        Self::attach(AT_LO, &["lo"])
    }

    /// For handshakes under way.
    pub(super) fn at_links(links: &[&str]) -> Result<Self, Failure> {
        Self::attach(AT_LINKS, links)
    }

    fn attach(name: &str, links: &[&str]) -> Result<Self, Failure> {
        let ahead = AHEAD.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut object = match ahead {
            Some(object) => object,
            None => load()?,
        };
        for link in links {
            // Last: a gate there has the first word.
            program(&mut object, name)?
                .attach_with_options(
                    link,
                    TcAttachType::Ingress,
                    TcAttachOptions::TcxOrder(LinkOrder::last()),
                )
                .map_err(|e| format!("attaching to {link}: {e}"))?;
        }
        Ok(Self(object))
    }

    pub(super) fn offer(&mut self, key: &FlowKey, waiting: &Waiting) -> Result<(), Failure> {
        Ok(self.map::<Waiting>("WAITING")?.insert(key, waiting, 0)?)
    }

    pub(super) fn outcome(&mut self, key: &FlowKey) -> Result<i32, Failure> {
        Ok(self.map::<Waiting>("WAITING")?.get(key, 0)?.outcome)
    }

    pub(super) fn expect(&mut self, key: &FlowKey, half: &HalfOpen) -> Result<(), Failure> {
        Ok(self.map::<HalfOpen>("HALF_OPEN")?.insert(key, half, 0)?)
    }

    pub(super) fn half_open(&mut self, key: &FlowKey) -> Result<HalfOpen, Failure> {
        Ok(self.map("HALF_OPEN")?.get(key, 0)?)
    }

    fn map<V: aya::Pod>(
        &mut self,
        name: &str,
    ) -> Result<HashMap<&mut MapData, FlowKey, V>, Failure> {
        let map = self
            .0
            .map_mut(name)
            .ok_or("the embedded object lacks its map")?;
        Ok(HashMap::try_from(map)?)
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Program")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_filled_in() {
        let mut object = OBJECT.to_vec();
        let place = KFUNC_PLACE.to_le_bytes();
        let calls = |object: &[u8]| object.windows(4).filter(|w| *w == place).count();
        assert_eq!(calls(&object), 2, "one at lo, and one at links");
        assert_eq!(fill_in(&mut object, 77), Some(()));
        assert_eq!(calls(&object), 0);
        assert_eq!(fill_in(&mut object, 77), None);
        assert_eq!(fill_in(&mut [0; 10], 77), None);
    }
}
