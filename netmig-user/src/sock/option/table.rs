//! The rows, in the order in which they are set.
use super::{Form, On, Opt, When};

const SOL: i32 = libc::SOL_SOCKET;
const IP: i32 = libc::IPPROTO_IP;
const IP6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;
const UDPLITE: i32 = libc::IPPROTO_UDPLITE;

/// A line a row: level, name in the manual (and number, where libc has it not under that name): form, sockets, time.
macro_rules! rows {
    ($($level:ident $name:ident $(= $number:tt)?: $form:expr, $on:expr, $when:expr;)*) => {
        &[$(Opt {
            level: $level,
            name: rows!(@number $name $($number)?),
            text: stringify!($name),
            form: $form,
            on: $on,
            when: $when,
        }),*]
    };
    (@number $name:ident) => {
        libc::$name
    };
    (@number $name:ident $number:tt) => {
        $number
    };
}

/// Every option, in the order in which they are set. Numbers without a name in libc come from include/uapi.
pub const TABLE: &[Opt] = {
    use Form::{Always, Bytes, Filter, Int, Settles};
    use On::{All, Listen, Tcp, Udp, UdpLite, UdpV6, V6};
    use When::{Connected, First, Open};
    rows! {
        SOL SO_DEBUG: Int, All, First;
        SOL SO_DONTROUTE: Int, All, Connected;
        SOL SO_BROADCAST: Int, All, First;
        SOL SO_OOBINLINE: Int, All, First;
        SOL SO_NO_CHECK: Int, Udp, First;
        SOL SO_LINGER: Bytes(8), All, First;
        SOL SO_MARK: Int, All, First;
        SOL SO_RCVMARK = 75: Int, All, First;
        SOL SO_RCVPRIORITY = 82: Int, All, First;
        SOL SO_RCVLOWAT: Int, All, Connected;
        SOL SO_RCVTIMEO: Bytes(16), All, Connected;
        SOL SO_SNDTIMEO: Bytes(16), All, Connected;
        SOL SO_TIMESTAMP: Int, All, Connected;
        SOL SO_TIMESTAMPNS: Int, All, Connected;
        SOL SO_TIMESTAMP_NEW = 63: Int, All, Connected;
        SOL SO_TIMESTAMPNS_NEW = 64: Int, All, Connected;
        SOL SO_TIMESTAMPING: Bytes(8), All, Connected;
        SOL SO_TIMESTAMPING_NEW = 65: Bytes(8), All, Connected;
        SOL SO_RXQ_OVFL: Int, All, Connected;
        SOL SO_SELECT_ERR_QUEUE = 45: Int, All, Connected;
        SOL SO_BUSY_POLL: Int, All, Connected;
        SOL SO_PREFER_BUSY_POLL = 69: Int, All, Connected;
        SOL SO_MAX_PACING_RATE = 47: Bytes(8), All, Connected;
        SOL SO_ZEROCOPY = 60: Int, All, First;
        SOL SO_TXTIME = 61: Bytes(8), All, Connected;
        SOL SO_RESERVE_MEM = 73: Int, All, Connected;
        SOL SO_TXREHASH = 74: Settles(255, 1), Tcp, Connected;
        SOL SO_PEEK_OFF = 42: Int, All, Connected;
        SOL SO_ATTACH_FILTER = 26: Filter, All, Connected;
        SOL SO_LOCK_FILTER: Int, All, Connected;
        IP IP_FREEBIND: Int, All, First;
        IP IP_TRANSPARENT: Int, All, First;
        IP IP_BIND_ADDRESS_NO_PORT: Int, All, Connected;
        IP IP_LOCAL_PORT_RANGE = 51: Int, All, Connected;
        IP IP_TOS: Int, All, First;
        IP IP_TTL: Int, All, First;
        IP IP_MINTTL: Int, All, Connected;
        IP IP_OPTIONS: Bytes(40), All, Connected;
        IP IP_MTU_DISCOVER: Int, All, First;
        IP IP_RECVERR: Int, All, Connected;
        IP IP_RECVERR_RFC4884 = 26: Int, All, Connected;
        IP IP_PKTINFO: Int, All, Connected;
        IP IP_RECVTTL: Int, All, Connected;
        IP IP_RECVTOS: Int, All, Connected;
        IP IP_RECVOPTS: Int, All, Connected;
        IP IP_RETOPTS: Int, All, Connected;
        IP IP_PASSSEC: Int, All, Connected;
        IP IP_RECVORIGDSTADDR: Int, All, Connected;
        IP IP_CHECKSUM = 23: Int, All, Connected;
        IP IP_RECVFRAGSIZE = 25: Int, Udp, Connected;
        IP IP_UNICAST_IF: Int, All, Connected;
        IP IP_MULTICAST_TTL: Int, Udp, Connected;
        IP IP_MULTICAST_LOOP: Int, Udp, Connected;
        IP IP_MULTICAST_ALL: Int, Udp, Connected;
        IP IP_MULTICAST_IF: Bytes(4), Udp, Connected;
        IP6 IPV6_V6ONLY: Int, V6, First;
        IP6 IPV6_FREEBIND: Int, V6, First;
        IP6 IPV6_TRANSPARENT: Int, V6, First;
        IP6 IPV6_TCLASS: Int, V6, First;
        IP6 IPV6_UNICAST_HOPS: Int, V6, First;
        IP6 IPV6_MINHOPCOUNT: Int, V6, Connected;
        IP6 IPV6_MTU_DISCOVER: Int, V6, First;
        IP6 IPV6_DONTFRAG: Int, V6, Connected;
        IP6 IPV6_RECVERR: Int, V6, Connected;
        IP6 IPV6_RECVERR_RFC4884 = 31: Int, V6, Connected;
        IP6 IPV6_RECVPKTINFO: Int, V6, Connected;
        IP6 IPV6_2292PKTINFO: Int, V6, Connected;
        IP6 IPV6_RECVHOPLIMIT: Int, V6, Connected;
        IP6 IPV6_2292HOPLIMIT: Int, V6, Connected;
        IP6 IPV6_RECVRTHDR: Int, V6, Connected;
        IP6 IPV6_RECVHOPOPTS: Int, V6, Connected;
        IP6 IPV6_RECVDSTOPTS: Int, V6, Connected;
        IP6 IPV6_RECVTCLASS: Int, V6, Connected;
        IP6 IPV6_RECVPATHMTU: Int, V6, Connected;
        IP6 IPV6_RECVFRAGSIZE: Int, V6, Connected;
        IP6 IPV6_RECVORIGDSTADDR: Int, V6, Connected;
        IP6 IPV6_FLOWINFO: Int, V6, Connected;
        IP6 IPV6_FLOWINFO_SEND: Int, V6, Connected;
        IP6 IPV6_AUTOFLOWLABEL: Int, V6, Connected;
        IP6 IPV6_ADDR_PREFERENCES: Int, V6, Connected;
        IP6 IPV6_UNICAST_IF: Int, V6, Connected;
        IP6 IPV6_HOPOPTS: Bytes(2048), V6, Connected;
        IP6 IPV6_DSTOPTS: Bytes(2048), V6, Connected;
        IP6 IPV6_MULTICAST_HOPS: Int, UdpV6, Connected;
        IP6 IPV6_MULTICAST_LOOP: Int, UdpV6, Connected;
        IP6 IPV6_MULTICAST_ALL = 29: Int, UdpV6, Connected;
        IP6 IPV6_MULTICAST_IF: Int, UdpV6, Connected;
        // After the TOS, which sets it too.
        SOL SO_PRIORITY: Always, All, Connected;
        TCP TCP_KEEPIDLE: Int, Tcp, Connected;
        TCP TCP_KEEPINTVL: Int, Tcp, Connected;
        TCP TCP_KEEPCNT: Int, Tcp, Connected;
        TCP TCP_SYNCNT: Int, Tcp, Connected;
        TCP TCP_LINGER2: Int, Tcp, Connected;
        TCP TCP_NOTSENT_LOWAT: Int, Tcp, Connected;
        TCP TCP_THIN_LINEAR_TIMEOUTS: Int, Tcp, Connected;
        TCP TCP_SAVE_SYN: Int, Tcp, Connected;
        TCP TCP_INQ: Int, Tcp, Connected;
        TCP TCP_TX_DELAY = 37: Int, Tcp, Connected;
        TCP TCP_RTO_MAX_MS = 44: Int, Tcp, Connected;
        TCP TCP_RTO_MIN_US = 45: Int, Tcp, Connected;
        TCP TCP_DELACK_MAX_US = 46: Int, Tcp, Connected;
        TCP TCP_CORK: Int, Tcp, Connected;
        TCP TCP_NODELAY: Int, Tcp, Connected;
        TCP TCP_QUICKACK: Int, Tcp, Open;
        TCP TCP_DEFER_ACCEPT: Int, Listen, Connected;
        TCP TCP_FASTOPEN: Int, Listen, Connected;
        TCP TCP_FASTOPEN_KEY = 33: Bytes(32), Listen, Connected;
        TCP TCP_FASTOPEN_NO_COOKIE = 34: Int, Listen, Connected;
        UDP UDP_ENCAP: Int, Udp, Connected;
        UDP UDP_NO_CHECK6_TX: Int, Udp, Connected;
        UDP UDP_NO_CHECK6_RX: Int, Udp, Connected;
        UDP UDP_SEGMENT: Int, Udp, Connected;
        UDP UDP_GRO: Int, Udp, Connected;
        UDPLITE UDPLITE_SEND_CSCOV = 10: Int, UdpLite, Connected;
        UDPLITE UDPLITE_RECV_CSCOV = 11: Int, UdpLite, Connected;
        SOL SO_KEEPALIVE: Int, Tcp, Open;
        TCP TCP_USER_TIMEOUT: Int, Tcp, Open;
    }
};
