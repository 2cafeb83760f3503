//! The mode word: all that decides what happens to a packet, in one u64, so that changing it is one atomic write.

/// What the gate does.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Counts; nothing else.
    Pass = 0,
    /// TCP windows shrink to zero on the wire as what is in flight arrives.
    Drain = 1,
    /// Nothing passes, but at the source ARP and neighbour discovery, so that nobody's neighbour entry fails.
    Closed = 2,
    /// Closed for good: the target may have released. No frame of the container leaves.
    Granted = 3,
    /// The lease ran out in `Drain` or `Closed`: the program passes by itself. Latched by the program or by who finds it first.
    Expired = 4,
    /// Outbound passes; inbound goes on to the hold until all that it holds has been put in, then the program makes it `Pass`: so nothing
    /// overtakes what was held. Its deadline makes it `Pass` in any case, at either side.
    Opening = 5,
}

impl Mode {
    /// The mode with this number.
    #[must_use]
    #[inline]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Pass,
            1 => Self::Drain,
            2 => Self::Closed,
            3 => Self::Granted,
            4 => Self::Expired,
            5 => Self::Opening,
            _ => return None,
        })
    }
}

/// Which end of a move a gate stands at.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Has a lease: without an agent it opens by itself, before a grant.
    Source = 0,
    /// Fails closed.
    Target = 1,
}

/// Mode, side, epoch and deadline.
///
/// | bits | |
/// |---|---|
/// | 0..4 | [`Mode`] |
/// | 4..5 | [`Side`] |
/// | 5..8 | 0 |
/// | 8..24 | epoch |
/// | 24..64 | deadline in ms of CLOCK_BOOTTIME (`bpf_ktime_get_boot_ns`), 0: none; good for 34 years of uptime |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeWord {
    /// What the gate does.
    pub mode: Mode,
    /// Where it stands.
    pub side: Side,
    /// Which life of the agent set it; writers with a lower one are refused.
    pub epoch: u16,
    /// End of the lease in ms of CLOCK_BOOTTIME; 0: none. Matters at the source in `Drain` and `Closed`, and in `Opening`.
    pub deadline_ms: u64,
}

impl ModeWord {
    /// Largest deadline that fits.
    pub const DEADLINE_MAX: u64 = (1 << 40) - 1;
    const MODE_MASK: u64 = 0xf;

    /// As it lies in the map. A deadline beyond [`Self::DEADLINE_MAX`] becomes that.
    #[must_use]
    pub const fn pack(self) -> u64 {
        let deadline = if self.deadline_ms > Self::DEADLINE_MAX {
            Self::DEADLINE_MAX
        } else {
            self.deadline_ms
        };
        self.mode as u64 | (self.side as u64) << 4 | (self.epoch as u64) << 8 | deadline << 24
    }

    /// What lies in the map; none if no version of this type wrote it.
    #[must_use]
    pub const fn unpack(word: u64) -> Option<Self> {
        let Some(mode) = Mode::from_bits((word & Self::MODE_MASK) as u8) else {
            return None;
        };
        if word >> 5 & 0b111 != 0 {
            return None;
        }
        Some(Self {
            mode,
            side: if word >> 4 & 1 == 0 {
                Side::Source
            } else {
                Side::Target
            },
            epoch: (word >> 8) as u16,
            deadline_ms: word >> 24,
        })
    }

    /// Mode bits of a packed word.
    #[must_use]
    #[inline(always)]
    pub const fn mode_bits(word: u64) -> u8 {
        (word & Self::MODE_MASK) as u8
    }

    /// Whether a packed word is one of a source.
    #[must_use]
    #[inline(always)]
    pub const fn is_source(word: u64) -> bool {
        word >> 4 & 1 == 0
    }

    /// The same packed word in another mode.
    #[must_use]
    #[inline(always)]
    pub const fn with_mode(word: u64, mode: Mode) -> u64 {
        word & !Self::MODE_MASK | mode as u64
    }

    /// The mode that a packed word comes to if its deadline is over at `now_ms` (CLOCK_BOOTTIME): `Expired` at a source in `Drain` or
    /// `Closed`, `Pass` in `Opening`; none if it stays.
    #[must_use]
    #[inline(always)]
    pub const fn after_deadline(word: u64, now_ms: u64) -> Option<Mode> {
        if word >> 24 == 0 || now_ms < word >> 24 {
            return None;
        }
        let mode = Self::mode_bits(word);
        if mode == Mode::Opening as u8 {
            Some(Mode::Pass)
        } else if Self::is_source(word) && (mode == Mode::Drain as u8 || mode == Mode::Closed as u8)
        {
            Some(Mode::Expired)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MODES: [Mode; 6] = [
        Mode::Pass,
        Mode::Drain,
        Mode::Closed,
        Mode::Granted,
        Mode::Expired,
        Mode::Opening,
    ];

    fn words() -> impl Strategy<Value = ModeWord> {
        (
            0..MODES.len(),
            any::<bool>(),
            any::<u16>(),
            0..=ModeWord::DEADLINE_MAX,
        )
            .prop_map(|(m, target, epoch, deadline_ms)| ModeWord {
                mode: MODES[m],
                side: if target { Side::Target } else { Side::Source },
                epoch,
                deadline_ms,
            })
    }

    proptest! {
        #[test]
        fn unpack_is_the_inverse_of_pack(word in words()) {
            prop_assert_eq!(ModeWord::unpack(word.pack()), Some(word));
        }

        #[test]
        fn with_mode_changes_the_mode_alone(word in words(), m in 0..MODES.len()) {
            let changed = ModeWord::unpack(ModeWord::with_mode(word.pack(), MODES[m]));
            prop_assert_eq!(changed, Some(ModeWord { mode: MODES[m], ..word }));
        }

        #[test]
        fn whatever_unpacks_packs_to_the_same(bits in any::<u64>()) {
            if let Some(word) = ModeWord::unpack(bits) {
                prop_assert_eq!(word.pack(), bits);
            }
        }
    }

    #[test]
    fn what_no_version_wrote_is_refused() {
        for bits in [6, 15, 1 << 5, 1 << 7] {
            assert_eq!(ModeWord::unpack(bits), None, "{bits:#x}");
        }
    }

    #[test]
    fn a_deadline_too_far_is_the_farthest() {
        let word = ModeWord {
            mode: Mode::Closed,
            side: Side::Target,
            epoch: u16::MAX,
            deadline_ms: u64::MAX,
        };
        let unpacked = ModeWord::unpack(word.pack());
        assert_eq!(
            unpacked,
            Some(ModeWord {
                deadline_ms: ModeWord::DEADLINE_MAX,
                ..word
            })
        );
    }

    #[test]
    fn what_a_deadline_ends() {
        for side in [Side::Source, Side::Target] {
            for mode in MODES {
                let word = ModeWord {
                    mode,
                    side,
                    epoch: 3,
                    deadline_ms: 1000,
                };
                let after = match (side, mode) {
                    (_, Mode::Opening) => Some(Mode::Pass),
                    (Side::Source, Mode::Drain | Mode::Closed) => Some(Mode::Expired),
                    _ => None,
                };
                assert_eq!(ModeWord::after_deadline(word.pack(), 999), None);
                assert_eq!(
                    ModeWord::after_deadline(word.pack(), 1000),
                    after,
                    "{side:?} {mode:?}"
                );
                let without = ModeWord {
                    deadline_ms: 0,
                    ..word
                };
                assert_eq!(ModeWord::after_deadline(without.pack(), u64::MAX), None);
            }
        }
    }
}
