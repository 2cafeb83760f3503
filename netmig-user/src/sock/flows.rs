//! TCP connections as a drain sees them: window scales, and which of them carry bulk.
use std::{collections::HashMap, net::IpAddr, path::Path, thread, time::Duration};

use netmig_core::{image::v1::sock::Endpoint, socket::Kind};

use super::{diag, error::Error};
use crate::sys::netns::within;

/// A connection that moves fewer bytes than this within one look is no bulk: its requests and answers gain nothing by a drain.
const BULK: u64 = 64 << 10;
/// Between the two looks that tell what arrives.
const LOOK: Duration = Duration::from_millis(5);

/// An established connection and what of it a drain would have to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The container's end, IPv4-mapped addresses as IPv4.
    pub local: Endpoint,
    /// The peer's end, likewise.
    pub peer: Endpoint,
    /// Shift of the windows that the peer announces (`tcpi_snd_wscale`); none without the option.
    pub snd_wscale: Option<u8>,
    /// Shift of the windows that the container announces (`tcpi_rcv_wscale`).
    pub rcv_wscale: Option<u8>,
    /// Signed by TCP-MD5: never rewritten.
    pub signed: bool,
    /// Segments sent and not acknowledged (`tcpi_unacked`).
    pub unacked: u32,
    /// The container is sending bulk.
    pub sends_bulk: bool,
    /// The peer is sending bulk.
    pub receives_bulk: bool,
}

/// The established connections of a namespace whose peers are outside of it.
///
/// # Errors
/// As [`super::rows`].
pub fn flows(netns: &Path) -> Result<Vec<Flow>, Error> {
    let (before, after) = within(netns, || {
        let before = diag::tcp_infos()?;
        thread::sleep(LOOK);
        Ok::<_, Error>((before, diag::tcp_infos()?))
    })?;
    let received: HashMap<u64, u64> = before
        .iter()
        .map(|seen| (seen.inode, seen.bytes_received))
        .collect();
    let own: Vec<(IpAddr, u16)> = after
        .iter()
        .map(|seen| (seen.local.canonical().ip, seen.local.port))
        .collect();
    let outer = after
        .iter()
        .filter(|seen| !own.contains(&(seen.peer.canonical().ip, seen.peer.port)));
    Ok(outer
        .map(|seen| Flow {
            local: seen.local.canonical(),
            peer: seen.peer.canonical(),
            snd_wscale: seen.wscales.map(|(snd, _)| snd),
            rcv_wscale: seen.wscales.map(|(_, rcv)| rcv),
            signed: seen.signed,
            unacked: seen.unacked,
            sends_bulk: u64::from(seen.wqueue) >= BULK,
            receives_bulk: received
                .get(&seen.inode)
                .is_some_and(|before| seen.bytes_received.saturating_sub(*before) >= BULK),
        })
        .collect())
}

/// An established connection with the part of `struct tcp_info` that a drain needs.
pub(super) struct Seen {
    pub local: Endpoint,
    pub peer: Endpoint,
    pub inode: u64,
    pub wqueue: u32,
    pub signed: bool,
    /// `tcpi_snd_wscale`, `tcpi_rcv_wscale`; none if not negotiated.
    pub wscales: Option<(u8, u8)>,
    pub unacked: u32,
    pub bytes_received: u64,
}

impl Seen {
    /// From one answer of sock_diag and its INET_DIAG_INFO.
    pub(super) fn new(found: diag::Found, info: &[u8]) -> Option<Self> {
        // struct tcp_info: options at 5, both scales at 6 (snd in the low half), unacked at 24, bytes_received at 128.
        const TCPI_OPT_WSCALE: u8 = 4;
        let (options, scales) = (*info.get(5)?, *info.get(6)?);
        let unacked = u32::from_ne_bytes(info.get(24..28)?.try_into().ok()?);
        let bytes_received = u64::from_ne_bytes(info.get(128..136)?.try_into().ok()?);
        debug_assert_eq!(found.kind, Kind::Tcp);
        Some(Self {
            local: found.local.endpoint()?,
            peer: found.peer.endpoint()?,
            inode: found.inode,
            wqueue: found.wqueue,
            signed: !found.keys.is_empty(),
            wscales: (options & TCPI_OPT_WSCALE != 0).then_some((scales & 15, scales >> 4)),
            unacked,
            bytes_received,
        })
    }
}
