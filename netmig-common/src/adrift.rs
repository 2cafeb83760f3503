//! Sockets that no process holds, as a program reads them out of the kernel's memory: where its fields lie is another thing in every kernel.

/// How many fields a record has room for.
pub const FIELDS: usize = 40;

/// Offset of a field that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// What user space wants to know; index 0 of map `ASKED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Bit n: sockets in state n (include/net/tcp_states.h).
    pub states: u32,
    /// Offset of `skc_state`.
    pub state: u32,
    /// Offsets of eight bytes each in struct tcp_sock, or [`ABSENT`].
    pub full: [u32; FIELDS],
    /// The same in struct tcp_timewait_sock.
    pub time_wait: [u32; FIELDS],
    /// The same in struct tcp_request_sock.
    pub request: [u32; FIELDS],
}

/// One socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Address of its `struct sock`.
    pub socket: u64,
    /// Its state; [`TIME_WAIT`]: the values are a struct tcp_timewait_sock's, [`NEW_SYN_RECV`]: a struct tcp_request_sock's.
    pub state: u64,
    /// In the order of the offsets; 0 for what is absent.
    pub values: [u64; FIELDS],
}

/// TCP_TIME_WAIT.
pub const TIME_WAIT: u64 = 6;

/// TCP_NEW_SYN_RECV.
pub const NEW_SYN_RECV: u64 = 12;
