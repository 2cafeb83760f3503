//! The gate: TC programs at the links of a container and at its `lo`.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(
    missing_docs,
    reason = "`#[classifier]` makes functions of its own without the doc comments"
)]

#[macro_use]
mod log;

mod drain;
mod kept;
mod maps;
mod verdict;

use aya_ebpf::{macros::classifier, programs::TcContext};
use netmig_common::Direction;

/// At the host's end of a veth pair: TC egress. On a device inside the namespace: TC ingress.
#[classifier]
pub fn netmig_inbound(ctx: TcContext) -> i32 {
    verdict::link(&ctx, Direction::Inbound)
}

/// At the host's end of a veth pair: TC ingress. On a device inside the namespace: TC egress.
#[classifier]
pub fn netmig_outbound(ctx: TcContext) -> i32 {
    verdict::link(&ctx, Direction::Outbound)
}

/// On `lo`, TC ingress: every packet passes there once, and the last place before it is delivered.
#[classifier]
pub fn netmig_loopback(ctx: TcContext) -> i32 {
    verdict::loopback(&ctx)
}

/// Attached nowhere: user space runs it to send a packet in the container's name.
#[classifier]
pub fn netmig_answer(ctx: TcContext) -> i32 {
    verdict::answer(&ctx)
}

netmig_ebpf::object!();
