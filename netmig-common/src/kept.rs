//! A connection for which the program answers by itself.

/// A keeper that has renewed no lease for so long, in ms, is taken for dead: twice what its renewals may be apart.
pub const SILENT_MS: u64 = 1000;

/// What is said to the peer of a connection in the container's name; written by user space alone, when it has answered that peer itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptFlow {
    /// When the container's clock showed `stamp`, ns of CLOCK_MONOTONIC.
    pub read_ns: u64,
    /// First byte that the container has not sent.
    pub seq: u32,
    /// First byte that has not been acknowledged.
    pub ack: u32,
    /// The container's timestamp of `read_ns`. Bit 0 is its unit, 0: ms, 1: us (Linux 6.12).
    pub stamp: u32,
    /// Not 0: the connection has timestamps.
    pub stamped: u32,
    /// Not 0: bytes before `ack` are in no socket. Until they are delivered nothing that comes behind them passes, whatever the lease.
    pub owned: u32,
    /// The device at which its packets come.
    pub device: u32,
}

impl KeptFlow {
    /// The container's timestamp at a moment, as [`KeptFlow::read_ns`]. A moment before that counts as that.
    #[must_use]
    #[inline(always)]
    pub const fn stamp_at(&self, ns: u64) -> u32 {
        let since = ns.saturating_sub(self.read_ns);
        let unit = self.stamp & 1;
        let ticks = if unit == 0 {
            since / 1_000_000
        } else {
            since / 1000
        };
        // It goes round, as the clock does.
        self.stamp.wrapping_add(ticks as u32) & !1 | unit
    }
}

const _: () = assert!(size_of::<KeptFlow>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_in_its_unit_and_never_back() {
        let flow = |stamp| KeptFlow {
            read_ns: 5_000_000_000,
            stamp,
            ..KeptFlow::default()
        };
        let later = |n: u64| 5_000_000_000 + n;
        assert_eq!(flow(1000).stamp_at(later(300_900_000)), 1300);
        assert_eq!(flow(1001).stamp_at(later(300_900_000)), 301_901);
        assert_eq!(flow(u32::MAX - 1).stamp_at(later(3_000_000)), 0);
        assert_eq!(flow(1000).stamp_at(7), 1000);
    }
}
