//! Where the kernel keeps what a dump says of a connection.
use std::collections::HashMap;

use netmig_common::survey::{SOCKET, V6, WORDS};

use crate::sock::{
    btf::{Btf, Field},
    iter::Failure,
    option::{Sort, TABLE, new_socket},
};

/// A field, by the structure and the names that lead to it.
type Path = (&'static str, &'static [&'static str]);

/// A line a value: name, structure, the names that lead to it there.
macro_rules! values {
    ($($value:ident: $of:ident $($name:ident)+;)*) => {
        /// A value of its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Value {
            $($value),*
        }

        const VALUES: &[(Value, Path)] = &[
            $((Value::$value, (stringify!($of), &[$(stringify!($name)),+]))),*
        ];
    };
}

values! {
    State: sock_common skc_state;
    Reuse: sock_common skc_reuse;
    Reuseport: sock_common skc_reuseport;
    Device: sock_common skc_bound_dev_if;
    SndBuf: sock sk_sndbuf;
    RcvBuf: sock sk_rcvbuf;
    Userlocks: sock sk_userlocks;
    SndUna: tcp_sock snd_una;
    WriteSeq: tcp_sock write_seq;
    CopiedSeq: tcp_sock copied_seq;
    RcvNxt: tcp_sock rcv_nxt;
    RcvWup: tcp_sock rcv_wup;
    RcvWnd: tcp_sock rcv_wnd;
    SndWl1: tcp_sock snd_wl1;
    SndWnd: tcp_sock snd_wnd;
    MaxWindow: tcp_sock max_window;
    WindowClamp: tcp_sock window_clamp;
    MssCache: tcp_sock mss_cache;
    SndCwnd: tcp_sock snd_cwnd;
    SndSsthresh: tcp_sock snd_ssthresh;
    Srtt: tcp_sock srtt_us;
    Tsoffset: tcp_sock tsoffset;
    TstampOk: tcp_sock rx_opt tstamp_ok;
    WscaleOk: tcp_sock rx_opt wscale_ok;
    SackOk: tcp_sock rx_opt sack_ok;
    SndWscale: tcp_sock rx_opt snd_wscale;
    RcvWscale: tcp_sock rx_opt rcv_wscale;
    MssClamp: tcp_sock rx_opt mss_clamp;
    Congestion: inet_connection_sock icsk_ca_ops;
    Family: sock_common skc_family;
    // See `WHOLE`.
    Repair: tcp_sock repair;
    Filter: sock sk_filter;
    IpOptions: inet_sock inet_opt;
    V6Options: ipv6_pinfo opt;
    UpperLayer: inet_connection_sock icsk_ulp_ops;
    FastOpen: tcp_sock fastopen_req;
    Urgent: tcp_sock urg_data;
    // Not every kernel has it.
    Usec: tcp_sock tcp_usec_ts;
}

/// Values that are 0 in a connection of which the words say all.
pub(super) const WHOLE: [Value; 7] = [
    Value::Repair,
    Value::Filter,
    Value::IpOptions,
    Value::V6Options,
    Value::UpperLayer,
    Value::FastOpen,
    Value::Urgent,
];

const SK_FLAGS: &[Path] = &[("sock_common", &["skc_flags"])];
const INET_FLAGS: &[Path] = &[("inet_sock", &["inet_flags"])];
/// Control data that comes with what is received: bits of their own until 6.6.
const CMSG: &[&[Path]] = &[&[("inet_sock", &["cmsg_flags"])], INET_FLAGS];
const RXOPT: &[&[Path]] = &[&[("ipv6_pinfo", &["rxopt", "all"])]];
const FILTER: &[&[Path]] = &[&[("sock", &["sk_filter"])]];
const V6_OPTIONS: &[&[Path]] = &[&[("ipv6_pinfo", &["opt"])]];
const NONAGLE: &[&[Path]] = &[&[("tcp_sock", &["nonagle"])]];
const TSFLAGS: &[&[Path]] = &[&[
    ("sock", &["sk_tsflags"]),
    ("sock", &["sk_bind_phc"]),
    ("sock_common", &["skc_flags"]),
]];

/// What the getter of each option of [`TABLE`] looks at in a connection, in the first form that the kernel has. Two connections with the same
/// values there have the same options.
const OPTIONS: &[(&[&str], &[&[Path]])] = &[
    (
        &[
            "SO_DEBUG",
            "SO_DONTROUTE",
            "SO_BROADCAST",
            "SO_OOBINLINE",
            "SO_RCVMARK",
            "SO_RCVPRIORITY",
            "SO_TIMESTAMP",
            "SO_TIMESTAMPNS",
            "SO_TIMESTAMP_NEW",
            "SO_TIMESTAMPNS_NEW",
            "SO_RXQ_OVFL",
            "SO_SELECT_ERR_QUEUE",
            "SO_ZEROCOPY",
            "SO_LOCK_FILTER",
            "SO_KEEPALIVE",
        ],
        &[SK_FLAGS],
    ),
    (
        &["SO_LINGER"],
        &[&[
            ("sock_common", &["skc_flags"]),
            ("sock", &["sk_lingertime"]),
        ]],
    ),
    (&["SO_MARK"], &[&[("sock", &["sk_mark"])]]),
    (&["SO_RCVLOWAT"], &[&[("sock", &["sk_rcvlowat"])]]),
    (&["SO_RCVTIMEO"], &[&[("sock", &["sk_rcvtimeo"])]]),
    (&["SO_SNDTIMEO"], &[&[("sock", &["sk_sndtimeo"])]]),
    (&["SO_TIMESTAMPING", "SO_TIMESTAMPING_NEW"], TSFLAGS),
    (&["SO_BUSY_POLL"], &[&[("sock", &["sk_ll_usec"])]]),
    (
        &["SO_PREFER_BUSY_POLL"],
        &[&[("sock", &["sk_prefer_busy_poll"])]],
    ),
    (
        &["SO_MAX_PACING_RATE"],
        &[&[("sock", &["sk_max_pacing_rate"])]],
    ),
    (
        &["SO_TXTIME"],
        &[&[
            ("sock_common", &["skc_flags"]),
            ("sock", &["sk_clockid"]),
            ("sock", &["sk_txtime_deadline_mode"]),
            ("sock", &["sk_txtime_report_errors"]),
        ]],
    ),
    (&["SO_RESERVE_MEM"], &[&[("sock", &["sk_reserved_mem"])]]),
    (&["SO_TXREHASH"], &[&[("sock", &["sk_txrehash"])]]),
    (&["SO_PEEK_OFF"], &[&[("sock", &["sk_peek_off"])]]),
    (&["SO_ATTACH_FILTER"], FILTER),
    (&["SO_PRIORITY"], &[&[("sock", &["sk_priority"])]]),
    (
        &["IP_FREEBIND", "IPV6_FREEBIND"],
        &[&[("inet_sock", &["freebind"])], INET_FLAGS],
    ),
    (
        &["IP_TRANSPARENT", "IPV6_TRANSPARENT"],
        &[&[("inet_sock", &["transparent"])], INET_FLAGS],
    ),
    (
        &["IP_BIND_ADDRESS_NO_PORT"],
        &[&[("inet_sock", &["bind_address_no_port"])], INET_FLAGS],
    ),
    (
        &["IP_LOCAL_PORT_RANGE"],
        &[&[("inet_sock", &["local_port_range"])]],
    ),
    (&["IP_TOS"], &[&[("inet_sock", &["tos"])]]),
    (&["IP_TTL"], &[&[("inet_sock", &["uc_ttl"])]]),
    (&["IP_MINTTL"], &[&[("inet_sock", &["min_ttl"])]]),
    (&["IP_OPTIONS"], &[&[("inet_sock", &["inet_opt"])]]),
    (&["IP_MTU_DISCOVER"], &[&[("inet_sock", &["pmtudisc"])]]),
    (
        &["IP_RECVERR"],
        &[&[("inet_sock", &["recverr"])], INET_FLAGS],
    ),
    (
        &["IP_RECVERR_RFC4884"],
        &[&[("inet_sock", &["recverr_rfc4884"])], INET_FLAGS],
    ),
    (
        &[
            "IP_PKTINFO",
            "IP_RECVTTL",
            "IP_RECVTOS",
            "IP_RECVOPTS",
            "IP_RETOPTS",
            "IP_PASSSEC",
            "IP_RECVORIGDSTADDR",
            "IP_CHECKSUM",
        ],
        CMSG,
    ),
    (&["IP_UNICAST_IF"], &[&[("inet_sock", &["uc_index"])]]),
    (&["IPV6_V6ONLY"], &[&[("sock_common", &["skc_ipv6only"])]]),
    (&["IPV6_TCLASS"], &[&[("ipv6_pinfo", &["tclass"])]]),
    // Where none was set the route's counts (do_ipv6_getsockopt, ip6_dst_hoplimit).
    (
        &["IPV6_UNICAST_HOPS"],
        &[&[("ipv6_pinfo", &["hop_limit"]), ("sock", &["sk_dst_cache"])]],
    ),
    (
        &["IPV6_MINHOPCOUNT"],
        &[&[("ipv6_pinfo", &["min_hopcount"])]],
    ),
    (&["IPV6_MTU_DISCOVER"], &[&[("ipv6_pinfo", &["pmtudisc"])]]),
    (
        &["IPV6_DONTFRAG"],
        &[&[("ipv6_pinfo", &["dontfrag"])], INET_FLAGS],
    ),
    (
        &["IPV6_RECVERR"],
        &[&[("ipv6_pinfo", &["recverr"])], INET_FLAGS],
    ),
    (
        &["IPV6_RECVERR_RFC4884"],
        &[&[("ipv6_pinfo", &["recverr_rfc4884"])], INET_FLAGS],
    ),
    (
        &[
            "IPV6_RECVPKTINFO",
            "IPV6_2292PKTINFO",
            "IPV6_RECVHOPLIMIT",
            "IPV6_2292HOPLIMIT",
            "IPV6_RECVRTHDR",
            "IPV6_RECVHOPOPTS",
            "IPV6_RECVDSTOPTS",
            "IPV6_RECVTCLASS",
            "IPV6_RECVPATHMTU",
            "IPV6_RECVFRAGSIZE",
            "IPV6_RECVORIGDSTADDR",
            "IPV6_FLOWINFO",
        ],
        RXOPT,
    ),
    (
        &["IPV6_FLOWINFO_SEND"],
        &[&[("ipv6_pinfo", &["sndflow"])], INET_FLAGS],
    ),
    (
        &["IPV6_AUTOFLOWLABEL"],
        &[
            &[
                ("ipv6_pinfo", &["autoflowlabel"]),
                ("ipv6_pinfo", &["autoflowlabel_set"]),
            ],
            INET_FLAGS,
        ],
    ),
    (
        &["IPV6_ADDR_PREFERENCES"],
        &[&[("ipv6_pinfo", &["srcprefs"])]],
    ),
    (&["IPV6_UNICAST_IF"], &[&[("ipv6_pinfo", &["ucast_oif"])]]),
    (&["IPV6_HOPOPTS", "IPV6_DSTOPTS"], V6_OPTIONS),
    (&["TCP_KEEPIDLE"], &[&[("tcp_sock", &["keepalive_time"])]]),
    (&["TCP_KEEPINTVL"], &[&[("tcp_sock", &["keepalive_intvl"])]]),
    (&["TCP_KEEPCNT"], &[&[("tcp_sock", &["keepalive_probes"])]]),
    (
        &["TCP_SYNCNT"],
        &[&[("inet_connection_sock", &["icsk_syn_retries"])]],
    ),
    (&["TCP_LINGER2"], &[&[("tcp_sock", &["linger2"])]]),
    (
        &["TCP_NOTSENT_LOWAT"],
        &[&[("tcp_sock", &["notsent_lowat"])]],
    ),
    (
        &["TCP_THIN_LINEAR_TIMEOUTS"],
        &[&[("tcp_sock", &["thin_lto"])]],
    ),
    (&["TCP_SAVE_SYN"], &[&[("tcp_sock", &["save_syn"])]]),
    (&["TCP_INQ"], &[&[("tcp_sock", &["recvmsg_inq"])]]),
    (&["TCP_TX_DELAY"], &[&[("tcp_sock", &["tcp_tx_delay"])]]),
    (
        &["TCP_RTO_MAX_MS"],
        &[&[("inet_connection_sock", &["icsk_rto_max"])]],
    ),
    (
        &["TCP_RTO_MIN_US"],
        &[&[("inet_connection_sock", &["icsk_rto_min"])]],
    ),
    (
        &["TCP_DELACK_MAX_US"],
        &[&[("inet_connection_sock", &["icsk_delack_max"])]],
    ),
    (&["TCP_CORK", "TCP_NODELAY"], NONAGLE),
    (
        &["TCP_QUICKACK"],
        &[&[("inet_connection_sock", &["icsk_ack", "pingpong"])]],
    ),
    (
        &["TCP_USER_TIMEOUT"],
        &[&[("inet_connection_sock", &["icsk_user_timeout"])]],
    ),
];

/// A field within the words of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    word: usize,
    field: Field,
}

impl Part {
    pub(super) fn of(self, record: &[u64]) -> u64 {
        self.field.of(record[self.word])
    }
}

/// Which words a record has, and what they mean.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// As the program is asked for them; the first one is the inode's number, which has no place.
    pub words: Vec<u32>,
    /// In the order of [`VALUES`]; none: this kernel does not have it.
    values: Vec<Option<Part>>,
    structures: HashMap<&'static str, Option<usize>>,
    /// What options depend on; what is looked at in IPv6 sockets alone, last.
    options: Vec<Part>,
    for_all: usize,
}

impl Places {
    /// Where this kernel has everything.
    pub(super) fn find(btf: &Btf) -> Result<Self, Failure> {
        let mut places = Self {
            words: vec![0],
            ..Self::default()
        };
        for &(value, path) in VALUES {
            let part = places.part(btf, path);
            if part.is_none() && value != Value::Usec {
                return Err(format!("this kernel has no {}", name(path)).into());
            }
            places.values.push(part);
        }
        for v6 in [false, true] {
            places.options(btf, v6)?;
        }
        Ok(places)
    }

    /// What the options that such sockets have on this kernel depend on.
    fn options(&mut self, btf: &Btf, v6: bool) -> Result<(), Failure> {
        let socket = new_socket(Sort::Tcp, v6)?;
        let mut parts = Vec::new();
        for option in TABLE.iter().filter(|o| o.applies(Sort::Tcp, v6)) {
            if option.read(&socket).is_none() {
                continue;
            }
            let (_, forms) = OPTIONS
                .iter()
                .find(|(names, _)| names.contains(&option.text))
                .ok_or_else(|| format!("{} is not known to be in any field", option.text))?;
            let form = forms
                .iter()
                .find_map(|form| form.iter().map(|path| self.part(btf, *path)).collect())
                .ok_or_else(|| format!("it is not known where {} is", option.text))?;
            let form: Vec<Part> = form;
            parts.extend(form);
        }
        for part in parts {
            if !self.options.contains(&part) {
                self.options.push(part);
            }
        }
        if !v6 {
            self.for_all = self.options.len();
        }
        Ok(())
    }

    fn part(&mut self, btf: &Btf, (of, path): Path) -> Option<Part> {
        let structure = *self
            .structures
            .entry(of)
            .or_insert_with(|| btf.structure(of));
        let field = btf.field(structure?, path)?;
        let (base, limit) = if of == "ipv6_pinfo" {
            (SOCKET, V6)
        } else {
            (0, SOCKET)
        };
        let (word, field) = field.in_word()?;
        let at = u32::try_from((base + word) / 8).ok()?;
        if word + 8 > limit {
            return None;
        }
        let known = self.words.iter().skip(1).position(|w| *w == at);
        let word = match known {
            Some(i) => i + 1,
            None if self.words.len() == WORDS => return None,
            None => {
                self.words.push(at);
                self.words.len() - 1
            }
        };
        Some(Part { word, field })
    }

    /// How many bytes have to be read: of a struct tcp_sock, of a struct ipv6_pinfo.
    pub(super) fn bytes(&self, least: u32) -> (u32, u32) {
        let begin = (SOCKET / 8) as u32;
        let end = |words: &mut dyn Iterator<Item = u32>| words.max().map_or(8, |w| (w + 1) * 8);
        let words = || self.words.iter().skip(1).copied();
        (
            end(&mut words().filter(|w| *w < begin)).max(least),
            end(&mut words().filter(|w| *w >= begin).map(|w| w - begin)),
        )
    }

    /// A value; 0 for what this kernel does not have.
    pub(super) fn long(&self, record: &[u64], value: Value) -> u64 {
        self.values[value as usize].map_or(0, |part| part.of(record))
    }

    /// What the options of a connection depend on.
    pub(super) fn options_of<'a>(
        &'a self,
        record: &'a [u64],
        v6: bool,
    ) -> impl Iterator<Item = u64> + 'a {
        let count = if v6 { self.options.len() } else { self.for_all };
        self.options[..count].iter().map(|part| part.of(record))
    }
}

fn name((of, path): Path) -> String {
    format!("{of}.{}", path.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_a_connection_is_somewhere() {
        for option in TABLE {
            if option.applies(Sort::Tcp, true) || option.applies(Sort::Tcp, false) {
                let forms = OPTIONS
                    .iter()
                    .filter(|(names, _)| names.contains(&option.text));
                assert_eq!(forms.count(), 1, "{}", option.text);
            }
        }
    }

    #[test]
    fn this_kernel_is_understood() {
        let places = Places::find(Btf::kernel().expect("type information")).expect("all fields");
        assert!(places.for_all < places.options.len());
        let (socket, v6) = places.bytes(0);
        assert!(socket as usize <= SOCKET && v6 as usize <= V6);
    }
}
