//! The option table: each option that is read at the source and set at the target, in the order in which they are set.
//!
//! An option travels when its value differs from a new socket's in the same namespace. What is not its own setter's inverse has its own
//! rule elsewhere: SO_REUSEADDR, SO_REUSEPORT, SO_BINDTODEVICE and the buffer sizes in `common`, TCP_CONGESTION, TCP_MAXSEG and
//! TCP_WINDOW_CLAMP in `tcp`, multicast memberships in `groups`. Without a getter, and so not carried: SO_ATTACH_BPF,
//! SO_ATTACH_REUSEPORT_*BPF, SO_BUSY_POLL_BUDGET, an IP_MULTICAST_IF that was set by its index; SO_INCOMING_CPU reads as the last packet's CPU, not as what was set.
mod table;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::{AsFd, OwnedFd},
};

use netmig_core::image::v1::sock::Setting;

pub use self::table::TABLE;
use crate::sys::sockopt;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// Level as in setsockopt(2).
    pub level: i32,
    /// Number as in setsockopt(2).
    pub name: i32,
    /// Name in the manual.
    pub text: &'static str,
    /// How it is read and set.
    pub form: Form,
    /// Which sockets have it.
    pub on: On,
    /// When it can be set.
    pub when: When,
}

/// How an option is read and set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `int`.
    Int,
    /// `int` whose value is always carried: other options change it.
    Always,
    /// `int` that a connection or a bind changes from the first value to the second without anyone's wish.
    Settles(i32, i32),
    /// A structure or a string of at most so many bytes.
    Bytes(usize),
    /// SO_GET_FILTER and SO_ATTACH_FILTER.
    Filter,
}

/// Which sockets have an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// All.
    All,
    /// AF_INET6 ones.
    V6,
    /// TCP.
    Tcp,
    /// TCP listeners.
    Listen,
    /// UDP.
    Udp,
    /// UDP over AF_INET6.
    UdpV6,
    /// UDP-Lite, which has all of UDP's too.
    UdpLite,
}

/// When an option is set at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    /// Before bind.
    First,
    /// Once connected, before unsent bytes are written.
    Connected,
    /// At the opening: a timer that must not run behind a closed gate.
    Open,
}

/// What a socket is, for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sort {
    /// TCP connection.
    Tcp,
    /// TCP listener.
    Listen,
    /// UDP.
    Udp,
    /// UDP-Lite.
    UdpLite,
}

/// An option of the image that the target's kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("setting {option} on {socket}: {source}")]
pub struct Refused {
    /// Name of the option.
    pub option: String,
    /// The socket, in words.
    pub socket: String,
    /// The kernel's answer.
    pub source: io::Error,
}

/// The options of new sockets of the caller's namespace, read once for each sort.
#[derive(Debug, Default)]
pub(super) struct Fresh(HashMap<(Sort, bool), Values>);

/// Values by level and number.
type Values = BTreeMap<(i32, i32), Vec<u8>>;

impl Fresh {
    /// What of the table differs on `fd` from a new socket of its sort.
    pub(super) fn differing(
        &mut self,
        fd: &OwnedFd,
        sort: Sort,
        v6: bool,
    ) -> io::Result<Vec<Setting>> {
        let fresh = match self.0.entry((sort, v6)) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let new = new_socket(sort, v6)?;
                let all = table(sort, v6).filter_map(|o| Some(((o.level, o.name), o.read(&new)?)));
                place.insert(all.collect())
            }
        };
        Ok(table(sort, v6)
            .filter_map(|o| o.differing(fd, fresh.get(&(o.level, o.name))))
            .collect())
    }
}

/// Sets those of `settings` whose time has come; says which the kernel refused.
pub(super) fn apply(
    fd: &OwnedFd,
    settings: &[Setting],
    when: When,
    socket: &impl ToString,
) -> Vec<Refused> {
    let due = TABLE.iter().filter(|o| o.when == when);
    due.filter_map(|o| {
        let setting = settings
            .iter()
            .find(|s| s.level == o.level && s.name == o.name)?;
        if o.form == Form::Always && is_untouched(settings, &setting.value) {
            return None;
        }
        // The engine has set some already, and some of those cannot be set twice.
        if o.read(fd).as_ref() == Some(&setting.value) {
            return None;
        }
        let source = o.set(fd, &setting.value).err()?;
        Some(Refused {
            option: o.text.to_owned(),
            socket: socket.to_string(),
            source,
        })
    })
    .collect()
}

/// Whether what is always carried, SO_PRIORITY, is what a new socket has, and no type of service is set that would change it.
fn is_untouched(settings: &[Setting], value: &[u8]) -> bool {
    let services = [
        (libc::IPPROTO_IP, libc::IP_TOS),
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    ];
    value.iter().all(|byte| *byte == 0)
        && !settings
            .iter()
            .any(|s| services.contains(&(s.level, s.name)))
}

/// Name and value for people.
pub(super) fn describe(setting: &Setting) -> (String, String) {
    let row = TABLE
        .iter()
        .find(|o| o.level == setting.level && o.name == setting.name);
    let name = row.map_or_else(
        || format!("{}/{}", setting.level, setting.name),
        |o| o.text.to_owned(),
    );
    let value = match setting.value.as_slice() {
        &[a, b, c, d] => i32::from_ne_bytes([a, b, c, d]).to_string(),
        bytes => bytes.iter().map(|b| format!("{b:02x}")).collect(),
    };
    (name, value)
}

impl Opt {
    /// Whether a socket of this sort has it.
    pub fn applies(&self, sort: Sort, v6: bool) -> bool {
        let udp = matches!(sort, Sort::Udp | Sort::UdpLite);
        match self.on {
            On::All => true,
            On::V6 => v6,
            On::Tcp => !udp,
            On::Listen => sort == Sort::Listen,
            On::Udp => udp,
            On::UdpV6 => udp && v6,
            On::UdpLite => sort == Sort::UdpLite,
        }
    }

    /// Reads it; none if this kernel, or this socket, does not have it.
    pub fn read(&self, fd: &impl AsFd) -> Option<Vec<u8>> {
        match self.form {
            Form::Filter => sockopt::filter(fd),
            Form::Bytes(limit) => sockopt::bytes(fd, self.level, self.name, limit),
            // IP_MULTICAST_TTL and its like answer with one byte when they are asked for less than an int only.
            Form::Int | Form::Always | Form::Settles(..) => {
                sockopt::bytes(fd, self.level, self.name, 4)
            }
        }
        .ok()
    }

    /// Sets it.
    ///
    /// # Errors
    /// That of setsockopt(2).
    pub fn set(&self, fd: &impl AsFd, value: &[u8]) -> io::Result<()> {
        match self.form {
            Form::Filter => sockopt::attach_filter(fd, value),
            _ => sockopt::set(fd, self.level, self.name, value),
        }
    }

    fn differing(&self, fd: &OwnedFd, fresh: Option<&Vec<u8>>) -> Option<Setting> {
        let value = self.read(fd)?;
        let settled = match self.form {
            Form::Always => false,
            Form::Settles(from, to)
                if value == to.to_ne_bytes() && fresh.is_some_and(|f| *f == from.to_ne_bytes()) =>
            {
                true
            }
            _ => fresh == Some(&value),
        };
        (!settled).then_some(Setting {
            level: self.level,
            name: self.name,
            value,
        })
    }
}

fn table(sort: Sort, v6: bool) -> impl Iterator<Item = &'static Opt> {
    TABLE.iter().filter(move |o| o.applies(sort, v6))
}

/// A new socket of a sort.
///
/// # Errors
/// That of socket(2).
pub fn new_socket(sort: Sort, v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    let (kind, protocol) = match sort {
        Sort::Udp => (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        Sort::UdpLite => (libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
        Sort::Tcp | Sort::Listen => (libc::SOCK_STREAM, libc::IPPROTO_TCP),
    };
    sockopt::socket(family, kind, protocol)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const TCP: i32 = libc::IPPROTO_TCP;

    #[test]
    fn no_option_stands_twice() {
        let mut seen = HashSet::new();
        for o in TABLE {
            assert!(seen.insert((o.level, o.name)), "{} stands twice", o.text);
        }
    }

    #[test]
    fn a_new_socket_differs_in_nothing_but_what_is_always_carried() {
        for (sort, v6) in [
            (Sort::Tcp, false),
            (Sort::Tcp, true),
            (Sort::Udp, false),
            (Sort::Udp, true),
            (Sort::UdpLite, false),
            (Sort::UdpLite, true),
        ] {
            let new = new_socket(sort, v6).expect("a socket");
            let settings = Fresh::default().differing(&new, sort, v6).expect("options");
            let names: Vec<String> = settings.iter().map(|s| describe(s).0).collect();
            assert_eq!(names, ["SO_PRIORITY"], "{sort:?} v6 {v6}");
        }
    }

    #[test]
    fn what_was_set_is_found_and_can_be_set_on_another_socket() {
        let (one, two) = (
            new_socket(Sort::Tcp, false).expect("a socket"),
            new_socket(Sort::Tcp, false).expect("a socket"),
        );
        sockopt::set_int(&one, TCP, libc::TCP_KEEPIDLE, 77).expect("TCP_KEEPIDLE");
        let settings = Fresh::default()
            .differing(&one, Sort::Tcp, false)
            .expect("options");
        assert!(apply(&two, &settings, When::Connected, &"two").is_empty());
        assert_eq!(
            sockopt::int(&two, TCP, libc::TCP_KEEPIDLE).expect("TCP_KEEPIDLE"),
            77
        );
    }
}
