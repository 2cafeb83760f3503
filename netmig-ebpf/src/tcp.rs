//! The TCP header and those of its options that matter here.
use aya_ebpf::{helpers::bpf_skb_load_bytes, programs::TcContext};
use netmig_common::Unhandled;

use crate::{packet::Packet, scratch::scratch};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

const HEADER: u32 = 20;
/// A power of two that holds the 40 bytes that options can have, so that an index can be masked.
const OPTIONS: usize = 64;

const NOP: u8 = 1;
const WINDOW_SCALE: u8 = 3;
const TIMESTAMPS: u8 = 8;
/// TCP-MD5 (RFC 2385).
const MD5: u8 = 19;
/// TCP-AO (RFC 5925).
const AO: u8 = 29;

/// A segment. Numbers in host byte order.
pub struct Segment {
    /// Offset of the header in the packet.
    pub offset: u32,
    /// Of the sender.
    pub source_port: u16,
    /// Of the receiver.
    pub destination_port: u16,
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Holds if [`Segment::has_ack`].
    pub ack: u32,
    /// As it stands in the header.
    pub window: u16,
    flags: u8,
    /// Length of the header with options.
    header: u32,
    /// Bytes of payload.
    pub payload: u32,
}

impl Segment {
    /// Reads the header.
    #[inline(always)]
    pub fn load(ctx: &TcContext, packet: &Packet) -> Result<Self, Unhandled> {
        let offset = packet.transport;
        let h = ctx
            .load::<[u8; HEADER as usize]>(offset as usize)
            .map_err(|_| Unhandled::Malformed)?;
        let header = u32::from(h[12] >> 4) * 4;
        if header < HEADER || offset + header > packet.end {
            return Err(Unhandled::Malformed);
        }
        Ok(Self {
            offset,
            source_port: u16::from_be_bytes([h[0], h[1]]),
            destination_port: u16::from_be_bytes([h[2], h[3]]),
            seq: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
            ack: u32::from_be_bytes([h[8], h[9], h[10], h[11]]),
            window: u16::from_be_bytes([h[14], h[15]]),
            flags: h[13],
            header,
            payload: packet.end - offset - header,
        })
    }

    /// Begins a connection, or answers such a segment.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.flags & SYN != 0
    }

    /// Ends one at once.
    #[inline(always)]
    pub fn is_rst(&self) -> bool {
        self.flags & RST != 0
    }

    /// Has an acknowledgement.
    #[inline(always)]
    pub fn has_ack(&self) -> bool {
        self.flags & ACK != 0
    }

    /// An ACK that takes no sequence space.
    #[inline(always)]
    pub fn is_pure_ack(&self) -> bool {
        self.payload == 0 && self.flags & (FIN | SYN | RST | ACK) == ACK
    }

    /// Has options.
    #[inline(always)]
    pub fn has_options(&self) -> bool {
        self.header > HEADER
    }

    /// The sequence number after this segment.
    #[inline(always)]
    pub fn end(&self) -> u32 {
        let syn = u32::from(self.flags & SYN != 0);
        let fin = u32::from(self.flags & FIN != 0);
        self.seq
            .wrapping_add(self.payload)
            .wrapping_add(syn)
            .wrapping_add(fin)
    }

    /// Reads the options into the scratch memory.
    #[inline(always)]
    pub fn options(&self, ctx: &TcContext) -> Result<Found, Unhandled> {
        let scratch = scratch().ok_or(Unhandled::Refused)?;
        // SAFETY: this CPU's memory, and the only reference to it; see `Scratch`.
        let options = unsafe { &mut (*scratch).options };
        // SAFETY: as above.
        let found = unsafe { &raw mut (*scratch).found };
        *options = [0; OPTIONS];
        // SAFETY: as above; volatile as `Scratch` says.
        unsafe {
            found.write_volatile(Found {
                tsval: 0,
                tsecr: 0,
                flags: 0,
                scale: 0,
            })
        };
        // One less than their length: 6.1's verifier learns bounds from `<` alone, and the compiler would make `!=` of `length > 0`.
        let but_one = opaque(u64::from(self.header.wrapping_sub(HEADER + 1)));
        if but_one < 40 {
            let length = (but_one + 1) as u32;
            // SAFETY: the skb is the program's context; `length` <= 40 bytes fit into `options`.
            let rc = unsafe {
                bpf_skb_load_bytes(
                    ctx.skb.skb.cast(),
                    self.offset + HEADER,
                    options.as_mut_ptr().cast(),
                    length,
                )
            };
            if rc != 0 {
                return Err(Unhandled::Malformed);
            }
            scan(options, found);
        }
        // SAFETY: as above.
        Ok(unsafe { found.read_volatile() })
    }
}

/// The same number, of which the compiler knows nothing: the comparisons that follow stay as they are written.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn opaque(mut n: u64) -> u64 {
    // SAFETY: it changes nothing.
    unsafe { core::arch::asm!("{n} += 0", n = inout(reg) n, options(pure, nomem, nostack)) };
    n
}

/// The same for a host.
#[cfg(not(target_arch = "bpf"))]
fn opaque(n: u64) -> u64 {
    n
}

#[inline(always)]
fn scan(options: &[u8; OPTIONS], found: *mut Found) {
    let at = |i: usize| options[i & (OPTIONS - 1)];
    let word = |i: usize| u32::from_be_bytes([at(i), at(i + 1), at(i + 2), at(i + 3)]);
    // SAFETY: `found` is this CPU's scratch memory; volatile as `Scratch` says.
    let flag = move |bit: u32| unsafe {
        let flags = &raw mut (*found).flags;
        flags.write_volatile(flags.read_volatile() | bit);
    };
    let mut i = 0;
    for _ in 0..40 {
        // Bytes past the header's end are 0, the end of the list.
        let kind = at(i);
        let size = if kind == NOP { 1 } else { at(i + 1) as usize };
        if kind == 0 || size == 0 {
            break;
        }
        match kind {
            WINDOW_SCALE => {
                // SAFETY: as above.
                unsafe { (&raw mut (*found).scale).write_volatile(at(i + 2).into()) };
                flag(Found::SCALE);
            }
            TIMESTAMPS => {
                // SAFETY: as above.
                unsafe {
                    (&raw mut (*found).tsval).write_volatile(word(i + 2));
                    (&raw mut (*found).tsecr).write_volatile(word(i + 6));
                }
                flag(Found::TIMESTAMPS);
            }
            MD5 | AO => flag(Found::SIGNED),
            _ => {}
        }
        i = (i + size) & (OPTIONS - 1);
    }
}

/// Options of a segment.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Found {
    tsval: u32,
    tsecr: u32,
    flags: u32,
    scale: u32,
}

impl Found {
    const SIGNED: u32 = 1;
    const TIMESTAMPS: u32 = 2;
    const SCALE: u32 = 4;

    /// TCP-MD5 or TCP-AO: the segment must stay as it is.
    #[inline(always)]
    pub fn is_signed(&self) -> bool {
        self.flags & Self::SIGNED != 0
    }

    /// TSval and TSecr.
    #[inline(always)]
    pub fn timestamps(&self) -> Option<(u32, u32)> {
        (self.flags & Self::TIMESTAMPS != 0).then_some((self.tsval, self.tsecr))
    }

    /// Shift of a SYN's window scale option.
    #[inline(always)]
    pub fn scale(&self) -> Option<u8> {
        (self.flags & Self::SCALE != 0).then_some(self.scale as u8)
    }
}
