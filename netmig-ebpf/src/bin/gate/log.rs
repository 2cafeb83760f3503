//! What the programs say of single packets, with feature `aya-log`; without it nothing of this is built.

/// Says something at level `debug`, as [`aya_log_ebpf::debug!`] does.
#[cfg(feature = "aya-log")]
macro_rules! tell {
    ($ctx:expr, $($argument:tt)*) => {
        aya_log_ebpf::debug!($ctx, $($argument)*)
    };
}

/// Says nothing; what was to be said is not evaluated.
#[cfg(not(feature = "aya-log"))]
macro_rules! tell {
    ($ctx:expr, $($argument:tt)*) => {
        crate::log::unheard($ctx)
    };
}

#[cfg(not(feature = "aya-log"))]
#[inline(always)]
pub(crate) fn unheard(_: &aya_ebpf::programs::TcContext) {}
