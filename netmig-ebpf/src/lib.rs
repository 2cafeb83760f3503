//! netmig's eBPF programs: what the objects under `src/bin` share. A map here is in every object that uses anything of this crate.
//!
//! Everything is inlined into the programs. Packets are read by `bpf_skb_load_bytes` alone: it also reaches what is not linear.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod packet;
pub mod scratch;
pub mod tcp;

/// What every object has besides its programs and maps; at its end, once.
#[macro_export]
macro_rules! object {
    () => {
        #[cfg(not(test))]
        #[panic_handler]
        fn panic(_info: &core::panic::PanicInfo) -> ! {
            loop {}
        }

        /// Some of the helpers are for GPL-compatible programs; the source is under either licence.
        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
    };
}
