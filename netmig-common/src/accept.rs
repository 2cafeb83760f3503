//! Connections that are to be put into an accept queue: those that had waited there, and those whose handshake is under way.

/// struct bpf_tcp_req_attrs (include/net/tcp.h): what the handshake had agreed upon.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// The peer's newest timestamp; 0: not known, whatever comes next is newer.
    pub rcv_tsval: u32,
    /// Our timestamp clock now.
    pub rcv_tsecr: u32,
    /// The peer's limit of a segment, bytes.
    pub mss: u16,
    /// Scale of the windows that we send.
    pub rcv_wscale: u8,
    /// Scale of the windows that we receive.
    pub snd_wscale: u8,
    /// 0 or 1, as all that follow.
    pub ecn_ok: u8,
    /// Windows are scaled.
    pub wscale_ok: u8,
    /// SACK.
    pub sack_ok: u8,
    /// Timestamps.
    pub tstamp_ok: u8,
    /// Our timestamps count microseconds.
    pub usec_ts_ok: u8,
    /// 0.
    pub reserved: [u8; 3],
}

/// What waits for its ACK, by [`crate::FlowKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Written by user space.
    pub agreed: Agreed,
    /// Written by the program: [`NOT_SEEN`], [`PLACED`], [`NO_LISTENER`], or the kernel's error, negative.
    pub outcome: i32,
}

/// A handshake under way, by [`crate::FlowKey`]: our SYN-ACK is out, its ACK is not here. Numbers in host byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HalfOpen {
    /// Written by user space. `rcv_tsval` and `rcv_tsecr` are the ACK's own.
    pub agreed: Agreed,
    /// Sequence number of our SYN-ACK.
    pub isn: u32,
    /// Sequence number of the peer's SYN.
    pub peer_isn: u32,
    /// Written by the program: [`NOT_SEEN`], [`PLACED`] (offered, and offered once more if the queue had no room for it), [`OVER`], or the
    /// kernel's error, negative.
    pub outcome: i32,
}

/// The connection stands, or its peer has given it up.
pub const OVER: i32 = 3;

/// No ACK of it has come.
pub const NOT_SEEN: i32 = 0;
/// The kernel makes the connection.
pub const PLACED: i32 = 1;
/// Nobody listens there.
pub const NO_LISTENER: i32 = 2;

/// Stands in the object where the number of `bpf_sk_assign_tcp_reqsk` belongs, which every kernel has another one for.
pub const KFUNC_PLACE: u32 = 0x6e6d_6163;
