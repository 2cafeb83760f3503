//! Send queues of sockets that no process holds, as a program reads them out of the kernel's memory.

/// Most bytes that are read at once.
pub const PIECE: usize = 4096;

/// What is asked for; index 0 of map `ASKED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Bit n: sockets in state n (include/net/tcp_states.h).
    pub states: u32,
    /// Local port, host order; 0: any.
    pub port: u32,
    /// Where everything lies.
    pub places: Places,
    /// What is added to a `struct page *` shifted by [`Self::shift`] to have the page's address; 0: not known, and only where the first page is is
    /// told ([`PAGE`]).
    pub base: u64,
    /// How many bits a page's address moves faster than that of its `struct page`.
    pub shift: u32,
    /// A word of its own, so that there is no padding.
    pub unused: u32,
}

/// Offsets in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// `skc_state`.
    pub state: u32,
    /// `skc_num`.
    pub port: u32,
    /// `sk_write_queue`: what has not been sent.
    pub unsent: u32,
    /// `tcp_rtx_queue`: what has not been acknowledged.
    pub sent: u32,
    /// In struct rb_node: `__rb_parent_color`.
    pub parent: u32,
    /// In struct rb_node: `rb_left`.
    pub left: u32,
    /// In struct rb_node: `rb_right`.
    pub right: u32,
    /// In struct sk_buff: `rbnode`.
    pub node: u32,
    /// In struct sk_buff: `next`.
    pub next: u32,
    /// In struct sk_buff: `len`.
    pub len: u32,
    /// In struct sk_buff: `data_len`.
    pub data_len: u32,
    /// In struct sk_buff: `head`.
    pub head: u32,
    /// In struct sk_buff: `end`, as an offset.
    pub end: u32,
    /// In struct sk_buff: `data`.
    pub data: u32,
    /// In struct sk_buff: `seq` of its struct tcp_skb_cb.
    pub seq: u32,
    /// In struct skb_shared_info: `nr_frags`.
    pub pieces: u32,
    /// In struct skb_shared_info: `frags`.
    pub piece: u32,
    /// In struct skb_shared_info: `frag_list`.
    pub list: u32,
    /// In skb_frag_t: its page.
    pub page: u32,
    /// In skb_frag_t: its offset in the page.
    pub page_offset: u32,
    /// In skb_frag_t: its length.
    pub page_len: u32,
    /// Bytes of a skb_frag_t.
    pub piece_size: u32,
}

/// Value of [`Pass::state`]: from the first socket on.
pub const ALL: u32 = 0;
/// Value of [`Pass::state`]: from byte [`Pass::seq`] of socket [`Pass::socket`] on.
pub const FROM: u32 = 1;
/// Value of [`Pass::state`]: the ring was full before that byte.
pub const FULL: u32 = 2;

/// One pass over the sockets; index 0 of map `PASS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Address of a `struct sock`.
    pub socket: u64,
    /// Sequence number.
    pub seq: u32,
    /// [`ALL`], [`FROM`] or [`FULL`].
    pub state: u32,
}

/// Value of [`Head::what`]: bytes of a stream.
pub const BYTES: u32 = 0;
/// Value of [`Head::what`]: the address of a `struct page` and the offset in it, eight bytes each.
pub const PAGE: u32 = 1;

/// What stands before the bytes of a record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Address of the `struct sock`.
    pub socket: u64,
    /// Sequence number of the first byte.
    pub seq: u32,
    /// [`BYTES`] or [`PAGE`].
    pub what: u32,
}

/// A record of map `RECORDS`, which ends after the last of the bytes that count.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of what.
    pub head: Head,
    /// The bytes.
    pub bytes: [u8; PIECE],
}

/// Words by which a page is known.
pub const MARKS: usize = 8;

/// The search for a page of known content; index 0 of map `SEARCH`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// First address where it may be.
    pub first: u64,
    /// From one to the next.
    pub step: u64,
    /// How many there are.
    pub count: u64,
    /// What stands there.
    pub marks: [u64; MARKS],
    /// Where it is; 0: nowhere.
    pub found: u64,
}
