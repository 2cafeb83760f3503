//! Persistent tun and tap devices: made by ioctl, since rtnetlink makes none (tun_validate()).
//!
//! A queue belongs to whoever has /dev/net/tun open for it. A device that one holds is not made here, see [`super::Seen::image`].
use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::Path,
};

use netmig_core::image::v1::net::{Link, Setting};

use super::super::{attr::Message, netlink, netlink::Netlink, uapi::*};

/// Where the kernel gives them.
pub const DEVICE: &str = "/dev/net/tun";

mod ioctl {
    use std::ffi::c_int;
    // include/uapi/linux/if_tun.h. The numbers say int of all of them; see each call for what they take.
    nix::ioctl_write_ptr!(set_interface, b'T', 202, c_int);
    nix::ioctl_write_int!(set_persistent, b'T', 203);
    nix::ioctl_write_int!(set_owner, b'T', 204);
    nix::ioctl_write_int!(set_group, b'T', 206);
    nix::ioctl_write_ptr!(set_index, b'T', 218, c_int);
}

/// Whether this host can make one.
pub fn possible() -> bool {
    Path::new(DEVICE).exists()
}

/// Makes the device in the namespace of the calling thread and of `nl`, down, with no queue; with `index` 0 the kernel chooses one.
pub fn add(
    nl: &mut Netlink,
    link: &Link,
    index: u32,
    settings: &[Setting],
) -> Result<(), netlink::Error> {
    let wanted = Wanted::of(settings)?;
    let queue = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    make(&queue, link, index, &wanted)?;
    drop(queue);
    let Some(mac) = link.mac else { return Ok(()) };
    let made = super::index(nl, &link.name)?.unwrap_or_default();
    nl.request(
        libc::RTM_SETLINK,
        0,
        Message::link(made, 0, 0).bytes(IFLA_ADDRESS, &mac.0),
    )
}

/// Its settings (IFLA_TUN_*).
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// IFF_TUN or IFF_TAP, and the others that TUNSETIFF takes.
    flags: i16,
    owner: Option<u32>,
    group: Option<u32>,
}

impl Wanted {
    fn of(settings: &[Setting]) -> Result<Self, netlink::Error> {
        let bytes = |number| {
            let found = settings.iter().find(|s| s.number == number);
            found.map(|s| s.value.as_slice())
        };
        let is_on = |number| matches!(bytes(number), Some([on]) if *on != 0);
        let id = |number| {
            let value = bytes(number)?.first_chunk::<4>()?;
            Some(u32::from_ne_bytes(*value))
        };
        // TUN_TYPE_MASK; both are small positive constants.
        let kind = match bytes(IFLA_TUN_TYPE) {
            Some([kind]) if i32::from(*kind) == libc::IFF_TUN => libc::IFF_TUN,
            Some([kind]) if i32::from(*kind) == libc::IFF_TAP => libc::IFF_TAP,
            other => {
                return Err(netlink::Error::Malformed(format!(
                    "a tun device of type {other:?}"
                )));
            }
        };
        let mut flags = kind;
        for (on, flag) in [
            (!is_on(IFLA_TUN_PI), libc::IFF_NO_PI),
            (is_on(IFLA_TUN_VNET_HDR), libc::IFF_VNET_HDR),
            (is_on(IFLA_TUN_MULTI_QUEUE), libc::IFF_MULTI_QUEUE),
        ] {
            if on {
                flags |= flag;
            }
        }
        Ok(Self {
            // All of them are flags of 16 bits.
            flags: flags as i16,
            owner: id(IFLA_TUN_OWNER),
            group: id(IFLA_TUN_GROUP),
        })
    }
}

fn make(queue: &File, link: &Link, index: u32, wanted: &Wanted) -> io::Result<()> {
    if link.name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let fd = queue.as_raw_fd();
    if index != 0 {
        let index = index
            .try_into()
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: TUNSETIFINDEX reads an int.
        unsafe { ioctl::set_index(fd, &raw const index) }?;
    }
    // SAFETY: all zeroes is a value of this struct of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(link.name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = wanted.flags | libc::IFF_TUN_EXCL as i16;
    // SAFETY: TUNSETIFF takes a `struct ifreq`, though its number says int.
    unsafe { ioctl::set_interface(fd, (&raw const request).cast()) }?;
    if let Some(owner) = wanted.owner {
        // SAFETY: TUNSETOWNER takes its argument by value.
        unsafe { ioctl::set_owner(fd, owner.into()) }?;
    }
    if let Some(group) = wanted.group {
        // SAFETY: TUNSETGROUP takes its argument by value.
        unsafe { ioctl::set_group(fd, group.into()) }?;
    }
    // SAFETY: TUNSETPERSIST takes its argument by value.
    unsafe { ioctl::set_persistent(fd, 1) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(number: u16, value: &[u8]) -> Setting {
        Setting {
            number,
            value: value.to_vec(),
        }
    }

    #[test]
    fn settings_are_what_tunsetiff_takes() {
        let plain = Wanted::of(&[setting(IFLA_TUN_TYPE, &[1]), setting(IFLA_TUN_PI, &[1])]);
        assert_eq!(
            plain.unwrap(),
            Wanted {
                flags: libc::IFF_TUN as i16,
                owner: None,
                group: None
            }
        );
        let all = Wanted::of(&[
            setting(IFLA_TUN_OWNER, &7u32.to_ne_bytes()),
            setting(IFLA_TUN_GROUP, &8u32.to_ne_bytes()),
            setting(IFLA_TUN_TYPE, &[2]),
            setting(IFLA_TUN_PI, &[0]),
            setting(IFLA_TUN_VNET_HDR, &[1]),
            setting(IFLA_TUN_MULTI_QUEUE, &[1]),
        ])
        .unwrap();
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        assert_eq!(all.flags, flags as i16);
        assert_eq!((all.owner, all.group), (Some(7), Some(8)));
        assert!(Wanted::of(&[setting(IFLA_TUN_TYPE, &[9])]).is_err());
    }
}
