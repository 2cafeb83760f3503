//! What a moving container serves and what its peers see of the move.
//!
//! Every client checks each byte it gets back, counts what went wrong, and measures its pauses on CLOCK_REALTIME, which hosts that
//! share a kernel share too: a pause can be laid beside the blackout that a report names. The binary `netmig-peer` is this module with
//! arguments; it runs in the host `peer` (clients) and in the container (servers, init and the loopback verifier).
pub mod bulk;
pub mod clock;
pub mod dataset;
pub mod failure;
pub mod idle;
pub mod init;
pub mod iperf3;
pub mod outcome;
pub mod pattern;
pub mod pauses;
pub mod redis;
pub mod resp;
pub mod stop;
pub mod tcp_info;
pub mod udp;
pub mod waiting;

pub use outcome::{Direction, Kind, Outcome, Row};

#[cfg(test)]
mod tests;
