//! The option table: each option that is read at the source and set at the target, in the order in which they are set.
//!
//! An option travels when its value differs from a new socket's in the same namespace. What is not its own setter's inverse has its own
//! rule elsewhere: SO_REUSEADDR, SO_REUSEPORT, SO_BINDTODEVICE and the buffer sizes in `common`, TCP_CONGESTION, TCP_MAXSEG and
//! TCP_WINDOW_CLAMP in `tcp`. Without a getter, and so not carried: IP_ADD_MEMBERSHIP and its kin, SO_ATTACH_BPF,
//! SO_ATTACH_REUSEPORT_*BPF, SO_BUSY_POLL_BUDGET; SO_INCOMING_CPU reads as the last packet's CPU, not as what was set.
use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::{AsFd, OwnedFd},
};

use netmig_core::image::v1::sock::Setting;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

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
}

const SOL: i32 = libc::SOL_SOCKET;
const IP: i32 = libc::IPPROTO_IP;
const IP6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;

const fn opt(level: i32, name: i32, text: &'static str, form: Form, on: On, when: When) -> Opt {
    Opt {
        level,
        name,
        text,
        form,
        on,
        when,
    }
}

/// Every option, in the order in which they are set. Numbers without a name in libc come from include/uapi.
pub const TABLE: &[Opt] = {
    use Form::{Always, Bytes, Filter, Int, Settles};
    use On::{All, Listen, Tcp, Udp, UdpV6, V6};
    use When::{Connected, First, Open};
    &[
        opt(SOL, libc::SO_DEBUG, "SO_DEBUG", Int, All, First),
        opt(SOL, libc::SO_DONTROUTE, "SO_DONTROUTE", Int, All, Connected),
        opt(SOL, libc::SO_BROADCAST, "SO_BROADCAST", Int, All, First),
        opt(SOL, libc::SO_OOBINLINE, "SO_OOBINLINE", Int, All, First),
        opt(SOL, libc::SO_NO_CHECK, "SO_NO_CHECK", Int, Udp, First),
        opt(SOL, libc::SO_LINGER, "SO_LINGER", Bytes(8), All, First),
        opt(SOL, libc::SO_MARK, "SO_MARK", Int, All, First),
        opt(SOL, 75, "SO_RCVMARK", Int, All, First),
        opt(SOL, 82, "SO_RCVPRIORITY", Int, All, First),
        opt(SOL, libc::SO_RCVLOWAT, "SO_RCVLOWAT", Int, All, Connected),
        opt(
            SOL,
            libc::SO_RCVTIMEO,
            "SO_RCVTIMEO",
            Bytes(16),
            All,
            Connected,
        ),
        opt(
            SOL,
            libc::SO_SNDTIMEO,
            "SO_SNDTIMEO",
            Bytes(16),
            All,
            Connected,
        ),
        opt(SOL, libc::SO_TIMESTAMP, "SO_TIMESTAMP", Int, All, Connected),
        opt(
            SOL,
            libc::SO_TIMESTAMPNS,
            "SO_TIMESTAMPNS",
            Int,
            All,
            Connected,
        ),
        opt(SOL, 63, "SO_TIMESTAMP_NEW", Int, All, Connected),
        opt(SOL, 64, "SO_TIMESTAMPNS_NEW", Int, All, Connected),
        opt(
            SOL,
            libc::SO_TIMESTAMPING,
            "SO_TIMESTAMPING",
            Bytes(8),
            All,
            Connected,
        ),
        opt(SOL, 65, "SO_TIMESTAMPING_NEW", Bytes(8), All, Connected),
        opt(SOL, libc::SO_RXQ_OVFL, "SO_RXQ_OVFL", Int, All, Connected),
        opt(SOL, 45, "SO_SELECT_ERR_QUEUE", Int, All, Connected),
        opt(SOL, libc::SO_BUSY_POLL, "SO_BUSY_POLL", Int, All, Connected),
        opt(SOL, 69, "SO_PREFER_BUSY_POLL", Int, All, Connected),
        opt(SOL, 47, "SO_MAX_PACING_RATE", Bytes(8), All, Connected),
        opt(SOL, 60, "SO_ZEROCOPY", Int, All, First),
        opt(SOL, 61, "SO_TXTIME", Bytes(8), All, Connected),
        opt(SOL, 73, "SO_RESERVE_MEM", Int, All, Connected),
        opt(SOL, 74, "SO_TXREHASH", Settles(255, 1), Tcp, Connected),
        opt(
            SOL,
            sockopt::number::SO_PEEK_OFF,
            "SO_PEEK_OFF",
            Int,
            All,
            Connected,
        ),
        opt(
            SOL,
            sockopt::number::SO_GET_FILTER,
            "SO_ATTACH_FILTER",
            Filter,
            All,
            Connected,
        ),
        opt(
            SOL,
            libc::SO_LOCK_FILTER,
            "SO_LOCK_FILTER",
            Int,
            All,
            Connected,
        ),
        opt(IP, libc::IP_FREEBIND, "IP_FREEBIND", Int, All, First),
        opt(IP, libc::IP_TRANSPARENT, "IP_TRANSPARENT", Int, All, First),
        opt(
            IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            "IP_BIND_ADDRESS_NO_PORT",
            Int,
            All,
            Connected,
        ),
        opt(IP, 51, "IP_LOCAL_PORT_RANGE", Int, All, Connected),
        opt(IP, libc::IP_TOS, "IP_TOS", Int, All, First),
        opt(IP, libc::IP_TTL, "IP_TTL", Int, All, First),
        opt(IP, libc::IP_MINTTL, "IP_MINTTL", Int, All, Connected),
        opt(
            IP,
            libc::IP_OPTIONS,
            "IP_OPTIONS",
            Bytes(40),
            All,
            Connected,
        ),
        opt(
            IP,
            libc::IP_MTU_DISCOVER,
            "IP_MTU_DISCOVER",
            Int,
            All,
            First,
        ),
        opt(IP, libc::IP_RECVERR, "IP_RECVERR", Int, All, Connected),
        opt(IP, 26, "IP_RECVERR_RFC4884", Int, All, Connected),
        opt(IP, libc::IP_PKTINFO, "IP_PKTINFO", Int, All, Connected),
        opt(IP, libc::IP_RECVTTL, "IP_RECVTTL", Int, All, Connected),
        opt(IP, libc::IP_RECVTOS, "IP_RECVTOS", Int, All, Connected),
        opt(IP, libc::IP_RECVOPTS, "IP_RECVOPTS", Int, All, Connected),
        opt(IP, libc::IP_RETOPTS, "IP_RETOPTS", Int, All, Connected),
        opt(IP, libc::IP_PASSSEC, "IP_PASSSEC", Int, All, Connected),
        opt(
            IP,
            libc::IP_RECVORIGDSTADDR,
            "IP_RECVORIGDSTADDR",
            Int,
            All,
            Connected,
        ),
        opt(IP, 23, "IP_CHECKSUM", Int, All, Connected),
        opt(IP, 25, "IP_RECVFRAGSIZE", Int, Udp, Connected),
        opt(
            IP,
            libc::IP_UNICAST_IF,
            "IP_UNICAST_IF",
            Int,
            All,
            Connected,
        ),
        opt(
            IP,
            libc::IP_MULTICAST_TTL,
            "IP_MULTICAST_TTL",
            Int,
            Udp,
            Connected,
        ),
        opt(
            IP,
            libc::IP_MULTICAST_LOOP,
            "IP_MULTICAST_LOOP",
            Int,
            Udp,
            Connected,
        ),
        opt(
            IP,
            libc::IP_MULTICAST_ALL,
            "IP_MULTICAST_ALL",
            Int,
            Udp,
            Connected,
        ),
        opt(
            IP,
            libc::IP_MULTICAST_IF,
            "IP_MULTICAST_IF",
            Bytes(4),
            Udp,
            Connected,
        ),
        opt(IP6, libc::IPV6_V6ONLY, "IPV6_V6ONLY", Int, V6, First),
        opt(IP6, libc::IPV6_FREEBIND, "IPV6_FREEBIND", Int, V6, First),
        opt(
            IP6,
            libc::IPV6_TRANSPARENT,
            "IPV6_TRANSPARENT",
            Int,
            V6,
            First,
        ),
        opt(IP6, libc::IPV6_TCLASS, "IPV6_TCLASS", Int, V6, First),
        opt(
            IP6,
            libc::IPV6_UNICAST_HOPS,
            "IPV6_UNICAST_HOPS",
            Int,
            V6,
            First,
        ),
        opt(
            IP6,
            libc::IPV6_MINHOPCOUNT,
            "IPV6_MINHOPCOUNT",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_MTU_DISCOVER,
            "IPV6_MTU_DISCOVER",
            Int,
            V6,
            First,
        ),
        opt(
            IP6,
            libc::IPV6_DONTFRAG,
            "IPV6_DONTFRAG",
            Int,
            V6,
            Connected,
        ),
        opt(IP6, libc::IPV6_RECVERR, "IPV6_RECVERR", Int, V6, Connected),
        opt(IP6, 31, "IPV6_RECVERR_RFC4884", Int, V6, Connected),
        opt(
            IP6,
            libc::IPV6_RECVPKTINFO,
            "IPV6_RECVPKTINFO",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_2292PKTINFO,
            "IPV6_2292PKTINFO",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_RECVHOPLIMIT,
            "IPV6_RECVHOPLIMIT",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_2292HOPLIMIT,
            "IPV6_2292HOPLIMIT",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_RECVRTHDR,
            "IPV6_RECVRTHDR",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_RECVHOPOPTS,
            "IPV6_RECVHOPOPTS",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_RECVDSTOPTS,
            "IPV6_RECVDSTOPTS",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_RECVTCLASS,
            "IPV6_RECVTCLASS",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_RECVPATHMTU,
            "IPV6_RECVPATHMTU",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_RECVFRAGSIZE,
            "IPV6_RECVFRAGSIZE",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_RECVORIGDSTADDR,
            "IPV6_RECVORIGDSTADDR",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_FLOWINFO,
            "IPV6_FLOWINFO",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_FLOWINFO_SEND,
            "IPV6_FLOWINFO_SEND",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_AUTOFLOWLABEL,
            "IPV6_AUTOFLOWLABEL",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_ADDR_PREFERENCES,
            "IPV6_ADDR_PREFERENCES",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_UNICAST_IF,
            "IPV6_UNICAST_IF",
            Int,
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_HOPOPTS,
            "IPV6_HOPOPTS",
            Bytes(2048),
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_DSTOPTS,
            "IPV6_DSTOPTS",
            Bytes(2048),
            V6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_MULTICAST_HOPS,
            "IPV6_MULTICAST_HOPS",
            Int,
            UdpV6,
            Connected,
        ),
        opt(
            IP6,
            libc::IPV6_MULTICAST_LOOP,
            "IPV6_MULTICAST_LOOP",
            Int,
            UdpV6,
            Connected,
        ),
        opt(IP6, 29, "IPV6_MULTICAST_ALL", Int, UdpV6, Connected),
        opt(
            IP6,
            libc::IPV6_MULTICAST_IF,
            "IPV6_MULTICAST_IF",
            Int,
            UdpV6,
            Connected,
        ),
        // After the TOS, which sets it too.
        opt(
            SOL,
            libc::SO_PRIORITY,
            "SO_PRIORITY",
            Always,
            All,
            Connected,
        ),
        opt(TCP, libc::TCP_KEEPIDLE, "TCP_KEEPIDLE", Int, Tcp, Connected),
        opt(
            TCP,
            libc::TCP_KEEPINTVL,
            "TCP_KEEPINTVL",
            Int,
            Tcp,
            Connected,
        ),
        opt(TCP, libc::TCP_KEEPCNT, "TCP_KEEPCNT", Int, Tcp, Connected),
        opt(TCP, libc::TCP_SYNCNT, "TCP_SYNCNT", Int, Tcp, Connected),
        opt(TCP, libc::TCP_LINGER2, "TCP_LINGER2", Int, Tcp, Connected),
        opt(
            TCP,
            libc::TCP_NOTSENT_LOWAT,
            "TCP_NOTSENT_LOWAT",
            Int,
            Tcp,
            Connected,
        ),
        opt(
            TCP,
            libc::TCP_THIN_LINEAR_TIMEOUTS,
            "TCP_THIN_LINEAR_TIMEOUTS",
            Int,
            Tcp,
            Connected,
        ),
        opt(TCP, libc::TCP_SAVE_SYN, "TCP_SAVE_SYN", Int, Tcp, Connected),
        opt(TCP, libc::TCP_INQ, "TCP_INQ", Int, Tcp, Connected),
        opt(TCP, 37, "TCP_TX_DELAY", Int, Tcp, Connected),
        opt(TCP, 44, "TCP_RTO_MAX_MS", Int, Tcp, Connected),
        opt(TCP, 45, "TCP_RTO_MIN_US", Int, Tcp, Connected),
        opt(TCP, 46, "TCP_DELACK_MAX_US", Int, Tcp, Connected),
        opt(TCP, libc::TCP_CORK, "TCP_CORK", Int, Tcp, Connected),
        opt(TCP, libc::TCP_NODELAY, "TCP_NODELAY", Int, Tcp, Connected),
        opt(TCP, libc::TCP_QUICKACK, "TCP_QUICKACK", Int, Tcp, Open),
        opt(
            TCP,
            libc::TCP_DEFER_ACCEPT,
            "TCP_DEFER_ACCEPT",
            Int,
            Listen,
            Connected,
        ),
        opt(
            TCP,
            libc::TCP_FASTOPEN,
            "TCP_FASTOPEN",
            Int,
            Listen,
            Connected,
        ),
        opt(TCP, 33, "TCP_FASTOPEN_KEY", Bytes(32), Listen, Connected),
        opt(TCP, 34, "TCP_FASTOPEN_NO_COOKIE", Int, Listen, Connected),
        opt(UDP, libc::UDP_ENCAP, "UDP_ENCAP", Int, Udp, Connected),
        opt(
            UDP,
            libc::UDP_NO_CHECK6_TX,
            "UDP_NO_CHECK6_TX",
            Int,
            Udp,
            Connected,
        ),
        opt(
            UDP,
            libc::UDP_NO_CHECK6_RX,
            "UDP_NO_CHECK6_RX",
            Int,
            Udp,
            Connected,
        ),
        opt(UDP, libc::UDP_SEGMENT, "UDP_SEGMENT", Int, Udp, Connected),
        opt(UDP, libc::UDP_GRO, "UDP_GRO", Int, Udp, Connected),
        opt(SOL, libc::SO_KEEPALIVE, "SO_KEEPALIVE", Int, Tcp, Open),
        opt(
            TCP,
            libc::TCP_USER_TIMEOUT,
            "TCP_USER_TIMEOUT",
            Int,
            Tcp,
            Open,
        ),
    ]
};

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
        match self.on {
            On::All => true,
            On::V6 => v6,
            On::Tcp => sort != Sort::Udp,
            On::Listen => sort == Sort::Listen,
            On::Udp => sort == Sort::Udp,
            On::UdpV6 => sort == Sort::Udp && v6,
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

fn new_socket(sort: Sort, v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let kind = if sort == Sort::Udp {
        SockType::Datagram
    } else {
        SockType::Stream
    };
    Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

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
