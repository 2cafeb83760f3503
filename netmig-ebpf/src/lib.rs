//! netmig's eBPF programs: what the objects under `src/bin` are made of.
//!
//! Everything is inlined into the programs. Packets are read by `bpf_skb_load_bytes` alone: it also reaches what is not linear.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[macro_use]
mod log;

pub mod drain;
pub mod maps;
pub mod packet;
pub mod tcp;
pub mod verdict;
