//! TCP connections that somebody holds, as a program reads them out of the kernel's memory: where its fields lie is another thing in every kernel.

/// Bytes of a struct tcp_sock that are looked at, at most; a power of two.
pub const SOCKET: usize = 4096;

/// Bytes of a struct ipv6_pinfo that are looked at, at most; as many.
pub const V6: usize = SOCKET;

/// Most words of a record.
pub const WORDS: usize = 128;

/// What user space wants to know; index 0 of map `ASKED`. Offsets are in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Bit n: connections in state n (include/net/tcp_states.h).
    pub states: u32,
    /// `skc_state` in struct sock.
    pub state: u32,
    /// `skc_family` there.
    pub family: u32,
    /// `sk_socket` there.
    pub socket: u32,
    /// From a struct socket to the number of its inode.
    pub inode: u32,
    /// `pinet6` in struct inet_sock.
    pub v6: u32,
    /// How much of a struct tcp_sock is read.
    pub socket_bytes: u32,
    /// How much of a struct ipv6_pinfo is read.
    pub v6_bytes: u32,
    /// How many words a record has.
    pub words: u32,
    /// Which words, after the first one: of struct tcp_sock, and, from [`SOCKET`] / 8 on, of struct ipv6_pinfo (0 in an IPv4 socket).
    pub at: [u32; WORDS],
}
