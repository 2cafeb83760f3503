//! netmig's eBPF programs.
#![no_std]
