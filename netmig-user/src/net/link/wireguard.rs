//! WireGuard: keys, port, mark and peers of a device, which are no attributes of the link but have a protocol of their own. What a peer has
//! been told last (its session, the last handshake) cannot be read: the first packet at the target begins with a handshake.
use std::fs;

use netmig_core::image::v1::net::{Link, LinkKind, Setting};

use super::{
    super::{
        Doing, Error,
        attr::{Message, NLA_F_NESTED, Raw},
        netlink::{self, Netlink},
    },
    Seen,
};

// include/uapi/linux/genetlink.h
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
// include/uapi/linux/wireguard.h
const WG_CMD_GET_DEVICE: u8 = 0;
const WG_CMD_SET_DEVICE: u8 = 1;
const WGDEVICE_A_IFINDEX: u16 = 1;
const WGDEVICE_A_PRIVATE_KEY: u16 = 3;
const WGDEVICE_A_FLAGS: u16 = 5;
const WGDEVICE_A_LISTEN_PORT: u16 = 6;
const WGDEVICE_A_FWMARK: u16 = 7;
const WGDEVICE_A_PEERS: u16 = 8;
const WGDEVICE_F_REPLACE_PEERS: u32 = 1;
const WGPEER_A_PRESHARED_KEY: u16 = 2;
/// When it was heard last, what was received and sent.
const WGPEER_SHOWN: [u16; 3] = [6, 7, 8];

/// rtnetlink's kind.
pub const KIND: &str = "wireguard";

/// Reads the settings of the WireGuard devices among `links`, of which `seen` is what the kernel has shown. One whose packets go through
/// another namespace becomes a kind that cannot be made.
pub fn read(links: &mut [Link], seen: &[Seen]) -> Result<(), Error> {
    for link in links {
        let LinkKind::Virtual { kind, settings, .. } = &mut link.kind else {
            continue;
        };
        if kind != KIND {
            continue;
        }
        let doing = || format!("reading the settings of WireGuard device {}", link.name);
        let Some(seen) = seen.iter().find(|s| s.name == link.name) else {
            continue;
        };
        *settings = config(seen.index).doing(doing)?;
        if seen.flags & libc::IFF_UP as u32 != 0 && !is_bound_here(settings) {
            link.kind =
                LinkKind::Other("wireguard (its socket is in another namespace)".to_owned());
        }
    }
    Ok(())
}

/// Gives the device of that index its settings.
pub fn set(index: u32, settings: &[Setting]) -> Result<(), netlink::Error> {
    let mut nl = Netlink::generic()?;
    let family = family(&mut nl)?;
    let begin = || header(WG_CMD_SET_DEVICE).u32(WGDEVICE_A_IFINDEX, index);
    let of_device = |s: &&Setting| s.number != WGDEVICE_A_PEERS;
    let whole = settings.iter().filter(of_device).fold(
        begin().u32(WGDEVICE_A_FLAGS, WGDEVICE_F_REPLACE_PEERS),
        |m, s| m.bytes(s.number, &s.value),
    );
    nl.request(family, 0, whole)?;
    for peers in settings.iter().filter(|s| !of_device(s)) {
        let request = begin().bytes(WGDEVICE_A_PEERS | NLA_F_NESTED, &peers.value);
        nl.request(family, 0, request)?;
    }
    Ok(())
}

/// Takes the keys out of what is to be written down; whether there were any.
pub fn without_keys(settings: &mut Vec<Setting>) -> bool {
    let before = settings.len();
    settings.retain(|s| s.number != WGDEVICE_A_PRIVATE_KEY);
    let mut any = settings.len() != before;
    for peers in settings.iter_mut().filter(|s| s.number == WGDEVICE_A_PEERS) {
        let without = |number| number == WGPEER_A_PRESHARED_KEY;
        if let Ok((kept, dropped)) = each_peer(&peers.value, without) {
            peers.value = kept;
            any |= dropped;
        }
    }
    any
}

fn config(index: u32) -> Result<Vec<Setting>, netlink::Error> {
    let mut nl = Netlink::generic()?;
    let family = family(&mut nl)?;
    let request = header(WG_CMD_GET_DEVICE).u32(WGDEVICE_A_IFINDEX, index);
    let mut settings: Vec<Setting> = Vec::new();
    // A device with many peers is shown in several messages, each of which begins anew.
    for reply in nl.dump(family, &request)? {
        let (_, attrs) = reply.split::<4>()?;
        for attr in attrs {
            let attr = attr?;
            let value = match attr.kind {
                WGDEVICE_A_PRIVATE_KEY | WGDEVICE_A_LISTEN_PORT | WGDEVICE_A_FWMARK => {
                    attr.value.to_vec()
                }
                WGDEVICE_A_PEERS => each_peer(attr.value, |n| WGPEER_SHOWN.contains(&n))?.0,
                _ => continue,
            };
            let setting = Setting {
                number: attr.kind,
                value,
            };
            if !settings.contains(&setting) {
                settings.push(setting);
            }
        }
    }
    Ok(settings)
}

/// The same peers without the attributes that `without` names, and whether there were any.
fn each_peer(
    peers: &[u8],
    without: impl Fn(u16) -> bool,
) -> Result<(Vec<u8>, bool), netlink::Error> {
    let (mut all, mut dropped) = (Message::default(), false);
    for peer in Raw(peers) {
        let (number, flags, peer) = peer?;
        let mut one = Message::default();
        for attr in Raw(peer) {
            let (inner, inner_flags, value) = attr?;
            // A key of zeroes is none.
            if without(inner) {
                dropped |= value.iter().any(|b| *b != 0);
            } else {
                one = one.bytes(inner | inner_flags, value);
            }
        }
        all = all.bytes(number | flags, one.as_bytes());
    }
    Ok((all.as_bytes().to_vec(), dropped))
}

/// Whether its port is one of this namespace: its packets go through the namespace in which it was made.
fn is_bound_here(settings: &[Setting]) -> bool {
    let port = settings
        .iter()
        .find(|s| s.number == WGDEVICE_A_LISTEN_PORT)
        .and_then(|s| s.value.first_chunk())
        .map_or(0, |port| u16::from_ne_bytes(*port));
    let suffix = format!(":{port:04X}");
    ["udp", "udp6"].iter().any(|table| {
        fs::read_to_string(format!("/proc/thread-self/net/{table}")).is_ok_and(|rows| {
            rows.lines()
                .filter_map(|row| row.split_whitespace().nth(1))
                .any(|local| local.ends_with(&suffix))
        })
    })
}

/// struct genlmsghdr.
fn header(command: u8) -> Message {
    Message::new(&[command, 1, 0, 0])
}

fn family(nl: &mut Netlink) -> Result<u16, netlink::Error> {
    let request = header(CTRL_CMD_GETFAMILY).text(CTRL_ATTR_FAMILY_NAME, KIND);
    let reply = nl.get(GENL_ID_CTRL, request)?;
    let missing = || netlink::Error::Malformed("the kernel knows no WireGuard".into());
    let reply = reply.ok_or_else(missing)?;
    let (_, attrs) = reply.split::<4>()?;
    for attr in attrs {
        let attr = attr?;
        if attr.kind == CTRL_ATTR_FAMILY_ID {
            return attr.u16();
        }
    }
    Err(missing())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_out_and_nothing_else() {
        let peer = |key: u8| {
            Message::default()
                .bytes(1, &[7; 32])
                .bytes(WGPEER_A_PRESHARED_KEY, &[key; 32])
                .u16(5, 25)
        };
        let peers = Message::default().nested(0, &peer(9)).nested(0, &peer(0));
        let setting = |number, value: &[u8]| Setting {
            number,
            value: value.to_vec(),
        };
        let mut settings = vec![
            setting(WGDEVICE_A_PRIVATE_KEY, &[1; 32]),
            setting(WGDEVICE_A_LISTEN_PORT, &51820u16.to_ne_bytes()),
            setting(WGDEVICE_A_PEERS, peers.as_bytes()),
        ];
        assert!(without_keys(&mut settings));
        let numbers: Vec<_> = settings.iter().map(|s| s.number).collect();
        assert_eq!(numbers, [WGDEVICE_A_LISTEN_PORT, WGDEVICE_A_PEERS]);
        let bare = Message::default().bytes(1, &[7; 32]).u16(5, 25);
        let bare = Message::default().nested(0, &bare).nested(0, &bare);
        assert!(settings[1].value == bare.as_bytes());
        assert!(!without_keys(&mut settings), "there are none any more");
    }
}
